"""Each checker fires, alone, on a trace in which its promise is broken; runs are held against each other; reports."""

from __future__ import annotations

from typing import Any

import mutations  # noqa: F401 - registers them
import pytest
from cases import MUTATIONS, OTHER, SYNC_PERIOD, Case, Mutation, base

from wagma.testing import assert_promises, synthetic_trace
from wagma.trace import Execution
from wagma.validate import PROMISES, report, validate


@pytest.mark.parametrize("options", {str(options): options for _, _, options in MUTATIONS}.values(), ids=str)
def test_what_is_mutated_passes(options: dict[str, Any]) -> None:
    assert_promises(base(**options))


@pytest.mark.parametrize(("promise", "mutation", "options"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_promise_is_reported_alone(promise: int, mutation: Mutation, options: dict[str, Any]) -> None:
    case = Case(**options)
    mutation(case)
    violations = validate(case.trace)
    assert {v.promise for v in violations} == {promise}
    for v in violations:
        assert v.name == PROMISES[promise]
        assert v.source == case.trace.source
        assert "\n" not in v.message
        assert v.message.startswith(f"rank {v.rank}")
        assert v.version is None or f"version {v.version}" in v.message
        assert "expected" in v.message
    with pytest.raises(AssertionError, match=f"promise {promise} "):
        assert_promises(case.trace)


def test_every_checker_has_mutations() -> None:
    assert {promise for promise, _, _ in MUTATIONS} == set(PROMISES)


def fresh_in_company(e: Execution) -> bool:
    """Whether a sum is unique: groups that are wholly late since a sync all add up its result."""
    return e.own_stamp == e.version and len(e.group) > 1


def replaced(case: Case, old: str | None) -> None:
    """Another result, consistently, wherever a run handles it; models that were made from it stay."""
    for e in case.trace.executions:
        e.sum_digest = OTHER if e.sum_digest == old else e.sum_digest
        e.contribution_digest = OTHER if e.contribution_digest == old else e.contribution_digest
    for a in case.trace.iterations:
        a.merged_digest = OTHER if a.merged_digest == old else a.merged_digest


def another_run(kind: str) -> Case:
    """A second run, whole in itself, with one result that differs from that of the first for equal contributions."""
    case = Case()
    match kind:
        case "sum":
            replaced(case, case.pick(fresh_in_company).sum_digest)
        case "mean":
            replaced(case, case.execution[0, SYNC_PERIOD - 1].sum_digest)
        case "model":
            case.join(lambda a: a.fresh is False).model_digest = OTHER
    case.trace.source = "another run"
    assert validate(case.trace) == []
    return case


@pytest.mark.parametrize("kind", ["sum", "mean", "model"])
def test_runs_are_held_against_each_other(kind: str) -> None:
    first, second = base(), another_run(kind).trace
    (violation,) = validate(first, second)
    assert violation.promise == 8
    assert violation.source == second.source
    assert f": {kind} " in violation.message
    assert first.source in violation.message
    second.header.digests = "symbolic"  # digests of another kind say nothing about these
    assert 8 not in {violation.promise for violation in validate(first, second)}


def test_order_of_contributions_matters() -> None:
    """The same models in another association order are not equal contributions: their sums may differ in the last bit."""
    first, second = Case(), Case()
    e = second.pick(fresh_in_company)
    for rank in e.group[:]:
        second.execution[rank, e.version].group.reverse()
        second.execution[rank, e.version].sum_digest = OTHER
        for a in second.merges(second.execution[rank, e.version]):
            a.merged_digest = OTHER
    assert {v.promise for v in validate(first.trace, second.trace)} == {2}


# -- report ----------------------------------------------------------------------------------------------------------------


def verdicts(text: str) -> dict[int, str]:
    """What a report of one trace says of each promise."""
    lines = [line for line in text.splitlines() if line.startswith("  ") and line[2] in "12345678"]
    return {int(line[2]): line.split(PROMISES[int(line[2])])[1].strip() for line in lines}


def test_report_of_a_good_run() -> None:
    trace = base()
    text = report([trace], [])
    assert text.startswith(
        f"{trace.source}: wagma_sgd in sim (synthetic), 175 executions, 175 of 175 iterations of 7 of 7 ranks\n"
    )
    assert verdicts(text) == dict.fromkeys(PROMISES, "held")


def test_report_shows_some_violations_of_the_right_trace() -> None:
    case = Case()
    case.trace.source = "bad run"
    for e in case.trace.executions[:5]:
        e.completed_ns = e.started_ns - 1
    violations = [v for v in validate(case.trace) if v.promise == 7]
    text = report([base(), case.trace], violations)
    good, bad = text.split("bad run: ")
    assert verdicts(good)[7] == "held"
    assert verdicts(bad)[7] == f"violations: {len(violations)}"
    assert [line.strip() for line in bad.splitlines() if line.startswith("      ")] == [
        *(v.message for v in violations[:3]),
        f"and {len(violations) - 3} more",
    ]


def test_report_says_what_was_not_checked() -> None:
    off = Case()
    off.trace.header.digests = "off"
    for e in off.trace.executions:
        e.contribution_digest = e.sum_digest = None
    for a in off.trace.iterations:
        a.published_digest = a.merged_digest = a.model_digest = None
    assert validate(off.trace) == []
    told = verdicts(report([off.trace], []))
    assert told == dict.fromkeys((1, 4, 5, 7), "held") | dict.fromkeys((3, 6, 8), "not checked: digests are off") | {
        2: "held by the groups; sums not checked: digests are off"
    }
    never = synthetic_trace(4, 2, 0, 6, seed=1)
    assert verdicts(report([never], []))[6] == "not checked: no sync in this run"
    ideal = synthetic_trace(3, 1, 1, 4, seed=1, algorithm="ideal")
    assert validate(ideal) == []
    told = verdicts(report([ideal], []))
    assert told[1] == "held"
    assert {told[promise] for promise in range(2, 9)} == {"not checked: no collective in this run"}
