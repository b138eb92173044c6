"""Arbitrary legal runs keep every promise, planted defects of the protocol are found, and traces survive a file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wagma.core.protocol import NONE, Machine, Output
from wagma.errors import InputError
from wagma.testing import assert_promises, lateness, synthetic, synthetic_trace, traces, validate
from wagma.trace import Trace, load_trace

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


# -- synthetic runs --------------------------------------------------------------------------------------------------------


@settings(patient, max_examples=150)
@given(traces())
def test_legal_runs_keep_every_promise(trace: Trace) -> None:
    assert_promises(trace)


@settings(patient, max_examples=50)
@given(st.data(), st.integers(2, 6), st.integers(0, 4), st.integers(0, 2**32))
def test_any_lateness_keeps_every_promise(data: st.DataObject, ranks: int, sync_period: int, seed: int) -> None:
    group_size, iterations = data.draw(st.integers(1, ranks)), data.draw(st.integers(1, 8))
    late = data.draw(lateness(ranks, iterations))
    assert_promises(synthetic_trace(ranks, group_size, sync_period, iterations, seed, compute_ns=late))


@pytest.mark.parametrize("algorithm", ["local_sgd", "ideal"])
def test_other_schedules_keep_every_promise(algorithm: str) -> None:
    assert_promises(*(synthetic_trace(5, 2, 3, 20, seed, close_early=True, algorithm=algorithm) for seed in range(20)))


def test_the_same_seed_is_the_same_run() -> None:
    first, again, other = (synthetic_trace(6, 2, 4, 12, seed) for seed in (1, 1, 2))
    assert first.executions == again.executions
    assert first.iterations == again.iterations
    assert first.executions != other.executions


def test_runs_are_as_adversarial_as_they_say() -> None:
    runs = [synthetic_trace(7, 3, 6, 30, seed, merge_once=True, close_early=True) for seed in range(10)]
    executions = [e for run in runs for e in run.executions]
    iterations = [a for run in runs for a in run.iterations]
    assert max(e.version - e.own_stamp for e in executions) == 5  # the bound is reached
    assert any(a.fresh is False and a.merged_version == a.iteration for a in iterations)  # late, its own in progress
    assert any(a.fresh is False and (a.merged_version or 0) > a.iteration + 2 for a in iterations)
    assert any(a.fresh is False and a.merged_version is None for a in iterations)  # merged before
    assert any((e.read_ns or 0) > e.completed_ns for e in executions)
    assert any((e.read_ns or 0) < e.completed_ns for e in executions)
    arrivals = {(a.rank, a.iteration): a.arrival_ns for a in iterations}
    assert any(arrivals.get((e.rank, e.version)) == e.started_ns and e.own_stamp < e.version for e in executions)
    assert any((e.rank, e.version) not in arrivals and e.own_stamp == e.version for e in executions)  # closed, in a sync


# -- planted defects ---------------------------------------------------------------------------------------------------------


class DropsActivations(Machine):
    """Forwards nothing for a version that it knows to be activated."""

    __slots__ = ()

    def activation(self, version: int, dimension: int) -> list[Output]:
        return [] if version <= self.activated else super().activation(version, dimension)


class ReusesReadBuffers(Machine):
    """Hands out a buffer that peers still read."""

    __slots__ = ()

    def _spare(self) -> int:
        reading, self.reading = self.reading, NONE
        spare = super()._spare()
        self.reading = reading
        return spare


class ReusesMergedBuffers(Machine):
    """Hands out the buffer of a result, and of one that is being merged."""

    __slots__ = ()

    def _spare(self) -> int:
        roles, self.result, self.merging = (self.result, self.merging), NONE, NONE
        spare = super()._spare()
        self.result, self.merging = roles
        return spare


class WaitsForArrivals(Machine):
    """Starts nothing passively while the rank may still arrive."""

    __slots__ = ()

    def _start(self, outputs: list[Output]) -> None:
        if self.arrived >= self.next_version or self.closed:
            super()._start(outputs)


class NoFence(Machine):
    """Starts a sync without the rank's arrival, with what it published before."""

    __slots__ = ()

    def _start(self, outputs: list[Output]) -> None:
        stamp, arrived, self.arrived = self.stamp, self.arrived, 10**6
        super()._start(outputs)
        self.stamp, self.arrived = stamp, arrived


class CallsEverythingFresh(Machine):
    """Tells late ranks that they were in the sum."""

    __slots__ = ()

    def _complete(self, version: int, outputs: list[Output]) -> None:
        self.fresh = 1
        super()._complete(version, outputs)


