"""Group averages whose every bit is known: what each rank publishes is drawn, and wagma.core adds it up again from the ranks' records.

The same program on every transport: ranks as threads (tests/test_collective_bits.py) and as processes (tests/mpi_programs/bits.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma import GroupAllreduce
from wagma.core import averaging
from wagma.core.trees import tree_sum

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One run."""

    group_size: int
    sync_period: int
    dtype: str
    count: int
    iterations: int = 10
    resident: bool = False
    merge_once: bool = False

    @property
    def stored(self) -> str:
        """numpy has no bfloat16: its bits are those of an integer."""
        return "uint16" if self.dtype == "bfloat16" else self.dtype


def rounded(values: Array, dtype: str) -> Array:
    """From the accumulation type to the model's; bfloat16 by the rule itself (the even neighbour, if two are as near)."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(items: Array, dtype: str) -> Array:
    """The same values in the accumulation type."""
    if dtype == "bfloat16":
        return (items.astype(np.uint32) << 16).view(np.float32)
    return items.astype(np.float64 if dtype == "float64" else np.float32)


def published(rank: int, iteration: int, case: Case) -> Array:
    """What a rank publishes in an iteration; -1: begins with."""
    return _drawn(rank, iteration, case.dtype, case.count)


@lru_cache(maxsize=256)
def _drawn(rank: int, iteration: int, dtype: str, count: int) -> Array:
    """Numbers that cancel, of magnitudes far apart: another order of additions shows, and so does a sum that is rounded on its way."""
    draws = np.random.default_rng((rank, iteration + 1, count))
    values = draws.uniform(-1, 1, count) * 2.0 ** draws.integers(-12, 8, count)
    # (1 + 2^-24) - 1 is nothing, (1 - 1) + 2^-24 is not: that shows even in a bfloat16, which has 8 bits.
    values = np.where(draws.random(count) < 0.5, draws.choice([1, -1, 2.0**-24, -0.0], count), values)
    drawn = rounded(values, dtype)
    drawn.flags.writeable = False  # it is the next caller's, too
    return drawn


def same(found: Array, expected: Array) -> bool:
    """Bit by bit: -0.0 is not 0.0."""
    return found.dtype == expected.dtype and np.array_equal(
        found.view(f"u{found.itemsize}"), expected.view(f"u{found.itemsize}")
    )


def run(comm: Any, case: Case, collective_of: Callable[..., Any] = GroupAllreduce, **options: Any) -> tuple[int, int]:
    """Average with some lateness, and check every model that came back; how many came back (fresh, late)."""
    dtype = "bfloat16" if case.dtype == "bfloat16" else None
    first = published(comm.rank, -1, case)
    models, outcomes = [], []
    with collective_of(
        comm, first.copy(), case.group_size, case.sync_period or "never", dtype=dtype, resident=case.resident,
        merge_once=case.merge_once, record=True, timeout_s=30.0, **options,
    ) as collective:  # fmt: skip
        for t in range(case.iterations):
            if (t * 7 + comm.rank * 3) % 5 == 0:
                time.sleep(0.002)
            collective.model[:] = published(comm.rank, t, case)
            outcomes.append(in_turns(comm, collective.average, t == 2) if t in (1, 2) else collective.average())
            models.append(collective.model.copy())
    executions, _ = collective.take_records()
    stamps = comm.allgather([execution["own_stamp"] for execution in executions])
    expect = Expected(collective.schedule, stamps, case)
    for outcome, model in zip(outcomes, models, strict=True):
        assert same(model, expect.model(comm.rank, outcome)), (case, comm.rank, outcome)
    fresh = sum(outcome.fresh for outcome in outcomes)
    return fresh, len(outcomes) - fresh


def in_turns(comm: Any, average: Callable[[], Any], backwards: bool) -> Any:
    """Some are late for certain, however busy the machine: of whoever's turn is first all others of its group, for whom it does not wait.

    In groups of all ranks each is late in one of both directions. Elsewhere lateness is up to the machine.
    """
    outcome = None
    for turn in range(comm.size):
        if comm.rank == (comm.size - 1 - turn if backwards else turn):
            outcome = average()
        comm.allgather(None)
    return outcome


class Expected:
    """What wagma.core makes of the contributions that the ranks' records name."""

    def __init__(self, schedule: Any, stamps: list[list[int]], case: Case) -> None:
        self._schedule, self._stamps, self._case = schedule, stamps, case

    def total(self, rank: int, version: int) -> Array:
        """The sum of the rank's group, in the accumulation type."""
        members = self._schedule.group(rank, version)
        return tree_sum([self._contribution(member, self._stamps[member][version]) for member in members])

    def _contribution(self, rank: int, stamp: int) -> Array:
        if stamp >= 0 and self._schedule.is_sync(stamp):  # since then it has published the mean itself
            return widened(self.mean(stamp), self._case.dtype)
        return widened(published(rank, stamp, self._case), self._case.dtype)

    def mean(self, version: int) -> Array:
        """Of a sync, to which everybody brings the model of that very iteration."""
        parts = [widened(published(rank, version, self._case), self._case.dtype) for rank in range(self._schedule.world_size)]
        return rounded(averaging.mean(parts), self._case.dtype)

    def model(self, rank: int, outcome: Any) -> Array:
        """After a call that came to `outcome`."""
        case, own = self._case, published(rank, outcome.iteration, self._case)
        if outcome.synced:
            return self.mean(outcome.iteration)
        if outcome.merged_version is None:
            return own
        assert outcome.fresh == (self._stamps[rank][outcome.iteration] == outcome.iteration)
        length = len(self._schedule.group(rank, outcome.merged_version))
        assert outcome.group_length == length
        rule = averaging.merge_rule(int(outcome.fresh), length)
        total = self.total(rank, outcome.merged_version)
        return rounded(averaging.merge(total, widened(own, case.dtype), *rule), case.dtype)


def evolve(comm: Any, case: Case, collective_of: Callable[..., Any] = GroupAllreduce, **options: Any) -> Array:
    """Every iteration a sync, the next model made of the last mean: one result, whoever is late and however models travel."""
    dtype = "bfloat16" if case.dtype == "bfloat16" else None
    start = published(comm.rank, -1, case).copy()
    with collective_of(comm, start, case.group_size, 1, dtype=dtype, resident=case.resident, **options) as collective:
        for t in range(case.iterations):
            change = widened(published(comm.rank, t, case), case.dtype)
            collective.model[:] = rounded(widened(collective.model, case.dtype) / 3 + change, case.dtype)
            collective.average()
        return collective.model.copy()


DTYPES = ("float32", "float64", "float16", "bfloat16")
MANY = 70_001  # elements: several chunks and blocks, none of them full
