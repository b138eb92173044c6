"""What nvcc makes of native/device, without a GPU.

Its instructions are looked at, and run by ptx_machine on the same data as wagma.core and the kernel of the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from ptx_kernels import DTYPES, NUMPY, SIZES, Kernels, PartsTable, Source, Target, compiled, variants
from ptx_machine import Memory, PtxError, launch

from wagma.core import averaging, trees

native = pytest.importorskip("wagma._native")

Array = npt.NDArray[Any]

pytestmark = pytest.mark.timeout(300)  # the first of these compiles all kernels

#: No other instruction may compute with floats: one rounding each, denormals kept, nothing contracted, nothing approximate.
ARITHMETIC = {
    *("add.rn.f32", "add.rn.f64", "div.rn.f32", "div.rn.f64"),
    *("cvt.f32.f16", "cvt.rn.f16.f32", "cvt.rn.f32.f64", "cvt.f64.f32", "cvt.rn.f32.s32", "cvt.rn.f64.s32"),
}
#: They only move bits, or look at them.
OTHERS = ("mov.", "ld.", "st.", "selp.", "setp.")


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return compiled()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):  # infinities meet, float16 overflows: meant to
        yield


def wrong_instructions(kernels: Kernels, name: str) -> set[str]:
    operations = {".".join(instruction.name) for instruction in kernels.kernel(name).instructions}
    floats = {o for o in operations if re.search(r"\.(f16|f32|f64|bf16)", o) and not o.startswith(OTHERS)}
    return {o for o in floats if o not in ARITHMETIC} | {o for o in operations if re.search(r"\.(ftz|approx|local|sat)\b", o)}


@pytest.mark.parametrize("name", variants())
def test_instructions(kernels: Kernels, name: str) -> None:
    kernel = kernels.kernel(name)
    assert not wrong_instructions(kernels, name)
    assert ".local" not in kernel.text, "an array in memory"
    operations = [".".join(instruction.name) for instruction in kernel.instructions]
    loads = sum(o.startswith(("ld.global.cg.v4", "ld.global.cg.v2.u64")) for o in operations)
    stores = sum(o.startswith(("st.global.cg.v4", "st.global.cg.v2.u64")) for o in operations)
    # Items of 16 bits beside sums of 32 are 8 bytes where these are 16, and of many members vectors are smaller: kWidth.
    members = re.search(r"reduce_.*_(\d|many)$", name)
    if members and members[1] != "many":
        assert loads >= int(members[1]) * (2 if int(members[1]) < 3 else 1), "all of a thread's loads"
        assert stores >= 1
    elif name.startswith(("publish", "take")):
        assert (stores if name.startswith("publish") else loads) >= 4, "four under way"
    elif name.startswith(("add", "merge")):
        assert loads >= 2
    if name.startswith(("publish", "reduce")):
        fences = [at for at, o in enumerate(operations) if o.startswith(("membar.gl", "fence.acq_rel.gpu", "fence.sc.gpu"))]
        (counted,) = (at for at, o in enumerate(operations) if o.startswith("atom."))
        assert any(at < counted for at in fences), "what was written is there before the block is counted"
        assert any(at > counted for at in fences), "the last block sees what the others have written"


@pytest.mark.parametrize(("name", "operation"), [("fma", "fma.rn.f32"), ("approximate", "div.approx.f32")])
def test_wrong_instructions_are_found(kernels: Kernels, name: str, operation: str) -> None:
    assert wrong_instructions(kernels, f"planted_{name}") == {operation}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("race", "two threads write"),
        ("outside", "outside the memory"),
        ("misaligned", "misaligned"),
        ("exchange", None),
        ("unsynchronised", None),
    ],
)
def test_machine_finds_what_a_gpu_would_trip_over(kernels: Kernels, name: str, message: str | None) -> None:
    data = np.arange(2048, dtype=np.float32)
    parameters = np.array([data.ctypes.data], np.uint64).tobytes()
    if message is not None:
        with pytest.raises(PtxError, match=message):
            launch(kernels.kernel(f"planted_{name}"), parameters, 2, Memory(data), seed=3)
        return
    launch(kernels.kernel(f"planted_{name}"), parameters, 1, Memory(data), seed=3, unit=32)
    assert np.array_equal(data[:256], np.arange(255, -1, -1)) == (name == "exchange"), "only a barrier makes it right"


# --- Data ----------------------------------------------------------------------------------------------


def widened(items: Array, dtype: str) -> Array:
    """The same values in the accumulation type."""
    if dtype == "bfloat16":
        return (items.astype(np.uint32) << 16).view(np.float32)
    return items.view(np.float16).astype(np.float32) if dtype == "float16" else items


def rounded(values: Array, dtype: str) -> Array:
    """Values of the accumulation type as items, by the host's kernel."""
    if dtype in ("float32", "float64"):
        return values
    own = np.zeros(len(values), np.float16 if dtype == "float16" else np.uint16)
    return np.asarray(native.merge(values, own, 0, 1)).view(np.uint16)


