"""One bijection of 64-bit words in which every input bit moves every output bit; digests and random draws stand on it.

Draws are counter-based: pure functions of (seed, purpose, rank, iteration), no generator whose state could drift apart between ranks.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
#: An iteration, or a column of them, shape (n, 1), for which whatever is drawn per rank is drawn as a table, (n, ranks).
Iterations = int | npt.NDArray[np.int64]

_U30, _U27, _U31 = np.uint64(30), np.uint64(27), np.uint64(31)
_MASK = 0xFFFFFFFFFFFFFFFF


def mix(x: Words) -> Words:
    """The finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), elementwise, modulo 2^64."""
    x = x ^ (x >> _U30)
    x *= _FIRST
    x ^= x >> _U27
    x *= _SECOND
    x ^= x >> _U31
    return x


def mix_word(x: int) -> int:
    """The same of one word, in Python's integers: faster for a single one."""
    x &= _MASK
    x = (x ^ (x >> 30)) * int(_FIRST) & _MASK
    x = (x ^ (x >> 27)) * int(_SECOND) & _MASK
    return x ^ (x >> 31)


def bits(seed: int, purpose: str, ranks: npt.ArrayLike, iteration: Iterations) -> Words:
    """64 random bits for each rank; shape of `ranks`. Of a column of iterations, shape (n, 1), a row each: (n, ranks)."""
    if isinstance(iteration, np.ndarray):
        start = np.uint64(mix_word((seed ^ zlib.crc32(purpose.encode())) + int(GOLDEN)))
        rows = mix((start ^ iteration.astype(np.uint64)) + GOLDEN) ^ np.asarray(ranks, np.uint64)
        rows += GOLDEN
        return mix(mix(rows))
    state = seed
    for word in (zlib.crc32(purpose.encode()), iteration):
        state = mix_word((state ^ word) + int(GOLDEN))
    ranks = np.asarray(ranks, np.uint64)
    words = np.uint64(state) ^ ranks.reshape(-1)
    words += GOLDEN
    return mix(mix(words)).reshape(ranks.shape)


def below(bound: int, seed: int, purpose: str, ranks: npt.ArrayLike, iteration: int) -> npt.NDArray[np.int64]:
    """Uniform whole numbers from 0 to bound - 1 (bound from 1 to 2^31), one for each rank; off by at most bound / 2^32."""
    words = bits(seed, purpose, ranks, iteration) >> np.uint64(32)
    return ((words * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)
