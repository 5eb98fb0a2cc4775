"""The table of ONNX operators. What is not in it is refused."""

from __future__ import annotations

from .onnx_control import CONTROL
from .onnx_elementwise import ELEMENTWISE
from .onnx_gru import GRUS
from .onnx_node import NodeSpec, OnnxNode, Operator
from .onnx_products import PRODUCTS
from .onnx_reductions import REDUCTIONS
from .onnx_shaping import SHAPING
from .onnx_windows import WINDOWS

#: Operator → the class of its nodes, and its row.
OPERATORS: dict[str, tuple[type[OnnxNode], Operator]] = {
    **{name: (OnnxNode, operator) for name, operator in {**ELEMENTWISE, **SHAPING, **REDUCTIONS}.items()},
    **PRODUCTS,
    **WINDOWS,
    **GRUS,
    **CONTROL,
}


def onnx_node(spec: NodeSpec, inputs: int) -> OnnxNode:
    """The node for a spec.

    Raises
    ------
    ValueError
        For an operator outside of the table, attributes it does not know, too few or too many inputs or outputs.
    """
    if spec.op not in OPERATORS:
        raise ValueError(
            f"the operator {spec.op!r} is not supported; supported are {', '.join(sorted(OPERATORS))}. Cut the model "
            "before this node, or export it in terms of these"
        )
    make, operator = OPERATORS[spec.op]
    unknown = sorted(set(spec.attributes) - set(operator.attributes))
    if unknown:
        raise ValueError(f"expected the attributes {list(operator.attributes)}, found {unknown}")
    fewest, most = operator.inputs
    if not fewest <= inputs <= most:
        raise ValueError(f"expected {fewest} … {most} inputs, found {inputs}")
    if not 1 <= len(spec.outputs) <= operator.outputs:
        raise ValueError(f"expected 1 … {operator.outputs} outputs, found {len(spec.outputs)}")
    return make(spec, operator)