class MergesAgain(Machine):
    """Merges a result again although merge_once is on."""

    __slots__ = ()

    def _complete(self, version: int, outputs: list[Output]) -> None:
        self.merged = NONE
        super()._complete(version, outputs)


class SyncLeavesThePublished(Machine):
    """Goes on contributing, after a sync, what was published before it."""

    __slots__ = ()

    def exec_done(self, version: int) -> list[Output]:
        if not self.schedule.is_sync(version):
            return super().exec_done(version)
        published, self.activated, activated = self.published, NONE, self.activated  # starts nothing yet
        outputs = super().exec_done(version)
        self.published, self.activated = published, activated
        self._start(outputs)
        return outputs


@pytest.mark.parametrize(
    ("defect", "symptom"),
    [
        (DropsActivations, "stranded"),
        (ReusesReadBuffers, "promise 3"),
        (ReusesMergedBuffers, "promise 3"),
        (WaitsForArrivals, "promise 7"),
        (NoFence, "promise 5"),
        (CallsEverythingFresh, "promise 4"),
        (MergesAgain, "promise 4"),
        (SyncLeavesThePublished, "promise 3"),
    ],
)
def test_planted_defects_are_found(defect: type[Machine], symptom: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "Machine", defect)

    def hunt() -> None:
        for seed in range(60):
            assert_promises(synthetic_trace(7, 3, 5, 20, seed, merge_once=seed % 2 == 1))

    with pytest.raises(AssertionError, match=symptom):
        hunt()


# -- files -----------------------------------------------------------------------------------------------------------------


@settings(patient, max_examples=20)
@given(traces(max_ranks=4, max_iterations=6))
def test_traces_survive_a_file(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = tmp_path_factory.mktemp("trace") / "run.jsonl"
    trace.write(path)
    read = load_trace(path)
    assert (read.header, read.starts, read.executions, read.iterations) == (
        trace.header, trace.starts, trace.executions, trace.iterations,
    )  # fmt: skip
    assert read.source == str(path)
    assert validate(trace, read) == []


def _lines(path: Path) -> list[str]:
    synthetic_trace(2, 2, 2, 2, seed=1).write(path)
    return path.read_text().splitlines()


def _edited(line: str, **changes: object) -> str:
    return json.dumps(json.loads(line) | changes)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda lines: [], "empty"),
        (lambda lines: lines[1:], ":1: the first line must be the header"),
        (lambda lines: [lines[0], *lines], ":2: a second header"),
        (lambda lines: [lines[0], "{"], ":2: not a trace record"),
        (lambda lines: [lines[0], '{"record":"other"}'], ":2: not a trace record"),
        (lambda lines: [lines[0], _edited(lines[1], colour="red")], ":2: unknown field 'colour'"),
        (lambda lines: [lines[0], _edited(lines[1], rank="0")], ":2: rank = '0': must be int"),
        (lambda lines: [lines[0], _edited(lines[1], rank=True)], ":2: rank = True: must be int"),
        (lambda lines: [lines[0], '{"record":"rank","rank":0}'], ":2: missing 1 required positional argument"),
        (lambda lines: [_edited(lines[0], schema=99), *lines[1:]], ":1: schema = 99: this wagma reads schema 1"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, edit: object, complaint: str) -> None:
    path = tmp_path / "bad.jsonl"
    lines = edit(_lines(path))  # type: ignore[operator]
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(InputError) as caught:
        load_trace(path)
    message = str(caught.value)
    assert complaint in message
    assert str(path) in message
    assert "\n" not in message


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_trace(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        synthetic_trace(1, 1, 1, 1, seed=1).write(tmp_path / "no" / "folder.jsonl")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"algorithm": "no_sgd"}, "algorithm = 'no_sgd': unknown"), ({"scenario": {"name": "x"}}, "ranks")],
)
def test_headers_that_mean_nothing(changes: dict[str, object], complaint: str) -> None:
    trace = synthetic_trace(2, 2, 2, 2, seed=1)
    for name, value in changes.items():
        setattr(trace.header, name, value)
    with pytest.raises(InputError, match=complaint):
        validate(trace)


@pytest.mark.long
def test_large_traces_take_seconds() -> None:
    trace = synthetic_trace(256, 16, 10, 300, seed=1)
    began = time.perf_counter()
    assert_promises(trace)
    assert time.perf_counter() - began < 20
