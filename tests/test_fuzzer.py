"""Larger cases under hostile timing keep the promises; a failing seed can be replayed; defects are found and shrunk. See test_fuzz.py for
the command and the simulator's part."""

from __future__ import annotations

import re
from typing import Any

import native_programs
import pytest

MOST_SEEDS, MOST_EVENTS = 50, 12  # until a defect is found, and of the shrunk trace


@pytest.mark.slow
def test_promises_hold() -> None:
    status, result = native_programs.run("fuzzer", "--seeds", "0:10000")
    assert (status, result["result"], result["runs"]) == (0, "ok", 10000), result
    # The schedules are as hostile as they are meant to be: else the run proves little.
    assert result["late"] > 0.2
    assert result["passive"] > 0.2
    assert result["quiet"] > 10 * result["runs"]
    assert result["nulls"] > 0.1
    assert result["sums"] > 0.01


@pytest.mark.long
def test_promises_hold_for_a_million_seeds() -> None:
    status, result = native_programs.run("fuzzer", "--seeds", "1000000:2000000")
    assert (status, result["runs"]) == (0, 1000000), result


def fuzz(first: int, seeds: int, mutation: str = "none", progress: Any = None) -> dict[str, Any]:
    proof = pytest.importorskip("wagma._proof")
    return proof.fuzz(first, seeds, mutation, progress)  # type: ignore[no-any-return]


def test_timing_is_hostile() -> None:
    """Of each kind that the documentation names there is enough to find something."""
    counts = fuzz(0, 2000)["counts"]
    assert counts["overtaken"] > 0.02 * counts["activations"]
    assert counts["batched"] > 0.03 * counts["events"]
    assert counts["wide"] > 0.75 * 2000
    assert counts["far"] > 100
    assert counts["behind"] >= 20


def test_a_seed_is_the_same_run_in_every_build() -> None:
    """The program and the Python module are compiled apart, with other options: all events and outputs are the same bytes."""
    status, result = native_programs.run("fuzzer", "--seeds", "500:1500")
    assert status == 0, result
    assert result["digest"] == fuzz(500, 1000)["digest"]
    assert result["digest"] != fuzz(501, 1000)["digest"]


def test_ranges_add_up() -> None:
    """A seed is the same run whatever ran before it."""
    whole, parts = fuzz(0, 300), [fuzz(0, 100), fuzz(100, 200)]
    for name in ("events", "late", "passive", "overtaken"):
        assert whole["counts"][name] == sum(part["counts"][name] for part in parts)


@pytest.mark.parametrize(
    ("mutation", "violations"),
    [
        ("drop-second-activation", ("progress", "deadlock")),
        ("no-forward", ("progress", "deadlock")),
        ("single-buffer", ("wholeness",)),
        ("early-read-done", ("wholeness",)),
        ("no-fence", ("fence", "wholeness", "agreement")),
        ("anybody-activates", ("initiators",)),
        ("no-solo", ("progress", "deadlock")),
        ("no-retract", ("rank N: arrive(N) is not allowed: the gradient of version N has to be retracted",)),
        ("loses-gradients", ("gradients",)),
        ("not-taken", ("gradients",)),
        ("keeps-model", ("gradients",)),
        ("no-last-model", ("wholeness",)),
        ("one-buffer-less", ("rank N: no free buffer among N",)),
        ("greedy-live", ("rank N: no free buffer among N",)),
        ("merging-is-free", ("wholeness",)),
        ("live-is-published", ("wholeness", "completion")),
        ("target-is-live", ("wholeness",)),
        ("always-in-place", ("wholeness",)),
    ],
)
def test_mutations_are_caught_shrunk_and_replayed(mutation: str, violations: tuple[str, ...]) -> None:
    found = fuzz(0, MOST_SEEDS, mutation)
    failure = found["failure"]
    assert failure is not None, found
    assert re.sub(r"\d+", "N", failure["violation"]).startswith(violations)
    # Shrunk: the same kind of violation, hence the same words up to numbers, and few events.
    kind, shrunk = (re.sub(r"\d+", "N", failure[name]).partition(":")[0] for name in ("violation", "shrunk_violation"))
    assert kind == shrunk
    assert len(failure["trace"]) <= min(MOST_EVENTS, failure["events"])
    again = fuzz(failure["seed"], 1, mutation)
    assert again["failure"] == failure


def test_a_shrunk_trace_shows_the_defect() -> None:
    """Dropped second activations need five ranks, one arrival, and one activation that comes last: the trace is that and nothing else."""
    failure = fuzz(0, MOST_SEEDS, "drop-second-activation")["failure"]
    assert failure["events"] > 500
    assert failure["shrunk_case"].startswith("ranks 5, ")
    *before, last = failure["trace"]
    assert len(before) == 4
    rank = last.split("rank ")[1].split(":")[0]
    assert last.endswith(f"rank {rank}: activation 0 over 0"), "it leads to nothing, though it should be forwarded"
    assert any(f"rank {rank}: activation 0 over 2" in line for line in before), "since the rank knew of the version"


def test_runs_that_differ_are_found() -> None:
    """Planted: what one run leaves behind changes the next. Nothing else is wrong with either, so only the comparison can see it."""
    failure = fuzz(0, MOST_SEEDS, "unseeded")["failure"]
    assert failure is not None
    assert failure["violation"].startswith("determinism: two runs of one seed differ, first in event ")
    one, other = failure["violation"].split(": ", 2)[2].split(", then ")
    assert one != other
    assert len(failure["trace"]) <= MOST_EVENTS


def test_what_the_callback_raises_ends_it() -> None:
    class Enough(Exception):
        pass

    def stop(done: int) -> None:
        if done > 1:
            raise Enough

    with pytest.raises(Enough):
        fuzz(0, 10**9, progress=stop)


def test_second_activation_matters_for_seven_ranks() -> None:
    """With activators 0 and 4 of seven, dropping a second activation strands a rank; handling it never does."""
    status, result = native_programs.run("fuzzer", "--two-activators")
    assert status == 0, result
    status, result = native_programs.run("fuzzer", "--two-activators", "--mutate", "drop-second-activation", "--as-found")
    assert status == 1
    assert result["violation"].startswith("progress")
    assert result["case"].startswith("ranks 7, ")
