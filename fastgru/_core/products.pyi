import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

def outer_sum(a: F32, b: F32, num_threads: int | None = None, isa: str | None = None) -> F32: ...
def column_sums(a: F32, isa: str | None = None) -> F32: ...
