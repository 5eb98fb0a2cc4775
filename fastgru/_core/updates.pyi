import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

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
