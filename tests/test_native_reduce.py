"""The kernel's reductions, merges and additions give the bits of wagma.core, in every dtype and for every number of sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wagma.core import averaging, trees

native = pytest.importorskip("wagma._native")

Array = npt.NDArray[Any]
DTYPES = ("float32", "float64", "float16", "bfloat16")


def rounded(values: Array, dtype: str) -> Array:
    """float32 to bfloat16, as its bits, by torch: a rounding that shares no line with the kernel's."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    torch = pytest.importorskip("torch")
    return np.asarray(torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16).view(torch.uint16).numpy())


def widened(items: Array, dtype: str) -> Array:
    """The same values in the accumulation type."""
    if dtype == "bfloat16":
        return (items.astype(np.uint32) << 16).view(np.float32)
    return items.astype(trees.accumulation_dtype(items.dtype))


def same(got: Array, expected: Array, dtype: str) -> bool:
    """Equal bits, or both NaN: nobody promises a NaN's payload and sign."""
    both_nan = np.isnan(widened(got, dtype)) & np.isnan(widened(expected, dtype))
    bits = f"u{got.itemsize}"
    return got.dtype == expected.dtype and bool((both_nan | (got.view(bits) == expected.view(bits))).all())


def crafted(rng: np.random.Generator, count: int, dtype: str) -> Array:
    """Values that expose the order of additions and roundings: 1, 2^-24, -1, denormals, signed zeros, infinities, NaN."""
    values = rng.standard_normal(count) * 2.0 ** rng.integers(-24, 9, count)
    special = np.array([1, 2.0**-24, -1, -0.0, 0.0, 65504, 2.0**-133, np.inf, -np.inf, np.nan])
    weights = np.array([4, 4, 4, 4, 2, 2, 4, 0.2, 0.2, 0.2])
    chosen = rng.integers(0, max(1, count), count // 3)
    values[chosen] = rng.choice(special, chosen.size, p=weights / weights.sum())
    return rounded(values, dtype)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with np.errstate(all="ignore"):  # infinities meet, float16 overflows: meant to
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streaming"])
def test_reductions(dtype: str, streaming: bool) -> None:
    rng = np.random.default_rng(11)
    for n in range(1, 41):
        count = (1, 333, 1055, 2049)[n % 4]
        items = [crafted(rng, count, dtype) for _ in range(n)]
        absent = set(range(1, n, 3)) if n % 2 else set()
        contributions = [None if i in absent else item for i, item in enumerate(items)]
        values = averaging.with_zeros([None if c is None else widened(c, dtype) for c in contributions])
        total = trees.tree_sum(values)
        divisors = (1, n + 1, 1, n + 1) if n % 3 else (2, 1, 7, 3)
        for divisor, got in zip(divisors, native.reduce(contributions, divisors, streaming), strict=True):
            if divisor == 1:
                assert same(got, total, str(total.dtype)), (n, divisor)
            else:
                assert same(got, rounded(total / total.dtype.type(divisor), dtype), dtype), (n, divisor)
        if dtype != "bfloat16" and not absent and n > 1:
            assert same(native.reduce(items, [n])[0], averaging.mean(items), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_null_contributions_are_zeros(dtype: str) -> None:
    minus = rounded(np.full(5, -0.0), dtype)
    assert not np.signbit(widened(native.reduce([None, minus], [2])[0], dtype)).any()
    assert np.signbit(native.reduce([minus, minus], [1])[0]).all()
    with pytest.raises(ValueError, match="no arrays"):
        native.reduce([None, None], [1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 49])
def test_merges(dtype: str, divisor: int) -> None:
    rng = np.random.default_rng(12)
    own = crafted(rng, 3001, dtype)
    values = widened(own, dtype)
    total = trees.tree_sum([widened(crafted(rng, 3001, dtype), dtype) for _ in range(3)])
    for own_weight in (0, 1):
        for given in (total, None):
            expected = rounded(averaging.merge(given, values, own_weight, divisor), dtype)
            assert same(native.merge(given, own, own_weight, divisor), expected, dtype), own_weight
    if dtype != "bfloat16":
        assert same(native.merge(total, own, 1, divisor), averaging.merge(total, own, 1, divisor), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_additions(dtype: str) -> None:
    rng = np.random.default_rng(13)
    taken, own = crafted(rng, 2051, dtype), crafted(rng, 2051, dtype)
    expected = rounded(averaging.add(widened(taken, dtype), widened(own, dtype)), dtype)
    assert same(native.add(taken, own), expected, dtype)
    if dtype != "bfloat16":
        assert same(native.add(taken, own), averaging.add(taken, own), dtype)


def test_bfloat16_rounds_like_torch() -> None:
    """Around every bfloat16: the numbers below, at and above the middle to its neighbour."""
    bits = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    near = (bits + np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).ravel().view(np.float32)
    zeros = np.zeros(near.size, np.uint16)
    assert same(native.merge(near, zeros, 0, 1), rounded(near, "bfloat16"), "bfloat16")


def test_every_float16() -> None:
    items = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert same(native.tree_sum([items]), items.astype(np.float32), "float32")
    near = items.astype(np.float32).view(np.uint32)[:, None] + np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF], np.uint32)
    values = near.ravel().view(np.float32)
    assert same(native.merge(values, np.zeros(values.size, np.float16), 0, 1), values.astype(np.float16), "float16")


def test_a_weight_that_the_kernel_does_not_know_is_refused() -> None:
    ones = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="merge with own_weight 2: must be 0 or 1"):
        native.merge(ones, ones, 2, 4)
    assert same(native.merge(None, ones, 2, 2), ones, "float32")  # nothing to merge: the model as it is


def test_bad_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="equal in size and dtype"):
        native.reduce([np.zeros(3, np.float32), np.zeros(3)], [1])
    with pytest.raises(ValueError, match="equal in size and dtype"):
        native.merge(np.zeros(3, np.float16), np.zeros(3, np.float16), 1, 2)  # a total is in the accumulation type
    with pytest.raises(TypeError, match="float16 or uint16"):
        native.tree_sum([np.zeros(3, np.int32)])
    with pytest.raises(ValueError, match="1 or more"):
        native.reduce([np.zeros(3)], [0])
