"""Traces in the Chrome format: structure as viewers need it, times that add up, arrows from slice to slice, memory that does not grow."""

from __future__ import annotations

import copy
import gzip
import json
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from wagma.api import simulate
from wagma.cli import main
from wagma.errors import InputError
from wagma.report.chrome import APPLICATION, FIRST_PROCESS, PROGRESS, _microseconds, export
from wagma.scenario import load
from wagma.trace import Header, Iteration, RankStart, Record, Trace, parse_trace

ALGORITHMS = ("wagma_sgd", "eager_sgd", "allreduce_sgd", "local_sgd", "d_psgd", "ad_psgd", "swarm_sgd")
KEYS = {
    "M": {"ph", "pid", "tid", "name", "args"},
    "X": {"ph", "pid", "tid", "ts", "dur", "name", "args"},
    "i": {"ph", "s", "pid", "tid", "ts", "name", "args"},
    "C": {"ph", "pid", "tid", "ts", "name", "args"},
    "s": {"ph", "pid", "tid", "ts", "cat", "name", "id"},
    "f": {"ph", "bp", "pid", "tid", "ts", "cat", "name", "id"},
}
ROUNDING_US = 0.0011  # times are given in thousandths of a microsecond


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    scenario = load("resnet50_imagenet", {"ranks": 6, "iterations": 22})
    return {trace.header.algorithm: trace for trace in simulate(scenario, ALGORITHMS, traces=True)}


def records(trace: Trace) -> list[Record]:
    """As a file has them: by rank, then in causal order."""
    ordered = sorted([*trace.executions, *trace.iterations, *trace.exchanges], key=lambda r: (r.rank, r.sequence))
    return [trace.header, *trace.starts, *ordered]


