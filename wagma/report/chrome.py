"""A trace of either world in the Chrome trace event format, which Perfetto and chrome://tracing open.

Ranks are processes; their threads are the application, the progress thread (what the collective executes, also while a waiting application
drives it) and, where models are averaged in pairs, who answers. Arrows lead from the arrival that activated a version to the other ranks'
executions of it, and from the last arrival at a sync to those who waited for it. The records are read twice and never kept.

Format: "Trace Event Format", by the Chrome developers (Nat Duca and Dean Sinclair): the JSON object form.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf, nextafter
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.scenario import read
from wagma.trace import ExchangeRecord, Execution, Header, Iteration, RankStart, Record

#: Viewers take process 0 and thread 0 for the kernel's idle task: ranks and threads are numbered from 1.
FIRST_PROCESS = 1
APPLICATION, PROGRESS, ANSWERING = 1, 2, 3
THREADS = {APPLICATION: "application", PROGRESS: "progress thread", ANSWERING: "answers to partners"}
Event = dict[str, Any]
Moment = tuple[int, int]  # ns of a rank's clock, rank


@dataclass(slots=True)
class _Index:
    """What the first pass over the records has found.

    activators, last: version -> host -> who activated it first, or arrived last at a sync. synced: host -> sync -> when a rank of that
    host had completed it. shift: host -> ns by which its clock is ahead of that of the first host.
    """

    header: Header
    schedule: Schedule
    starts: dict[int, RankStart] = field(default_factory=dict)
    activators: dict[int, dict[str, Moment]] = field(default_factory=lambda: defaultdict(dict))
    last: dict[int, dict[str, Moment]] = field(default_factory=lambda: defaultdict(dict))
    synced: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    pairs: set[int] = field(default_factory=set)
    shift: dict[str, int] = field(default_factory=dict)
    origin: int = 0

    def add(self, record: Record) -> None:
        """One record of the first pass."""
        match record:
            case RankStart():
                self.starts[record.rank] = record
            case Execution():
                host = self.starts[record.rank].host
                if self.schedule.is_sync(record.version):
                    self.synced[host].setdefault(record.version, record.completed_ns)
                elif record.activator:
                    moment = record.activated_ns, record.rank
                    known = self.activators[record.version]
                    known[host] = min(known.get(host, moment), moment)
            case Iteration() if record.fresh is not None and self.schedule.is_sync(record.iteration):
                host, moment = self.starts[record.rank].host, (record.arrival_ns, record.rank)
                known = self.last[record.iteration]
                known[host] = max(known.get(host, moment), moment)
            case ExchangeRecord() if record.role == "passive":
                self.pairs.add(record.rank)

    def align(self) -> None:
        """Clocks of several hosts have offsets: a sync ends at nearly the same time everywhere, and a run begins so."""
        hosts = list(dict.fromkeys(start.host for start in self.starts.values()))
        for host in hosts:
            common = self.synced[host].keys() & self.synced[hosts[0]].keys()
            if common:
                self.shift[host] = int(median(self.synced[host][v] - self.synced[hosts[0]][v] for v in common))
            else:
                first = {start.host: start.started_ns for start in reversed(self.starts.values())}
                self.shift[host] = first[host] - first[hosts[0]]
        self.origin = min((self.aligned(start.started_ns, rank) for rank, start in self.starts.items()), default=0)

    def aligned(self, moment_ns: int, rank: int) -> int:
        """The same moment by the clock of the first host."""
        return moment_ns - self.shift[self.starts[rank].host]

    def of_all(self, found: dict[str, Moment], choose: Callable[..., Moment]) -> Moment | None:
        """The earliest or latest of several hosts' moments, by the clock of the first host."""
        moments = [(self.aligned(moment, rank), rank) for moment, rank in found.values()]
        return choose(moments) if moments else None


