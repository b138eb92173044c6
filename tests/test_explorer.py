"""Every reachable state of small cases keeps the promises, and the Python machine is the one that was explored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import native_programs
import pytest

from wagma.core.protocol import NONE, Complete, Machine, Output, Retracted, Start
from wagma.core.schedule import Schedule
from wagma.proof.exploring import Case as Explored
from wagma.proof.exploring import MachinesDiffer, check_python, parse_edge


class Case(NamedTuple):
    ranks: int
    group_size: int
    sync_period: int
    iterations: str
    options: tuple[str, ...] = ()

    def arguments(self) -> list[object]:
        named = ("--ranks", self.ranks, "--group-size", self.group_size, "--sync-period", self.sync_period)
        return [*named, "--iterations", self.iterations, *self.options]

    def explored(self) -> Explored:
        schedule = Schedule(
            self.ranks, self.group_size, self.sync_period, "--no-groups" not in self.options,
            initiators=self.number("--initiators"), seed=self.number("--seed"), accumulate="--accumulate" in self.options,
        )  # fmt: skip
        return Explored(schedule, (), "--merge-once" in self.options, "--resident" in self.options)

    def number(self, option: str) -> int:
        return int(self.options[self.options.index(option) + 1]) if option in self.options else 0

    def __str__(self) -> str:
        return " ".join(map(str, self.arguments()))


def resident(ranks: int, group_size: int, sync_period: int, iterations: str, *options: str) -> Case:
    return Case(ranks, group_size, sync_period, iterations, ("--resident", *options))


def eager(ranks: int, sync_period: int, iterations: str, *options: str, initiators: int = 0, seed: int = 0) -> Case:
    chosen = ("--initiators", str(initiators), "--seed", str(seed)) if initiators else ()
    return Case(ranks, ranks, sync_period, iterations, ("--accumulate", *chosen, *options))


SMALL = [
    # Up to three ranks, every group size, three versions with a sync at the end or in the middle.
    *(Case(p, s, t, "3") for p in (1, 2, 3) for s in range(1, p + 1) for t in (3, 2)),
    *(Case(2, s, t, "3", ("--exact",)) for s in (1, 2) for t in (3, 2)),
    Case(2, 2, 3, "3", ("--exact", "--merge-once")),
    Case(3, 2, 3, "3", ("--merge-once",)),
    Case(3, 2, 3, "3,1,2"),
    Case(3, 3, 2, "0,3,1", ("--merge-once",)),
    Case(3, 2, 0, "2,3,0"),
    Case(3, 3, 1, "3"),
    Case(3, 3, 2, "2", ("--no-groups",)),
    Case(2, 2, 3, "5"),
    # Four versions, with a sync in the middle and at the end; four ranks too.
    *(Case(3, s, t, "4") for s in (1, 2, 3) for t in (2, 4)),
    *(Case(4, s, 3, "3") for s in (1, 2, 3, 4)),
    Case(5, 5, 2, "2"),
    Case(4, 2, 2, "3,1,2,0"),
    # The application's model lives in the buffers.
    *(resident(p, s, t, "3") for p in (1, 2, 3) for s in range(1, p + 1) for t in (3, 2)),
    *(resident(2, s, 3, n, *once) for s in (1, 2) for n in ("5", "6,2", "1,6") for once in ((), ("--merge-once",))),
    *(resident(3, 2, t, "3,1,2", "--merge-once") for t in (0, 2, 3)),
    resident(2, 2, 3, "4", "--exact"),
    resident(2, 2, 2, "3", "--exact", "--merge-once"),
    resident(3, 3, 2, "2", "--no-groups"),
    resident(4, 2, 2, "2"),
    resident(4, 2, 2, "3,1,2,0"),
    # Gradients that accumulate, any rank activates: a sync at the end, in the middle, never; ends that differ.
    *(eager(p, t, "3") for p in (1, 2, 3) for t in (3, 2)),
    *(eager(2, t, n) for t, n in ((0, "5"), (3, "7"), (3, "5,2"), (3, "1,7"), (2, "4,1"), (1, "2"))),
    eager(3, 3, "3", "--merge-once"),
    *(eager(3, t, n) for t, n in ((2, "3,2,0"), (3, "4,1,1"), (0, "2,3,0"))),
    eager(2, 3, "4", "--exact"),
    eager(4, 3, "3"),
    # Initiators, of models too: the candidates of a version may be the first, the last or a rank that has closed.
    *(eager(2, 3, n, initiators=1, seed=s) for s in range(4) for n in ("5", "5,2", "1,6")),
    *(eager(3, 3, n, initiators=m, seed=s) for m, s in ((1, 0), (1, 1), (1, 3), (2, 0)) for n in ("3", "3,1,2")),
    *(eager(3, 2, n, initiators=1, seed=s) for s in range(3) for n in ("3,2,1", "0,3,3")),
    eager(2, 3, "4,2", "--exact", initiators=1),
    Case(3, 2, 3, "3,1,2", ("--initiators", "1", "--seed", "1")),
    eager(4, 2, "3", initiators=1),
    eager(4, 2, "3,0,2,1", initiators=1, seed=3),
]
LARGE = [
    *(
        Case(3, 2, 3, "7"),
        *(Case(4, s, t, n) for s in (1, 2, 3, 4) for t, n in ((4, "4"), (3, "5"))),
        Case(4, 2, 3, "3,2,2,1"),
        Case(5, 2, 3, "3"),
        Case(5, 5, 2, "2,0,1,0,1"),
        Case(6, 3, 2, "2"),
        resident(3, 2, 3, "5"),
        resident(4, 2, 3, "3,2,2,0"),
    ),
    *(eager(3, 4, "5"), eager(4, 0, "2", initiators=2), eager(4, 3, "3,2,2,1"), eager(4, 2, "3,1,2,2", initiators=2, seed=1)),
    *(eager(4, 4, "4"), eager(4, 4, "4", initiators=1), eager(4, 4, "4", initiators=2)),
]
#: Where the search of all states takes about a second at most; of these, where it takes a moment.
COMPARED = [
    *(case for case in SMALL if "--exact" not in case.options and case.ranks < 4),
    *(Case(4, s, 2, "2") for s in (1, 2, 3, 4)),
    Case(4, 2, 2, "3,1,2,0"),
    resident(4, 2, 2, "2"),
    eager(4, 2, "2"),
    eager(4, 2, "3,0,2,1", initiators=1, seed=3),
]
FEW = [
    *(case for case in COMPARED if case.ranks < 3),
    Case(3, 2, 0, "2"),
    Case(3, 3, 2, "0,3,1", ("--merge-once",)),
    Case(3, 3, 2, "2", ("--no-groups",)),
    resident(3, 2, 2, "3,1,2", "--merge-once"),
    eager(3, 2, "3,2,0"),
    eager(3, 3, "4,1,1"),
    eager(3, 3, "3", initiators=1),
    eager(3, 2, "0,3,3", initiators=1),
    # Where the order in which two Solo come decides whether the later one is told on: what was sent has to be looked at.
    eager(4, 0, "2,0,0,1", initiators=1),
]


def explore_and_replay(case: Case, edges: Path) -> None:
    status, result = native_programs.run("explorer", *case.arguments(), "--edges", edges)
    assert (status, result["result"]) == (0, "ok"), result
    assert not result["not_reduced"]
    with edges.open() as lines:
        assert check_python(case.explored(), lines) == result["local_edges"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_promises_hold_and_python_agrees(case: Case, tmp_path: Path) -> None:
    explore_and_replay(case, tmp_path / "edges")


@pytest.mark.long
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_promises_hold_in_larger_cases(case: Case, tmp_path: Path) -> None:
    explore_and_replay(case, tmp_path / "edges")


def test_a_python_machine_that_differs_is_seen(tmp_path: Path) -> None:
    case, edges = Case(2, 2, 3, "3"), tmp_path / "edges"
    native_programs.run("explorer", *case.arguments(), "--edges", edges)
    lines = edges.read_text().splitlines()
    changed = next(line for line in lines if ";arrive 0 -1;F 0 0 1,S 0 0 1 0 0;" in line).replace("S 0 0 1 0 0", "S 0 0 1 0 -1")
    with pytest.raises(MachinesDiffer, match=re.escape("arrive(0) in state")):
        check_python(case.explored(), [*lines, changed])


SEARCHES = [(), ("--no-order",), ("--no-application",), ("--no-symmetry", "--no-exchange", "--no-application")]


@pytest.mark.slow
@pytest.mark.parametrize("options", SEARCHES, ids=" ".join)
@pytest.mark.parametrize("cases", [FEW, pytest.param(COMPARED, marks=pytest.mark.long)], ids=["few", "all"])
def test_reduced_searches_keep_what_they_must(options: tuple[str, ...], cases: list[Case]) -> None:
    """All quiet states and all edges of single ranks, as a search of all states finds them; and they do reduce."""
    states = reduced = 0
    for case in cases:
        status, result = native_programs.run("explorer", *case.arguments(), *options, "--cross-check")
        assert (status, result["difference"]) == (0, ""), case
        assert result["reduced_edges"] >= result["edges"] > 0
        assert 0 < result["reduced_quiet"] <= result["quiet"]
        assert "--no-application" not in options or result["reduced_quiet"] == result["quiet"]
        states, reduced = states + result["states"], reduced + result["reduced_states"]
    assert reduced < states / (1 if options == ("--no-order",) else 5)


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 1, 3, "3"),
        Case(2, 2, 2, "2,3"),
        resident(2, 2, 3, "3"),
        eager(2, 3, "3,2"),
        # Solo that do something where they are delivered and nothing that matters: explorer_compare.cpp.
        eager(2, 2, "3,1", initiators=1),
        eager(3, 0, "0,1,1", initiators=2),
    ],
    ids=str,
)
def test_reduced_searches_keep_what_the_exact_one_finds(case: Case) -> None:
    status, result = native_programs.run("explorer", *case.arguments(), "--cross-check-exact")
    assert (status, result["difference"]) == (0, "")
    assert result["reduced_states"] < result["states"] / 20


def test_symmetry_is_found_where_there_is_some() -> None:
    """Ranks change places unless groups, candidates or ends tell them apart."""
    expected = {
        Case(4, 2, 2, "2"): 4, Case(4, 2, 2, "2,2,2,1"): 1, Case(4, 2, 2, "2,1,2,1"): 2, Case(3, 3, 2, "2"): 3, Case(3, 1, 2, "2"): 3,
        Case(3, 2, 3, "3"): 1, eager(4, 2, "2", initiators=1): 1,
    }  # fmt: skip
    found = {case: native_programs.run("explorer", *case.arguments())[1]["symmetries"] for case in expected}
    assert found == expected


def without_buffers(edges: Path) -> set[tuple[object, ...]]:
    """The edges up to what Rank::signature and idle_messages leave out: names of buffers, stale fields, activations without effect."""
    return {
        (rank, blurred(before), event, *map(without_names, outputs), blurred(after))
        for rank, before, event, outputs, after in map(parse_edge, edges.read_text().splitlines())
        if before != after or outputs
    }


def without_names(output: Output) -> tuple[int, ...]:
    match output:
        case Start(version, _, _, stamp, oldest):
            return version, stamp, oldest
        case Retracted(_, stamp, oldest):
            return stamp, oldest
        case Complete(version, fresh, merged_version, _):
            return version, fresh, merged_version
        case _:
            return tuple(output)


def blurred(state: tuple[int, ...]) -> tuple[int, ...]:
    fields = dict(zip(Machine.STATE, state, strict=False))
    held = [fields.pop(role) for role in ("live", "published", "reading", "target", "result", "merging", "model")]
    shape = [held.index(buffer) if buffer != NONE else NONE for buffer in held]
    del fields["merged"]
    if fields["waiting"] == NONE:
        del fields["fresh"]
    return (*fields.values(), *shape, *state[len(Machine.STATE) :])


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 2, 3, "3"),
        Case(2, 1, 2, "3"),
        Case(2, 2, 0, "3,1"),
        resident(2, 2, 3, "3"),
        eager(2, 3, "3"),
        eager(2, 2, "3,2", initiators=1, seed=2),
    ],
    ids=str,
)
def test_reductions_lose_nothing(case: Case, tmp_path: Path) -> None:
    """Where the whole space can be enumerated, names of buffers and idle messages hide no edge but those that they declare equal."""
    found = []
    for options in (("--no-order",), ("--exact",)):
        edges = tmp_path / f"edges{len(options)}"
        assert native_programs.run("explorer", *case.arguments(), *options, "--edges", edges)[0] == 0
        found.append(without_buffers(edges))
    assert found[0] == found[1]
    assert len(found[0]) > 100


@pytest.mark.parametrize("options", [(), ("--no-order", "--no-symmetry")], ids=["reduced", "unreduced"])
@pytest.mark.parametrize(
    ("case", "mutation", "violation"),
    [
        # Activators 0 and 4 of seven: rank 3 hears of the version only through a second activation of another rank.
        (Case(7, 7, 0, "1,0,0,0,1,0,0"), "drop-second-activation", "progress"),
        (Case(4, 2, 2, "2"), "no-forward", "progress"),
        (Case(2, 2, 2, "2"), "single-buffer", "wholeness"),
        (Case(2, 2, 2, "2"), "early-read-done", "wholeness"),
        (Case(3, 2, 3, "3"), "no-fence", "fence"),
        (eager(2, 3, "4"), "no-fence", "fence"),
        (eager(2, 3, "4"), "single-buffer", "wholeness"),
        (eager(2, 3, "4"), "early-read-done", "wholeness"),
        # Buffers: too few of them, or one for two roles at a time.
        (Case(2, 2, 3, "4"), "one-buffer-less", "no free buffer"),
        (resident(2, 2, 3, "4"), "one-buffer-less", "no free buffer"),
        *((case(2, 2, 3, "4"), "greedy-live", "no free buffer") for case in (Case, resident)),
        *((case(2, 2, 3, "5"), "merging-is-free", "wholeness: a sum is written") for case in (Case, resident)),
        *((case(2, 2, 3, "4"), "target-is-live", "wholeness: application and execution") for case in (Case, resident)),
        (Case(2, 2, 3, "4"), "live-is-published", "wholeness: the application writes"),
        (resident(2, 2, 1, "4"), "live-is-published", "wholeness: the application writes"),
        (resident(2, 2, 3, "4"), "always-in-place", "wholeness: the application writes"),  # late
        (resident(2, 2, 1, "4"), "always-in-place", "wholeness: the application writes"),  # a sync
        (eager(2, 3, "4"), "greedy-live", "no free buffer"),
        (eager(2, 3, "4"), "merging-is-free", "wholeness: a sum is written"),
        (eager(2, 3, "4"), "target-is-live", "wholeness: application and execution"),
        (eager(2, 3, "4"), "live-is-published", "wholeness: the application writes"),
        (eager(2, 3, "4"), "no-retract", "rank 1: arrive(1) is not allowed: the gradient of version 0 has to be retracted"),
        (eager(2, 3, "4"), "loses-gradients", "gradients: one is lost"),
        (eager(2, 3, "4"), "not-taken", "gradients: what no version has taken"),
        (eager(2, 3, "4"), "keeps-model", "gradients: what no version has taken"),
        (eager(2, 3, "4,1"), "no-last-model", "wholeness"),
        (eager(3, 3, "3", initiators=1), "anybody-activates", "initiators"),
        (eager(2, 3, "1,4", initiators=1), "no-solo", "progress"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mutations_are_caught(case: Case, mutation: str, violation: str, options: tuple[str, ...]) -> None:
    status, result = native_programs.run("explorer", *case.arguments(), "--mutate", mutation, *options)
    assert (status, result["result"]) == (1, "violation")
    assert violation in result["violation"]
    assert result["path"]
    assert all(step.startswith("rank ") for step in result["path"])


def test_stranded_rank_is_the_one_of_the_counterexample() -> None:
    case = Case(7, 7, 0, "1,0,0,0,1,0,0")
    _, result = native_programs.run("explorer", *case.arguments(), "--mutate", "drop-second-activation")
    reached = {int(step.split()[1].rstrip(":")) for step in result["path"]}
    assert set(range(7)) - reached == {3}


def test_a_machine_for_which_a_reduction_does_not_hold_is_searched_without() -> None:
    case = Case(7, 7, 0, "1,0,0,0,1,0,0")
    _, result = native_programs.run("explorer", *case.arguments(), "--mutate", "drop-second-activation")
    assert "does not go one way" in result["not_reduced"]
    assert native_programs.run("explorer", *case.arguments())[1]["not_reduced"] == ""


def test_a_limit_is_not_a_proof() -> None:
    status, result = native_programs.run("explorer", *Case(3, 3, 3, "3").arguments(), "--max-states", 1000)
    assert (status, result["result"], result["states"]) == (2, "incomplete", 1000)
    for limit in (1, 2):  # MiB; into the first not even the first page fits
        status, result = native_programs.run("explorer", *Case(4, 4, 4, "4").arguments(), "--max-memory", limit)
        assert (status, result["result"]) == (2, "incomplete")
        assert result["bytes"] <= limit << 20
