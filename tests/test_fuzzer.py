"""Larger cases under hostile timing keep the promises; a failing seed can be replayed; defects are found."""

from __future__ import annotations

import native_programs
import pytest


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
        ("no-retract", ("rank 3: arrive(1) is not allowed: the gradient of version 0 has to be retracted",)),
        ("loses-gradients", ("gradients",)),
        ("not-taken", ("gradients",)),
        ("keeps-model", ("gradients",)),
        ("no-last-model", ("wholeness",)),
        ("one-buffer-less", ("rank 0: no free buffer among 4",)),
        ("greedy-live", ("rank 2: no free buffer among 4",)),
        ("merging-is-free", ("wholeness",)),
        ("live-is-published", ("wholeness", "completion")),
        ("target-is-live", ("wholeness",)),
        ("always-in-place", ("wholeness",)),
    ],
)
def test_mutations_are_caught_and_replayed(mutation: str, violations: tuple[str, ...]) -> None:
    status, found = native_programs.run("fuzzer", "--mutate", mutation)
    assert (status, found["result"]) == (1, "violation")
    assert found["violation"].startswith(violations)
    status, again = native_programs.run("fuzzer", "--mutate", mutation, "--seed", found["seed"])
    assert (status, again["runs"]) == (1, 1)
    assert [again[key] for key in ("seed", "violation", "case")] == [found[key] for key in ("seed", "violation", "case")]


def test_second_activation_matters_for_seven_ranks() -> None:
    """With activators 0 and 4 of seven, dropping a second activation strands a rank; handling it never does."""
    status, result = native_programs.run("fuzzer", "--two-activators")
    assert status == 0, result
    status, result = native_programs.run("fuzzer", "--two-activators", "--mutate", "drop-second-activation")
    assert status == 1
    assert result["violation"].startswith("progress")