def exported(trace: Trace, path: Path, **window: Any) -> list[dict[str, Any]]:
    export(lambda: records(trace), path, **window)
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def slices(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            found[event["pid"], event["tid"]].append(event)
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_events_are_what_viewers_read(algorithm: str, traces: dict[str, Trace], tmp_path: Path) -> None:
    events = exported(traces[algorithm], tmp_path / "a.json")
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert sorted(processes) == list(range(FIRST_PROCESS, FIRST_PROCESS + 6))
    assert 0 not in processes  # which viewers take for the kernel
    for event in events:
        assert set(event) == KEYS[event["ph"]], event
        assert (event["pid"], event["tid"]) in threads
        assert event.get("ts", 0.0) >= 0
        assert event.get("dur", 0.0) >= 0
    assert sum(e["name"] == "computing" for e in events) == 6 * 22


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_slices_of_a_thread_do_not_overlap(algorithm: str, traces: dict[str, Trace], tmp_path: Path) -> None:
    """Viewers would nest them, or drop one."""
    for (_, thread), found in slices(exported(traces[algorithm], tmp_path / "a.json")).items():
        if thread not in (APPLICATION, PROGRESS):
            continue
        ordered = sorted(found, key=lambda e: (e["ts"], e["dur"]))
        for one, after in pairwise(ordered):
            assert one["ts"] + one["dur"] <= after["ts"] + ROUNDING_US, (one, after)


def test_times_add_up(traces: dict[str, Trace], tmp_path: Path) -> None:
    trace = traces["wagma_sgd"]
    events = exported(trace, tmp_path / "a.json")
    for rank in range(6):
        own = [a for a in trace.iterations if a.rank == rank]
        found = defaultdict(float)
        for event in slices(events)[rank + FIRST_PROCESS, APPLICATION]:
            found[event["name"]] += event["dur"]
        waited = sum(a.return_ns - a.arrival_ns for a in own) / 1000
        assert found["waiting"] + found["waiting at a sync"] == pytest.approx(waited)
        assert found["injected delay"] == pytest.approx(sum(a.delayed_ns for a in own) / 1000)
        assert sum(found.values()) == pytest.approx((own[-1].return_ns - trace.starts[rank].started_ns) / 1000)


class Importer:
    """What Perfetto's trace processor makes of a file, as far as events can get lost on the way; its program cannot be had everywhere.

    As it is in json_utils.cc, slice_tracker.cc and flow_tracker.cc: times become whole nanoseconds, cut off; events are taken by time, and
    by their order in the file at the same time; a slice that begins within another one of its thread and ends after it is dropped; an
    arrow is tied to the innermost slice that has begun on its thread, and dropped without one. lost: what was dropped.
    """

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.lost: list[dict[str, Any]] = []
        self.arrows: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self._open: dict[tuple[int, int], list[tuple[int, int, dict[str, Any]]]] = defaultdict(list)
        begun: dict[int, dict[str, Any]] = {}
        for event in sorted((e for e in events if e["ph"] in "Xisf"), key=lambda e: self.ns(e["ts"])):
            stack = self._open[event["pid"], event["tid"]]
            if event["ph"] in "Xi":
                self._slice(stack, event)
            elif not stack:
                self.lost.append(event)
            elif event["ph"] == "s":
                begun[event["id"]] = stack[-1][2]
            else:
                assert event["bp"] == "e"
                self.arrows.append((event["name"], begun.pop(event["id"]), stack[-1][2]))
        self.lost += begun.values()

    @staticmethod
    def ns(microseconds: float) -> int:
        return int(microseconds * 1000.0)

    def _slice(self, stack: list[tuple[int, int, dict[str, Any]]], event: dict[str, Any]) -> None:
        begin, length = self.ns(event["ts"]), self.ns(event.get("dur", 0.0))
        while stack and (stack[-1][1] < begin or (stack[-1][1] == begin and (length or stack[-1][0] < begin))):
            stack.pop()
        if any(begin < end < begin + length for _, end, _ in stack):
            self.lost.append(event)
        else:
            stack.append((begin, begin + length, event))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_perfetto_would_lose_nothing(algorithm: str, traces: dict[str, Trace], tmp_path: Path) -> None:
    trace = traces[algorithm]
    events = exported(trace, tmp_path / "a.json")
    imported = Importer(events)
    assert imported.lost == []
    assert len(imported.arrows) == sum(e["ph"] == "s" for e in events)
    for name, _, end in imported.arrows:
        assert end["name"] in ("waiting at a sync", "late") if name == "waited for" else end["name"].startswith("average")
    slices_ns = [(Importer.ns(e["ts"]), Importer.ns(e["dur"])) for e in events if e["ph"] == "X"]
    shown = {begin for begin, _ in slices_ns} | {begin + length for begin, length in slices_ns}
    assert {a.return_ns for a in trace.iterations} | {e.started_ns for e in trace.executions} <= shown  # to the nanosecond


@pytest.mark.parametrize(("convert", "lost"), [(_microseconds, 0), (lambda ns: ns / 1000, 1)])
def test_the_importer_notices_what_is_lost(convert: Callable[[int], float], lost: int) -> None:
    """As it is without care: 1003 / 1000 * 1000 is 1002.9999999999999."""
    where = {"pid": 1, "tid": 1, "name": "slice"}
    slices = [{"ph": "X", "ts": convert(begin), "dur": convert(1000), **where} for begin in (3, 1003)]
    assert len(Importer(slices).lost) == lost
    early = {"ph": "s", "ts": 0.0, "id": 1, **where}
    assert early in Importer([*slices, early]).lost


def within(moment: float, found: list[dict[str, Any]]) -> list[str]:
    return [e["name"] for e in found if e["ts"] - ROUNDING_US <= moment <= e["ts"] + e["dur"] + ROUNDING_US]


@pytest.mark.parametrize("algorithm", ["wagma_sgd", "allreduce_sgd"])
def test_arrows_lead_from_whoever_acted_to_those_it_concerned(algorithm: str, traces: dict[str, Trace], tmp_path: Path) -> None:
    trace = traces[algorithm]
    events = exported(trace, tmp_path / "a.json")
    found, begins, ends = slices(events), {}, {}
    for event in events:
        if event["ph"] in "sf":
            (begins if event["ph"] == "s" else ends)[event["id"]] = event
    assert begins.keys() == ends.keys()
    names = defaultdict(int)
    for number, begin in begins.items():
        end = ends[number]
        names[begin["name"]] += 1
        assert begin["ts"] <= end["ts"]
        assert begin["pid"] != end["pid"]
        source = within(begin["ts"], found[begin["pid"], begin["tid"]])
        target = within(end["ts"], found[end["pid"], end["tid"]])
        if begin["name"] == "waited for":
            assert "waiting at a sync" in source + target
        else:
            assert {"average", "average, passive"} & set(target)
    syncs = 22 if algorithm == "allreduce_sgd" else 2
    assert names["waited for"] == 5 * syncs  # everybody but who came last
    if algorithm == "wagma_sgd":
        activated = {(e.version, e.rank) for e in trace.executions if e.activator}
        assert 0 < names["activation"] <= 6 * 20 - len({version for version, _ in activated if (version + 1) % 10})


def test_a_window(traces: dict[str, Trace], tmp_path: Path) -> None:
    events = exported(traces["wagma_sgd"], tmp_path / "a.json", first=5, count=3)
    assert {e["args"]["iteration"] for e in events if e["name"] == "computing"} == {5, 6, 7}
    assert {e["args"]["version"] for e in events if e["name"].startswith("average")} == {5, 6, 7}


def test_clocks_of_several_hosts_are_aligned(traces: dict[str, Trace], tmp_path: Path) -> None:
    """By the syncs: rank 3 is now on a host whose clock began an hour earlier."""
    trace = copy.deepcopy(traces["wagma_sgd"])
    expected = exported(trace, tmp_path / "a.json")
    ahead = 3_600_000_000_000
    trace.starts[3].host = "elsewhere"
    for record in [*trace.starts, *trace.executions, *trace.iterations]:
        if record.rank == 3:
            for name in ("started_ns", "activated_ns", "completed_ns", "read_ns", "arrival_ns", "return_ns"):
                if getattr(record, name, None) is not None:
                    setattr(record, name, getattr(record, name) + ahead)
    synced = [{e.rank: e.completed_ns for e in trace.executions if e.version == v} for v in (9, 19)]
    error_us = abs(sorted(one[3] - ahead - one[0] for one in synced)[0]) / 1000
    found = exported(trace, tmp_path / "b.json")
    times = [{(e["pid"], e["name"], str(e["args"])): e["ts"] for e in events if e["ph"] == "X"} for events in (expected, found)]
    assert times[0].keys() == times[1].keys()
    assert max(abs(times[0][key] - times[1][key]) for key in times[0]) <= error_us + 1.0


def long_run(iterations: int) -> Iterator[Record]:
    scenario = load("resnet50_imagenet", {"ranks": 2, "iterations": 10})
    yield Header("sim", "simpy", "ideal", "model", "virtual", "off", _table(scenario))
    for rank in range(2):
        yield RankStart(rank, 0)
    for rank in range(2):
        for t in range(iterations):
            yield Iteration(rank, t, t, 1000 * (t + 1), 1000 * (t + 1), None, None, computed_ns=1000)


def _table(scenario: Any) -> dict[str, Any]:
    from wagma.scenario import as_table

    return as_table(scenario)


def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    def peak(iterations: int) -> int:
        tracemalloc.start()
        export(lambda: long_run(iterations), tmp_path / "a.json.gz")
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)
    short = peak(400)
    assert peak(8000) < short + 200_000
    with gzip.open(tmp_path / "a.json.gz", "rt") as file:
        assert sum(e["name"] == "computing" for e in json.load(file)["traceEvents"]) == 16_000


