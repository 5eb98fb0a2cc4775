from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgru._core.gru import PackedGRU

F32 = NDArray[np.float32]

class Stream:
    state: F32
    batch_size: int
    def __init__(
        self,
        layers: Sequence[PackedGRU],
        batch_size: int,
        convert: Callable[[Any], F32],
        num_threads: int | None = None,
    ) -> None: ...
    def step(self, x: Any) -> F32: ...
    def reset(self, rows: Any = None) -> None: ...
