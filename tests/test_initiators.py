"""Who may activate a version: everybody, or ranks that are drawn for it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("wagma._native")

from wagma import GroupAllreduce
from wagma.errors import InputError
from wagma.real.local import LocalCommunicator, run_local

ITERATIONS = 20


def activated_by(initiators: Any, seed: int) -> tuple[list[set[int]], list[set[int]]]:
    """By version: who activated it, and who might have."""

    def program(comm: LocalCommunicator) -> tuple[list[bool], list[set[int]]]:
        with GroupAllreduce(
            comm, np.zeros(4), 3, "never", initiators=initiators, seed=seed, record=True, timeout_s=20.0
        ) as collective:
            for t in range(ITERATIONS):
                if (t + comm.rank) % 3 == 0:
                    time.sleep(0.003)
                collective.average()
        executions, _ = collective.take_records()
        drawn = [set(collective.schedule.candidates(version)) for version in range(ITERATIONS)]
        return [execution["activator"] for execution in executions], drawn

    found = run_local(3, program)
    assert all(drawn == found[0][1] for _, drawn in found)
    return [{rank for rank, (did, _) in enumerate(found) if did[t]} for t in range(ITERATIONS)], found[0][1]


@pytest.mark.parametrize(("initiators", "number"), [("solo", 3), ("majority", 1), (1, 1), (2, 2), (3, 3)])
def test_only_who_is_drawn_activates(initiators: Any, number: int) -> None:
    activators, drawn = activated_by(initiators, seed=7)
    assert all(len(ranks) == number for ranks in drawn)
    assert all(did and did <= allowed for did, allowed in zip(activators, drawn, strict=True))
    if number < 3:
        assert len({frozenset(ranks) for ranks in drawn}) == 3  # not always the same
        assert activated_by(initiators, seed=8)[1] != drawn


@pytest.mark.parametrize("wrong", [0, 4, -1, True, 1.5, "all", "", None])
def test_what_cannot_be_drawn_is_refused(wrong: Any) -> None:
    told = []

    def program(comm: LocalCommunicator) -> None:
        with pytest.raises(InputError) as caught:
            GroupAllreduce(comm, np.zeros(4), initiators=wrong if comm.rank == 1 else "solo")
        told.append(str(caught.value))

    run_local(3, program)
    assert told == 3 * [f"rank 1: initiators = {wrong!r}: must be 'solo', 'majority' or 1 to 3"]