def test_a_file_and_the_command_line(traces: dict[str, Trace], tmp_path: Path) -> None:
    traces["wagma_sgd"].write(tmp_path / "a.jsonl")
    assert main(["trace", "chrome", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "a.json"), "--count", "4"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["otherData"]["algorithm"] == "wagma_sgd"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["none.jsonl", "-o", "a.json"], "trace none.jsonl: cannot be read: No such file or directory\n"),
        (["binary.jsonl", "-o", "a.json"], "binary.jsonl:1: not a trace record: not UTF-8 text\n"),
        (["a.jsonl", "-o", "nowhere/a.json"], "--output 'nowhere/a.json': cannot be written: there is no folder nowhere"),
        (["a.jsonl", "-o", "."], "--output '.': cannot be written: a folder, not a file"),
        (["a.jsonl", "-o", "./a.jsonl"], "--output './a.jsonl': is the trace itself; must be another file"),
        (["a.jsonl", "-o", "a.json", "--count", "0"], "--count 0: must be at least 1"),
        (["a.jsonl", "-o", "a.json", "--first", "-1"], "argument --first: '-1': must be a whole number"),
        (["a.jsonl", "-o", "a.json", "--first", "99"], "has no iterations from 99 on"),
        (["bad.jsonl", "-o", "a.json"], "bad.jsonl:1: the first line must be the header"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], complaint: str, traces: dict[str, Trace], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    traces["wagma_sgd"].write("a.jsonl")
    Path("bad.jsonl").write_text('{"record":"rank","rank":0,"started_ns":0}\n')
    Path("binary.jsonl").write_bytes(b"\x89PNG")
    assert main(["trace", "chrome", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not Path("a.json").exists()


def test_a_trace_without_a_header_or_with_two_is_refused(traces: dict[str, Trace]) -> None:
    with pytest.raises(InputError, match="empty"):
        parse_trace([], "none")
    header = replace(traces["wagma_sgd"].header)
    lines = list(Trace(header)._lines())
    with pytest.raises(InputError, match="two:2: a second header"):
        parse_trace(lines * 2, "two")