def export(source: Callable[[], Iterable[Record]], path: str | Path, first: int = 0, count: int | None = None) -> int:
    """Write the records that `source` gives, each time it is called, to a JSON file, gzipped if its name ends in .gz.

    first, count: only these iterations and versions. Returns the number of events. Raises InputError if the file cannot be written, or if
    there are no such iterations.
    """
    index = _first_pass(source())
    beside = Path(f"{path}.part")
    try:
        opened: Callable[..., Any] = gzip.open if str(path).endswith(".gz") else open
        with opened(beside, "wt", encoding="utf-8") as file:
            written = _write(file, index, _Events(index, first, count).of(source()))
        if not written:
            wanted = f"from {first} on" if count is None else f"{first} to {first + count - 1}"
            raise InputError(f"trace {index.header.algorithm}: has no iterations {wanted}")
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    return written


def _first_pass(records: Iterable[Record]) -> _Index:
    index: _Index | None = None
    for record in records:
        if isinstance(record, Header):
            scenario = read(record.scenario, "the trace's header")
            index = _Index(record, scenario.schedule(record.algorithm))
        elif index is not None:
            index.add(record)
    assert index is not None  # a trace begins with its header
    index.align()
    return index


def _write(file: TextIO, index: _Index, events: Iterable[Event]) -> int:
    """Returns how many events were written beyond those that name ranks and threads."""
    header = index.header
    about = {name: getattr(header, name) for name in ("world", "algorithm", "engine", "clock", "digests")}
    about["scenario"] = header.scenario.get("name", "")
    file.write(f'{{"displayTimeUnit":"ms","otherData":{json.dumps(about)},"traceEvents":[\n')
    file.write(",\n".join(map(_dump, _names(index))))
    written = 0
    for event in events:
        file.write(",\n")
        file.write(_dump(event))
        written += 1
    file.write("\n]}\n")
    return written


def _dump(event: Event) -> str:
    return json.dumps(event, separators=(",", ":"), allow_nan=False)


def _names(index: _Index) -> Iterator[Event]:
    """What processes and threads are called, and their order."""
    for rank, start in index.starts.items():
        name = f"rank {rank} on {start.host}" if start.host else f"rank {rank}"
        yield {"ph": "M", "pid": rank + FIRST_PROCESS, "tid": APPLICATION, "name": "process_name", "args": {"name": name}}
        yield {
            "ph": "M",
            "pid": rank + FIRST_PROCESS,
            "tid": APPLICATION,
            "name": "process_sort_index",
            "args": {"sort_index": rank},
        }
        for thread, title in THREADS.items():
            if thread != ANSWERING or rank in index.pairs:
                yield {"ph": "M", "pid": rank + FIRST_PROCESS, "tid": thread, "name": "thread_name", "args": {"name": title}}


def _microseconds(moment_ns: int) -> float:
    """Such that a thousand times it, cut off, is `moment_ns` again.

    That is how Perfetto reads times. What is a nanosecond too short overlaps with its neighbour then, and of two slices of a thread that
    overlap Perfetto drops one.
    """
    exact = moment_ns / 1000
    return exact if int(exact * 1000.0) == moment_ns else nextafter(exact, inf)


