from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

class PackedDense:
    isa: str
    output_size: int

    def __init__(self, weight: F32, bias: F32 | None, isa: str | None) -> None: ...
    @property
    def input_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def run(self, x: F32, y: F32, num_threads: int | None = None) -> None: ...

def activate(x: F32, y: F32, activation: Any, isa: str | None = None) -> None: ...
