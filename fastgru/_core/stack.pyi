from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastgru._core.gru import PackedGRU

F32 = NDArray[np.float32]

class Stack:
    layers: tuple[PackedGRU, ...]
    def __init__(self, layers: Sequence[PackedGRU], directions: int) -> None: ...
    def run(
        self,
        x: F32,
        h0: F32 | None,
        lengths: NDArray[np.int64] | None,
        batch_first: bool,
        num_threads: int | None,
    ) -> tuple[F32, F32] | None: ...
