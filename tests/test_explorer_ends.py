"""Ranks that end at different iterations, or begin with the end: every combination, with every kind of contribution."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from wagma.core.schedule import Schedule
from wagma.proof.exploring import Case, Limits, Reductions, check_python, explore

pytest.importorskip("wagma._proof")

KINDS = ["models", "merge-once", "resident", "gradients", "1 initiator", "2 initiators", "1 initiator of models"]


LONG = [pytest.mark.long, pytest.mark.timeout(300)]
SIZES = [
    *((2, 3, period) for period in (0, 1, 2, 3)),
    *(pytest.param(3, 3, period, marks=LONG) for period in (0, 1, 2, 3)),
    *(pytest.param(4, 2, period, marks=LONG) for period in (0, 2)),
]


def cases(ranks: int, most: int, period: int, kind: str) -> Iterator[Case]:
    """Every group size, and from 0 to `most` iterations of each rank, for some at least one."""
    gradients = kind in ("gradients", "1 initiator", "2 initiators")
    initiators = int(kind[0]) if kind[0].isdecimal() else 0
    if initiators < ranks:
        for iterations, size in product(product(range(most + 1), repeat=ranks), (ranks,) if gradients else range(1, ranks + 1)):
            if max(iterations) > 0:
                schedule = Schedule(ranks, size, period, initiators=initiators, accumulate=gradients)
                yield Case(schedule, iterations, kind == "merge-once", kind == "resident")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "most", "period"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_ends(ranks: int, most: int, period: int, kind: str) -> None:
    """Group sizes and ends change nothing in what a machine is told but its events: an edge of one case is the same in another."""
    known: set[str] = set()
    for case in cases(ranks, most, period, kind):
        found = explore(case, Limits(), Reductions())
        assert (found.result, found.not_reduced) == ("ok", ""), (case, found.violation, found.path)
        check_python(case, set(found.edges) - known)
        known |= set(found.edges)
    assert known or kind == "2 initiators"
