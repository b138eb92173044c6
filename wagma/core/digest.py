"""A 64-bit digest of an array's bytes, equal in Python and C++ (native/include/wagma/digest.hpp), cheap enough for every iteration.

Not cryptographic: it tells torn, stale or differently rounded models apart, it does not resist an adversary. Each 64-bit
word is mixed with its position, then all are added, so that numpy and a C++ compiler can both vectorise it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.core.mixing import GOLDEN, mix

_CHUNK = 1 << 20  # words at a time: the temporaries stay in cache


def digest(array: npt.NDArray[Any]) -> str:
    """16 hexadecimal digits for the bytes of a C-contiguous array of any dtype; the byte length is part of it."""
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    padded = raw if raw.size % 8 == 0 else np.concatenate([raw, np.zeros(-raw.size % 8, np.uint8)])
    words = padded.view("<u8")
    total = mix(np.array([raw.size], np.uint64))
    for start in range(0, words.size, _CHUNK):
        chunk = words[start : start + _CHUNK]
        place = np.arange(start + 1, start + 1 + chunk.size, dtype=np.uint64)
        total += mix(chunk + place * GOLDEN).sum(dtype=np.uint64)
    return f"{int(total[0]):016x}"