class _Events:
    """The second pass."""

    def __init__(self, index: _Index, first: int, count: int | None) -> None:
        self._index = index
        self._wanted = range(first, (1 << 62) if count is None else first + count)
        self._began = {rank: start.started_ns for rank, start in index.starts.items()}
        self._arrows = 0

    def of(self, records: Iterable[Record]) -> Iterator[Event]:
        """All events of the records, in their order."""
        for record in records:
            match record:
                case Iteration():
                    if record.iteration in self._wanted:
                        yield from self._iteration(record)
                    self._began[record.rank] = record.return_ns
                case Execution() if record.version in self._wanted:
                    yield from self._execution(record)
                case ExchangeRecord() if record.version in self._wanted:
                    yield self._exchange(record)

    def _time(self, moment_ns: int, rank: int) -> float:
        """In microseconds from the beginning."""
        return _microseconds(self._index.aligned(moment_ns, rank) - self._index.origin)

    def _slice(self, rank: int, thread: int, name: str, begin: int, end: int, **args: Any) -> Event:
        dur = _microseconds(max(0, end - begin))
        return {
            "ph": "X",
            "pid": rank + FIRST_PROCESS,
            "tid": thread,
            "ts": self._time(begin, rank),
            "dur": dur,
            "name": name,
            "args": args,
        }

    def _iteration(self, a: Iteration) -> Iterator[Event]:
        began, sync = self._began[a.rank], a.fresh is not None and self._index.schedule.is_sync(a.iteration)
        computed = max(began, a.arrival_ns - a.delayed_ns)
        yield self._slice(a.rank, APPLICATION, "computing", began, computed, iteration=a.iteration, skipped=a.skipped)
        if a.delayed_ns:
            yield self._slice(a.rank, APPLICATION, "injected delay", computed, a.arrival_ns, iteration=a.iteration)
        if a.return_ns > a.arrival_ns:
            name = "waiting at a sync" if sync else "waiting"
            about = {"iteration": a.iteration, "fresh": a.fresh, "merged_version": a.merged_version}
            yield self._slice(a.rank, APPLICATION, name, a.arrival_ns, a.return_ns, **about)
        if a.fresh is False:
            yield {**self._moment("i", a.rank, a.arrival_ns, "late", iteration=a.iteration), "s": "t"}
        last = self._index.of_all(self._index.last[a.iteration], max) if sync else None
        if last is not None:
            yield from self._arrow("waited for", last, APPLICATION, a.rank, APPLICATION, a.arrival_ns, a.return_ns)

    def _moment(self, phase: str, rank: int, at_ns: int, name: str, **arguments: object) -> Event:
        place = {"pid": rank + FIRST_PROCESS, "tid": APPLICATION, "ts": self._time(at_ns, rank)}
        return {"ph": phase, **place, "name": name, "args": arguments}

    def _execution(self, e: Execution) -> Iterator[Event]:
        sync = self._index.schedule.is_sync(e.version)
        name = "sync" if sync else "average" if e.own_stamp == e.version else "average, passive"
        about = {
            "version": e.version,
            "group": e.group,
            "activator": e.activator,
            "own_stamp": e.own_stamp,
            "staleness": e.staleness,
        }
        yield self._slice(e.rank, PROGRESS, name, e.started_ns, e.completed_ns, **about)
        if e.read_ns is not None:
            yield self._slice(e.rank, PROGRESS, "read by others", e.completed_ns, e.read_ns, version=e.version)
        if not sync and e.staleness is not None:
            yield self._moment("C", e.rank, e.started_ns, "staleness", staleness=e.staleness)
        if not sync and (first := self._index.of_all(self._index.activators[e.version], min)) is not None:
            yield from self._arrow("activation", first, APPLICATION, e.rank, PROGRESS, e.started_ns, e.completed_ns)

    def _exchange(self, x: ExchangeRecord) -> Event:
        thread = ANSWERING if x.role == "passive" else PROGRESS
        about = {"version": x.version, "iteration": x.iteration, "to": x.to, "sources": x.sources, "stamps": x.stamps}
        return self._slice(x.rank, thread, f"exchange, {x.role}", x.started_ns, x.completed_ns, **about)

    def _arrow(self, name: str, source: Moment, thread: int, rank: int, to: int, begin: int, end: int) -> Iterator[Event]:
        """From a moment by the first host's clock to the slice of `rank` from begin to end: to its beginning, or then if that is later."""
        moment, origin = source
        at = max(self._index.aligned(begin, rank), moment)
        if origin == rank or at > self._index.aligned(end, rank):
            return  # clocks of two hosts are not that exact
        self._arrows += 1
        both = {"cat": "arrow", "name": name, "id": self._arrows}
        yield {
            "ph": "s",
            "pid": origin + FIRST_PROCESS,
            "tid": thread,
            "ts": _microseconds(moment - self._index.origin),
            **both,
        }
        yield {
            "ph": "f",
            "bp": "e",
            "pid": rank + FIRST_PROCESS,
            "tid": to,
            "ts": _microseconds(at - self._index.origin),
            **both,
        }
