"""ONNX: a ModelProto in protobuf, parsed by the onnx package (the [onnx] extra); external data from its own folder.

The graph becomes a config of plain values, {"class_name": "OnnxGraph", "config": …}, its constants tensors by their
names; so do the bodies of If, Loop and Scan, inside it. Nothing is computed here. (Source: onnx/onnx.proto,
onnx/docs/IR.md.)
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from .model_file import ModelFile, Tensor
from .onnx_tensors import ELEMENTS, TensorReader
from .onnx_wire import check_messages
from .untrusted import LIMITS, REMEDIES, Source

__all__ = ["OPSETS", "looks_like_onnx", "read_onnx"]

#: Versions of the standard operators whose meaning is known here: 7 brought NumPy's broadcasting.
OPSETS = range(7, 29)
_IR = range(3, 15)
_STANDARD = ("", "ai.onnx")
#: Tags of the fields that may follow ir_version: producer_name, producer_version, domain, model_version, doc_string,
#: graph, opset_import.
_SECOND = b"\x12\x1a\x22\x28\x32\x3a\x42"
# AttributeProto.AttributeType
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 4, 5, 6, 7, 8


def looks_like_onnx(head: bytes) -> bool:
    """Whether bytes start as every known writer starts a ModelProto, which has no magic: ir_version comes first."""
    return len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 0x80 and head[2] in _SECOND


def read_onnx(source: Source) -> ModelFile:
    """Read an ONNX model.

    Returns
    -------
    ModelFile
        Its config holds "opset", "inputs" (name, dtype, shape; a size is a name or None where any fits, the shape
        None where the file has none), "outputs" (names), "output_shapes" as declared and "nodes" (name, op, inputs,
        outputs, attributes), in the file's order. Its tensors are the initialisers and the values of Constant nodes,
        by their names. An attribute that is a graph is {"graph": …}: "name", "inputs" and "outputs" (name, dtype,
        shape; the dtype None where the file has none), "nodes", and "constants": the names in it of what among the
        tensors is its own.

    Raises
    ------
    FormatError
        If the onnx package is missing, or the file is damaged, newer than known, or holds what is no plain graph of
        tensors: operators of other domains, sequences, strings.
    """
    try:
        import onnx
    except ImportError as error:
        raise source.refuse(
            "",
            expected="the onnx package, which reads ONNX models",
            found=f"that it can't be imported ({error})",
            remedy='pip install "fastgru[onnx]"',
        ) from error
    with source.parsing("", "an ONNX model"):
        check_messages(source.data, onnx.ModelProto.DESCRIPTOR)
        model = onnx.ModelProto.FromString(bytes(source.data))
    if not model.HasField("graph"):
        raise source.refuse("", expected="an ONNX model with a graph", found="none", remedy=REMEDIES["damaged"])
    return _Reader(source, model).read()


def _size(dim: Any) -> int | str | None:
    """The size of an axis, or the name by which axes of one size are known; a size below 0 means any, as none does."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None


