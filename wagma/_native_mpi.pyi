from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wagma._native import DeviceBuffers, Transport

built_against: str

def library_version() -> str: ...
def cuda_support() -> bool: ...

class MpiTransport(Transport):
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def additions(self) -> int: ...
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
        stamp: int = -1,
    ) -> None: ...
    def leave(self, timeout_s: float) -> None: ...

def connect(
    fortran_handle: int,
    buffers: int,
    buffer_bytes: int,
    timeout_s: float,
    longest_nap_s: float = 0.002,
    device_buffers: DeviceBuffers | None = None,
) -> MpiTransport: ...
