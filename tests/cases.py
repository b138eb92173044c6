"""A passing trace, what mutations of it look for, and the list in which they register."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

from wagma.core.protocol import NONE
from wagma.testing import synthetic_trace
from wagma.trace import Execution, Iteration, Trace

RANKS, GROUP_SIZE, SYNC_PERIOD, ITERATIONS = 7, 3, 5, 25
OTHER = "0123456789abcdef"  # a digest that no trace has


@functools.cache
def base(group_size: int = GROUP_SIZE, **options: Any) -> Trace:
    trace = synthetic_trace(RANKS, group_size, SYNC_PERIOD, ITERATIONS, seed=3, **options)
    # Room between the places of the causal order, for mutations that move a record.
    for e in trace.executions:
        e.sequence *= 10
    for a in trace.iterations:
        a.sequence *= 10
    return trace


class Case:
    """A copy of a passing trace, with what mutations look for."""

    def __init__(self, **options: Any) -> None:
        self.trace = copy.deepcopy(base(**options))
        self.schedule = self.trace.schedule
        self.execution = {(e.rank, e.version): e for e in self.trace.executions}
        self.iteration = {(a.rank, a.iteration): a for a in self.trace.iterations}

    def pick(self, wanted: Callable[[Execution], bool]) -> Execution:
        """The first execution of a group version, of one that is not in the first sync period, that is `wanted`."""
        candidates = (e for e in self.trace.executions if not self.schedule.is_sync(e.version) and e.version > SYNC_PERIOD)
        return next(filter(wanted, candidates))

    def join(self, wanted: Callable[[Iteration], bool]) -> Iteration:
        """The same of the iterations."""
        candidates = (a for a in self.trace.iterations if not self.schedule.is_sync(a.iteration) and a.iteration > SYNC_PERIOD)
        return next(filter(wanted, candidates))

    def own(self, a: Iteration) -> Execution:
        """This rank's execution of the iteration's version."""
        return self.execution[a.rank, a.iteration]

    def merged(self, a: Iteration, further: int = 0) -> Execution | None:
        """The execution that an iteration merged, or one `further` on."""
        return self.execution.get((a.rank, NONE if a.merged_version is None else a.merged_version + further))

    def merges(self, e: Execution) -> Iterator[Iteration]:
        """The iterations that merged the result of an execution."""
        return (a for a in self.trace.iterations if (a.rank, a.merged_version) == (e.rank, e.version))

    def remerge(self, a: Iteration, version: int) -> None:
        """Let an iteration merge another version, wholly."""
        a.merged_version, a.merged_digest = version, self.execution[a.rank, version].sum_digest

    def late_join(self, e: Execution) -> bool:
        """Whether the rank joined that version, and late."""
        a = self.iteration.get((e.rank, e.version))
        return a is not None and a.fresh is False

    def contribute(self, e: Execution, iteration: int) -> None:
        """Let an execution contribute what its rank published in another iteration."""
        e.own_stamp, e.contribution_digest = iteration, self.iteration[e.rank, iteration].published_digest


Mutation = Callable[[Case], object]
MUTATIONS: list[tuple[int, Mutation, dict[str, Any]]] = []


def breaks(promise: int, **options: Any) -> Callable[[Mutation], Mutation]:
    def add(mutation: Mutation) -> Mutation:
        MUTATIONS.append((promise, mutation, options))
        return mutation

    return add
