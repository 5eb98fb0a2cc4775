from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgru._core.gru import PackedGRU

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

def backward(
    packed: PackedGRU,
    recurrent_parts: list[NDArray[Any]],
    input_part: NDArray[Any],
    x: F32,
    h0: F32 | None,
    y: F32,
    cache: F32,
    place: I64 | None,
    step_first: I64 | None,
    dy: F32 | None,
    dh_n: F32 | None,
    biases: bool,
    out: F32 | None = None,
    lengths: I64 | None = None,
    valid: I64 | None = None,
    offsets: I64 | None = None,
    time_major: bool = False,
    reverse: bool = False,
    num_threads: int | None = None,
) -> tuple[F32, F32, F32, F32, F32, F32 | None]: ...