def crafted(rng: np.random.Generator, count: int, dtype: str, source: int, n: int) -> Array:
    """What shows another order of additions or another rounding; denormals, -0 from all, infinities. In no element do NaNs meet."""
    values = rng.standard_normal(count) * 2.0 ** rng.integers(-8, 8, count)
    special = np.array([1, 2.0**-24, -1, 0.0, 65504, 2.0**-133, 2.0**-24, 2.0**-14, -(2.0**-15)])
    chosen = rng.integers(0, max(1, count), count // 3)
    values[chosen] = rng.choice(special, chosen.size)
    values[11::83] = -0.0
    values[7::89] = rng.choice([np.inf, -np.inf, 1.0], len(values[7::89]))
    items = rounded(values.astype(np.float64 if dtype == "float64" else np.float32), dtype)
    bits = items.view(f"u{items.itemsize}")
    top = {"float32": 0x7F800000, "float64": 0x7FF << 52, "float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
    bits[5 + 97 * source :: 97 * n] = top | rng.integers(1, 100, len(bits[5 + 97 * source :: 97 * n]))  # NaNs that signal
    bits[8 + 97 * source :: 97 * n] = top | 1 << (8 * items.itemsize - 1) | top >> 1  # and of the other sign
    return items


def placed(items: Array, skip: int) -> Array:
    """The same, `skip` items behind an address that 64 divides."""
    room = np.full(items.nbytes + skip * items.itemsize + 64, 0x5A, np.uint8)
    begin = -room.ctypes.data % 64 + skip * items.itemsize
    room[begin : begin + items.nbytes] = items.view(np.uint8)
    return room[begin : begin + items.nbytes].view(items.dtype)


def native_items(items: Array, dtype: str) -> Array:
    return items.view(np.float16) if dtype == "float16" else items


def same_bits(got: Array, expected: Array) -> bool:
    return got.tobytes() == expected.tobytes()


def same_values(got: Array, expected: Array) -> bool:
    """Equal bits, or both NaN."""
    both_nan = np.isnan(got) & np.isnan(expected)
    return bool((both_nan | (got.view(f"u{got.itemsize}") == expected.view(f"u{got.itemsize}"))).all())


# --- Reductions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 57])
def test_reduce(kernels: Kernels, dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    begin, count = (256, 4099) if n < 5 else (3, 1301)  # several tiles
    shifts = [
        3 if n in (3, 9) else 0 if n != 5 else s % 4 for s in range(n)
    ]  # as far behind a boundary as each other; each elsewhere
    sources = [placed(crafted(rng, begin + count, dtype, s, n), shifts[s]) for s in range(n)]
    null = [n > 2 and s % 3 == 1 for s in range(n)]
    sum_type = np.float64 if dtype == "float64" else np.float32
    divisors = [n, 1, n, 7]
    targets = [placed(np.zeros(begin + count, sum_type if d == 1 else NUMPY[dtype]), shifts[0]) for d in divisors]
    stamps = np.full(n, 40)
    if n > 4:
        stamps[3] = stamps[4] = 39
    target_stamps, finding, version = np.full(4, -77), np.array([-1, 0]), np.array([12])
    given = (Source * n)(
        *[
            Source(None if z else a.ctypes.data, stamps[s:].ctypes.data, 40)
            for s, (a, z) in enumerate(zip(sources, null, strict=True))
        ]
    )
    wanted = (Target * 4)(*[Target(a.ctypes.data, target_stamps[j:].ctypes.data, divisors[j]) for j, a in enumerate(targets)])
    memory = [*sources, *targets, stamps, target_stamps, finding]
    stamp = version if n != 4 else None
    arguments = (DTYPES.index(dtype), begin, count, n, given, 4, wanted, stamp, finding)
    names = kernels.run("reduce", *arguments, memory=memory, seed=n, unit=32 if n < 3 and dtype == "float32" else 256)
    assert names == [f"reduce_{dtype}_{n if n in (1, 2, 3, 4, 8) else 'many'}"]
    slices = [None if z else native_items(a[begin:], dtype) for a, z in zip(sources, null, strict=True)]
    for target, expected, divisor in zip(targets, native.reduce(slices, divisors), divisors, strict=True):
        assert same_bits(target[begin:], expected), divisor
        assert not target[:begin].any()
    leaves = [np.zeros(count, sum_type) if z else widened(a[begin:], dtype) for a, z in zip(sources, null, strict=True)]
    assert same_values(targets[1][begin:], trees.tree_sum(leaves))
    assert (target_stamps == (-77 if stamp is None else 12)).all()
    if stamp is not None:
        last = max(kernels.memory.last_store(target) for target in targets)
        assert kernels.memory.last_store(target_stamps) > last, "stamps come last"
    assert finding[1] == (39 if n > 4 else 0)
    assert np.int32(finding[0] & 0xFFFFFFFF) == (3 if n > 4 else -1), "the first wrong one"


# --- Parts ---------------------------------------------------------------------------------------------


class Model:
    """Tensors of these sizes, the model's dtype or those that it can hold in turn; some have no data."""

    def __init__(self, rng: np.random.Generator, dtype: str, sizes: Sequence[int], mixed: bool, shifted: bool) -> None:
        self.dtype, self.ends, self.count = dtype, np.cumsum(sizes).astype(np.uint64), sum(sizes)
        able = [d for d in DTYPES if d == dtype or dtype == "float64" or d != "float64"] if mixed else [dtype]
        self.dtypes = [able[p % len(able)] for p in range(len(sizes))]
        # A part's NaNs are the own ones of a merge, which meet none of the total's.
        self.parts = [
            placed(crafted(rng, self.count, d, 1, 2)[int(end) - size : int(end)], p % 3 if shifted else 0)
            for p, (d, size, end) in enumerate(zip(self.dtypes, sizes, self.ends, strict=True))
        ]
        self.absent = [p % 7 == 6 for p in range(len(sizes))]
        self.kinds = np.array([DTYPES.index(d) for d in self.dtypes], np.uint8)
        self.data = np.array([0 if none else a.ctypes.data for a, none in zip(self.parts, self.absent, strict=True)], np.uint64)
        self.table = PartsTable(self.ends.ctypes.data, self.data.ctypes.data, self.kinds.ctypes.data, len(sizes), not mixed)
        self.memory: list[Array] = [self.ends, self.data, self.kinds, *self.parts]
        self.before = [part.copy() for part in self.parts]

    def whole(self) -> Array:
        """All of it as the model holds it."""
        kind = np.dtype(NUMPY[self.dtype])
        return np.concatenate([
            np.zeros(len(a), kind) if none else a if d == self.dtype else native.tree_sum([native_items(a, d)]).astype(kind)
            for a, d, none in zip(self.before, self.dtypes, self.absent, strict=True)
        ])  # fmt: skip

    def became(self, model: Array) -> bool:
        """Whether the parts are this model; they are as before then."""
        good = True
        for part, before, dtype, end, none in zip(self.parts, self.before, self.dtypes, self.ends, self.absent, strict=True):
            wanted = model[int(end) - len(part) : int(end)]
            if dtype != self.dtype:
                wanted = rounded(wanted.astype(np.float32), dtype)
            good &= same_bits(part, before if none else wanted)
            part[:] = before
        return good


@pytest.mark.parametrize(
    ("dtype", "mixed"), [(dtype, mixed) for dtype in DTYPES for mixed in (False, True)[: SIZES[dtype] // 2]]
)
@pytest.mark.parametrize("sizes", [(9001,), (1, 0, 7, 1501, 3, 3, 20, 5, 299), (2,) * 150], ids=["one", "few", "many"])
def test_parts(kernels: Kernels, dtype: str, mixed: bool, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(sizes))
    model = Model(rng, dtype, sizes, mixed, shifted=len(sizes) > 1)
    begin, count, index = (0, model.count, DTYPES.index(dtype)) if mixed else (1, model.count - 2, DTYPES.index(dtype))
    own = model.whole()
    where = slice(begin, begin + count)

    def run(call: str, array: Array, *arguments: object) -> None:
        names = kernels.run(
            call, index, model.table, begin, count, array, *arguments, memory=[*model.memory, array, stamp], seed=7
        )
        assert names == [f"{call}_{dtype}{'_mixed' if mixed else ''}"]

    stamp = np.array([-77])
    published = placed(np.zeros(count, own.dtype), 1)
    run("publish", published, stamp, 12)
    assert same_bits(published, own[where])
    assert stamp[0] == 12
    assert kernels.memory.last_store(stamp) > kernels.memory.last_store(published), "the stamp comes last"
    assert all(same_bits(part, before) for part, before in zip(model.parts, model.before, strict=True))
    items = placed(crafted(rng, model.count, dtype, 0, 2)[where], 1)
    taken, added = own.copy(), own.copy()
    taken[where] = items
    run("take", items)
    assert model.became(taken)
    added[where] = native.add(native_items(items, dtype), native_items(own[where].copy(), dtype)).view(own.dtype)
    run("add", items)
    assert model.became(added)
    if dtype != "bfloat16":
        core = averaging.add(native_items(items, dtype), native_items(own[where].copy(), dtype))
        assert same_values(native_items(added[where], dtype), core)
    total = placed(crafted(rng, model.count, "float64" if dtype == "float64" else "float32", 0, 2)[where], 1)
    for own_weight, divisor in ((0, 3), (1, 5)):
        merged = own.copy()
        merged[where] = native.merge(total, native_items(own[where].copy(), dtype), own_weight, divisor).view(own.dtype)
        run("merge", total, own_weight, divisor)
        assert model.became(merged)
        if dtype != "bfloat16":
            core = averaging.merge(total, native_items(own[where].copy(), dtype), own_weight, divisor)
            assert same_values(native_items(merged[where], dtype), core)


# --- Plain arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "over the total"])
def test_merge_into(kernels: Kernels, dtype: str, in_place: bool) -> None:
    rng = np.random.default_rng(5)
    sum_dtype = "float64" if dtype == "float64" else "float32"
    count = 9001 if in_place else 1033
    for skip, with_own in ((0, True), (1, False)):
        own, total = placed(crafted(rng, count, dtype, 0, 2), skip), placed(crafted(rng, count, sum_dtype, 1, 2), skip)
        expected = native.merge(total, native_items(own, dtype), int(with_own), 3)
        destination = total.view(NUMPY[dtype])[:count] if in_place else placed(np.zeros(count, NUMPY[dtype]), skip)
        memory = [own, total] if in_place else [own, total, destination]
        given = own if with_own else None
        names = kernels.run(
            "merge_into",
            DTYPES.index(dtype),
            destination,
            given,
            total,
            3,
            count,
            memory=memory,
            seed=2,
            unit=32 if in_place and dtype == "float16" else 256,
        )
        assert names == [f"merge_into_{dtype}"] * (3 if in_place and SIZES[dtype] == 2 else 1)
        assert same_bits(destination, expected)


def test_write_stamp(kernels: Kernels) -> None:
    stamp = np.array([0, 0])
    assert kernels.run("write_stamp", stamp, 1 << 40, memory=[stamp]) == ["write_stamp"]
    assert stamp.tolist() == [1 << 40, 0]
