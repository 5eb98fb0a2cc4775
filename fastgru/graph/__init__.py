"""What a model runs: the plan of its calls, how a functional config becomes one, what inputs fit."""

from .functional import Functional, GraphReader
from .inputs import given_inputs, input_arrays, input_masks
from .plan import Graph, Node, Ref, chain, leaves
from .samples import sample_inputs
from .training import check_gradients, learns, train, untrainable

__all__ = [
    "Functional",
    "Graph",
    "GraphReader",
    "Node",
    "Ref",
    "chain",
    "check_gradients",
    "given_inputs",
    "input_arrays",
    "input_masks",
    "learns",
    "leaves",
    "sample_inputs",
    "train",
    "untrainable",
]
