from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

class PackedGRU:
    isa: str
    activation: tuple[str, float, float]
    recurrent_activation: tuple[str, float, float]
    update_gate: str
    has_bias_ih: bool
    has_bias_hh: bool

    def __init__(
        self,
        weight_ih: F32,
        weight_hh: F32,
        bias_ih: F32 | None,
        bias_hh: F32 | None,
        reset_after: bool,
        activation: Any,
        recurrent_activation: Any,
        isa: str | None,
        update_gate: str = "old",
    ) -> None: ...
    def weights(self) -> tuple[F32, F32]: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def reset_after(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    def run(
        self,
        x: F32,
        h0: F32 | None,
        y: F32 | None,
        h_n: F32,
        lengths: I64 | None = None,
        valid: I64 | None = None,
        offsets: I64 | None = None,
        time_major: bool = False,
        reverse: bool = False,
        repeat: bool = False,
        num_threads: int | None = None,
        cache: F32 | None = None,
        place: I64 | None = None,
        step_first: I64 | None = None,
    ) -> None: ...
