from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wagma._native import Transport

built_against: str

def library_version() -> str: ...

class MpiTransport(Transport):
    @property
    def scratch_bytes(self) -> int: ...
    def buffer(self, index: int) -> npt.NDArray[np.uint8]: ...
    def exchange(
        self,
        version: int,
        members: Sequence[int],
        contribution: int,
        target: int,
        count: int,
        dtype: str,
        divisor: int,
        timeout_s: float,
    ) -> None: ...
    def leave(self, timeout_s: float) -> None: ...

def connect(
    fortran_handle: int, buffers: int, buffer_bytes: int, timeout_s: float, longest_nap_s: float = 0.002
) -> MpiTransport: ...
