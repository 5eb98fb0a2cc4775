import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

def move(packed: F32, weight: F32, lanes: NDArray[np.int64], width: int, into: bool) -> None: ...