def _notes(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    wide = sorted({str(t.dtype) for t in tensors.values() if t.dtype.kind == "f"} - {"float32"})
    return tuple(f"tensors of {kind}: everything is computed in float32" for kind in wide)


class _Reader:
    """Reads one parsed model."""

    def __init__(self, source: Source, model: Any) -> None:
        self._source = source
        self._model = model
        self._count = 0  # of tensors, in bodies too
        self._inner: list[tuple[dict[str, str], dict[str, Tensor]]] = []  # of each body: "constants", and their values
        self._reader = TensorReader(source)

    def read(self) -> ModelFile:
        graph = self._model.graph
        opset = self._versions()
        tensors: dict[str, Tensor] = {}
        nodes = self._nodes(graph, tensors, "", 0)
        # up to IR 3 an initialiser is an input too; here it is a constant either way
        inputs = [self._end(proto, "", "input", "float32") for proto in graph.input if proto.name not in tensors]
        config = {
            "name": graph.name,
            "opset": opset,
            "inputs": inputs,
            "outputs": [proto.name for proto in graph.output],
            "output_shapes": [self._end(proto, "", "output")["shape"] for proto in graph.output],
            "nodes": nodes,
        }
        self._name_inner(tensors)
        producer = f"{self._model.producer_name} {self._model.producer_version}".strip()
        return ModelFile(
            "onnx",
            producer,
            {"class_name": "OnnxGraph", "config": config},
            tensors,
            _notes(tensors),
            self._source.name,
            data_files=self._reader.files,
        )

    def _versions(self) -> int:
        """The opset of the standard operators; versions outside of what is known are refused."""
        ir = self._model.ir_version
        if ir not in _IR:
            raise self._refuse("ir_version", f"{_IR[0]} … {_IR[-1]}", str(ir), REMEDIES["opset"])
        opsets = [o.version for o in self._model.opset_import if o.domain in _STANDARD]
        if len(set(opsets)) != 1 or opsets[0] not in OPSETS:
            found = ", ".join(map(str, opsets)) or "none"
            raise self._refuse("opset_import", f"one opset of {OPSETS[0]} … {OPSETS[-1]}", found, REMEDIES["opset"])
        return int(opsets[0])

    # -- tensors ---------------------------------------------------------------------------

    def _add(self, tensors: dict[str, Tensor], name: str, proto: Any, member: str) -> None:
        self._check_name(tensors, name, member)
        tensors[name] = self._reader.read(proto, member)

    def _check_name(self, tensors: dict[str, Tensor], name: str, member: str) -> None:
        """Before a tensor is added: it has a name that no other one of its graph has, and is not one too many."""
        if not name or name in tensors:
            raise self._refuse(member, "a name of its own", f"{name!r} twice" if name else "none")
        self._count += 1
        if self._count > LIMITS.tensors:
            raise self._refuse(member, f"at most {LIMITS.tensors} tensors", "more")

    def _name_inner(self, tensors: dict[str, Tensor]) -> None:
        """Give the constants of bodies names of their own among all tensors: bodies side by side may use one twice."""
        repeats: Counter[str] = Counter()
        for names, values in self._inner:
            for name, value in values.items():
                key = name
                while key in tensors:
                    repeats[name] += 1
                    key = f"{name}_{repeats[name]}"
                names[name] = key
                tensors[key] = value

    # -- the graph -------------------------------------------------------------------------

    def _nodes(self, graph: Any, tensors: dict[str, Tensor], where: str, depth: int) -> list[dict[str, Any]]:
        """The nodes of a graph; its initialisers and Constants go to ``tensors``."""
        if graph.sparse_initializer:
            raise self._refuse(f"{where}sparse_initializer", "dense initialisers", "sparse ones")
        for proto in graph.initializer:
            self._add(tensors, proto.name, proto, f"{where}initializer {proto.name!r}")
        nodes = (self._node(i, proto, tensors, where, depth) for i, proto in enumerate(graph.node))
        return [node for node in nodes if node is not None]

    def _body(self, graph: Any, where: str, depth: int) -> dict[str, Any]:
        """A graph in an attribute."""
        if depth > LIMITS.onnx_depth:
            raise self._refuse(where, f"graphs inside graphs at most {LIMITS.onnx_depth} deep", "deeper ones")
        where = f"{where[-200:]}: "  # names in it are the file's: of any length, and every node inside repeats it
        tensors, constants = dict[str, Tensor](), dict[str, str]()
        self._inner.append((constants, tensors))
        return {
            "name": graph.name,
            "inputs": [self._end(proto, where, "input") for proto in graph.input],
            "outputs": [self._end(proto, where, "output") for proto in graph.output],
            "nodes": self._nodes(graph, tensors, where, depth),
            "constants": constants,
        }

    def _end(self, proto: Any, where: str, what: str, untyped: str | None = None) -> dict[str, Any]:
        """An input or output as declared; ``untyped`` is the dtype of one that the file gives no type."""
        member = f"{where}{what} {proto.name!r}"
        kind = proto.type.WhichOneof("value")
        tensor = proto.type.tensor_type
        if kind not in ("tensor_type", None) or tensor.elem_type not in (0, *ELEMENTS):
            found = kind if kind != "tensor_type" else f"elements of TensorProto.DataType {tensor.elem_type}"
            raise self._refuse(member, "a tensor of numbers", str(found))
        shape = None
        if tensor.HasField("shape"):
            if len(tensor.shape.dim) > LIMITS.rank:
                raise self._refuse(member, f"at most {LIMITS.rank} axes", str(len(tensor.shape.dim)))
            shape = [_size(dim) for dim in tensor.shape.dim]
        return {"name": proto.name, "dtype": ELEMENTS.get(tensor.elem_type, untyped), "shape": shape}

    def _node(
        self, index: int, proto: Any, tensors: dict[str, Tensor], where: str, depth: int
    ) -> dict[str, Any] | None:
        """The node as plain values; None for a Constant, which becomes a tensor."""
        name = proto.name or f"{proto.op_type}_{index}"
        member = f"{where}node {name!r} ({proto.op_type})"
        if proto.domain not in _STANDARD:
            raise self._refuse(
                member,
                "operators of the standard domain",
                f"{proto.domain}::{proto.op_type}",
                "export the model without the operators of one runtime (no optimiser of a runtime, no custom "
                "operators)",
            )
        attributes = {a.name: a for a in proto.attribute}
        if len(attributes) != len(proto.attribute):
            raise self._refuse(member, "attributes of names that differ", "one twice", REMEDIES["damaged"])
        if proto.op_type == "Constant" and len(proto.output) == 1:
            self._constant(tensors, proto.output[0], attributes, member)
            return None
        return {
            "name": name,
            "op": proto.op_type,
            "inputs": list(proto.input),
            "outputs": list(proto.output),
            "attributes": {key: self._attribute(a, member, depth) for key, a in attributes.items()},
        }

    def _attribute(self, proto: Any, member: str, depth: int = 0) -> Any:
        kind = proto.type
        if kind in (_FLOAT, _FLOATS):
            return float(proto.f) if kind == _FLOAT else [float(f) for f in proto.floats]
        if kind in (_INT, _INTS):
            return int(proto.i) if kind == _INT else [int(i) for i in proto.ints]
        if kind in (_STRING, _STRINGS):
            with self._source.parsing(f"{member}: {proto.name}", "text in UTF-8"):
                return proto.s.decode() if kind == _STRING else [s.decode() for s in proto.strings]
        if kind == _TENSOR:
            value = self._reader.read(proto.t, f"{member}: {proto.name}")
            if value.size > 1:
                raise self._refuse(f"{member}: {proto.name}", "one number", f"a tensor of shape {value.shape}")
            return {"dtype": str(value.dtype), "values": value.ravel().tolist()}
        if kind == _GRAPH:
            return {"graph": self._body(proto.g, f"{member}: {proto.name}", depth + 1)}
        raise self._refuse(
            f"{member}: {proto.name}", "numbers, text or a graph", f"AttributeProto.AttributeType {kind}"
        )

    def _constant(self, tensors: dict[str, Tensor], name: str, attributes: dict[str, Any], member: str) -> None:
        """A Constant node: a tensor, or numbers in an attribute that says their type."""
        if len(attributes) != 1:
            raise self._refuse(member, "one value", f"{sorted(attributes)}")
        key, proto = next(iter(attributes.items()))
        if key == "value":
            self._add(tensors, name, proto.t, member)
            return
        kind = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
        if key not in kind:
            raise self._refuse(member, "a tensor or numbers", f"{key}")
        self._check_name(tensors, name, member)
        tensors[name] = np.array(self._attribute(proto, member), kind[key])

    def _refuse(self, member: str, expected: str, found: str, remedy: str = "") -> Exception:
        return self._source.refuse(member, expected=expected, found=found, remedy=remedy)
