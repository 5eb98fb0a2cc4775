import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

def outer_sum(a: F32, b: F32, num_threads: int | None = None, isa: str | None = None) -> F32: ...
def column_sums(a: F32, isa: str | None = None) -> F32: ...
def sum_rows(values: F32, place: I64, count: int) -> F32: ...
def move(packed: F32, weight: F32, lanes: NDArray[np.int64], width: int, into: bool) -> None: ...
def adam(
    weight: F32,
    gradient: F32,
    momentum: F32,
    velocity: F32,
    velocity_hat: F32 | None,
    rest_1: float | np.float32,
    rest_2: float | np.float32,
    rate: float | np.float32,
    epsilon: float | np.float32,
) -> None: ...
