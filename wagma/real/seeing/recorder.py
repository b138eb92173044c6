"""What one real rank notes of a run, and the trace that all ranks' notes make."""

from __future__ import annotations

import itertools
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from wagma.core.digest import digest
from wagma.core.protocol import NONE
from wagma.scenario import Scenario, as_table
from wagma.trace import ExchangeRecord, Execution, Header, Iteration, RankStart, Trace

#: (executions, iterations) as the native engine gives them: dicts with the fields of the trace's records.
EngineRecords = tuple[list[dict[str, Any]], list[dict[str, Any]]]
#: What `absorb` has made of an iteration's engine record, beside the times that the driver has noted itself.
_JOINED = ("sequence", "arrival_ns", "return_ns", "fresh", "published_digest", "merged_digest")


class Notes(NamedTuple):
    """One rank's part of a trace."""

    start: RankStart
    executions: list[Execution]
    iterations: list[Iteration]
    exchanges: list[ExchangeRecord]


class Taken(NamedTuple):
    """The records that have become complete since the last call of `Recorder.absorb`."""

    executions: Sequence[Execution]
    iterations: Sequence[Iteration]
    exchanges: Sequence[ExchangeRecord]


class Recorder:
    """Iterations of one rank as its driver sees them, joined with the engine's own records now and then.

    Times are of time.monotonic_ns, which is the clock of the engine's records too. collects: records are made, for whoever calls
    `absorb`; else only the times of the last iteration are known. keep: they are kept for the trace (`notes`). digests: the whole model is
    read and digested in every iteration; that costs as much as reading it, while the rest costs microseconds.

    One thread only, the one that calls the optimizer; but for `exchanged`, which another one calls: that is why there is a deque, whose
    two ends may be worked at by two threads without a lock.
    """

    def __init__(self, rank: int, initial: Any, *, keep: bool = True, digests: bool = True, collects: bool = True) -> None:
        self.start = RankStart(rank, time.monotonic_ns(), socket.gethostname(), digest(initial) if digests else None)
        self.computed_ns = self.waited_ns = 0  # of the last iteration
        self._keep = keep
        self.digests = digests
        self.collects = collects or keep
        self._kept = Notes(self.start, [], [], [])
        self._finished: list[Iteration] = []
        self._exchanged: deque[ExchangeRecord] = deque()
        self.on_restart: Callable[[], None] | None = None  # told when the run begins
        #: Others may average with this rank at any time: when the run begins, and that it has, is one step for them.
        self.lock: AbstractContextManager[Any] = nullcontext()
        self._unmatched: dict[int, dict[str, Any]] = {}  # the engine's, of an iteration that the driver has not finished
        self._places = itertools.count()
        self._restart()

    def _restart(self) -> None:
        self._began = time.monotonic_ns()
        self._waited = self._delayed = 0
        self._wait_began = self._wait_ended = 0
        self._updated_ns = 0
        self._updated_place: int | None = None
        self._published_digest: str | None = None
        self._work: float | None = None

    def restart_clock(self) -> None:
        """The run begins now: what came before was set-up."""
        with self.lock:
            self._restart()
            self.start.started_ns = self._began
            if self.on_restart is not None:
                self.on_restart()

    def paused(self) -> None:
        """What came since the last iteration was part of none: the next one begins now."""
        self._restart()

    def resumed(self, initial: Any) -> None:
        """The run goes on from a checkpoint, with this model."""
        if self.digests:
            self.start.initial_digest = digest(initial)

    def delayed(self, nanoseconds: int) -> None:
        """That much of the current iteration was an injected delay."""
        self._delayed += nanoseconds

    def waited(self, began_ns: int) -> None:
        """From then up to now the current iteration was in a collective, or waited for others."""
        self._wait_ended = time.monotonic_ns()
        if not self._waited:
            self._wait_began = began_ns
        self._waited += self._wait_ended - began_ns

    def worked(self, work: float | None) -> None:
        """That much, in the scenario's unit, is what the current iteration's gradient was of; None: as much as always."""
        self._work = work

    def published(self, value: Any) -> None:
        """That is what the rank sends to its neighbours in this iteration."""
        if self.digests:
            self._published_digest = digest(value)

    def place(self) -> int:
        """The next place in the order in which a model was read and changed that pairs average. Under the lock that protects that model:
        so there are no two orders, whatever the clock says.
        """
        return next(self._places)

    def updated(self) -> None:
        """Just now, where pairs average the model: other averages come before or after that."""
        self._updated_ns, self._updated_place = time.monotonic_ns(), self.place()

    def ended(self, read_model: Callable[[], Any]) -> None:
        """All ranks have closed, and nothing changes the model any more."""
        if self.digests:
            self.start.final_digest = digest(read_model())

    def exchanged(self, record: ExchangeRecord) -> None:
        """The rank got models without a collective. Its sequence is a place, or NONE; the last one is given at the end."""
        if self.collects:
            self._exchanged.append(record)

    def finish_iteration(self, iteration: int, read_model: Callable[[], Any], skipped: bool) -> None:
        """The iteration ends now; `read_model` gives the model, and is called for its digest only; `skipped`: without an update."""
        now = time.monotonic_ns()
        # In pairs an iteration arrives with its update, and lasts to its end: between them is what others may do to the model.
        arrival_ns, return_ns = (
            (self._updated_ns, now) if self._updated_ns else (self._wait_began or now, self._wait_ended or now)
        )
        self.computed_ns = now - self._began - self._waited - self._delayed
        self.waited_ns = self._waited
        if self.collects:
            place = NONE if self._updated_place is None else self.place()
            self._finished.append(
                Iteration(
                    self.start.rank, place, iteration, arrival_ns, return_ns, None, None, skipped,
                    computed_ns=self.computed_ns, delayed_ns=self._delayed, work=self._work,
                    published_digest=self._published_digest,
                    model_digest=digest(read_model()) if self.digests else None,
                    updated_sequence=self._updated_place,
                )
            )  # fmt: skip
        self._restart()  # digesting the model was the recorder's own time: the next iteration begins after it

    def absorb(self, engine_records: EngineRecords | None) -> Taken:
        """Join the driver's iterations with what the engine has recorded since the last call: what is complete now.

        Call it between iterations: the engine has then recorded all that the driver's iterations have joined.
        """
        executed, joined = engine_records or ([], [])
        executions = [Execution(**record) for record in executed]
        self._unmatched |= {values["iteration"]: values for values in joined}
        for record in self._finished:
            values = self._unmatched.pop(record.iteration, None)
            if values is not None:
                for name in _JOINED:
                    setattr(record, name, values[name])
                record.retracted_ns = values.get("retracted_ns")
                record.merged_version = None if values["merged_version"] == NONE else values["merged_version"]
        exchanged = [self._exchanged.popleft() for _ in range(len(self._exchanged))]
        taken = Taken(executions, self._finished, exchanged)
        self._finished = []
        if self._keep:
            self._kept.executions.extend(taken.executions)
            self._kept.iterations.extend(taken.iterations)
            self._kept.exchanges.extend(taken.exchanges)
        return taken

    def notes(self, engine_records: EngineRecords | None) -> Notes:
        """This rank's part of the trace; call once, when the engine has closed, with what it has recorded since the last `absorb`."""
        self.absorb(engine_records)
        self._number()
        return self._kept

    def _number(self) -> None:
        """One causal sequence: the engine's, with what it knows nothing of put in by the rank's own clock; the updates of the model that
        pairs average, and when one of them read it, have a place of their own in it.
        """
        kept = self._kept
        records: list[Execution | Iteration | ExchangeRecord] = [*kept.executions, *kept.iterations, *kept.exchanges]
        numbered: list[tuple[int, int, Any, str]] = [
            (r.return_ns if isinstance(r, Iteration) else r.completed_ns, r.sequence, r, "sequence") for r in records
        ]
        numbered += [
            (a.arrival_ns, a.updated_sequence, a, "updated_sequence") for a in kept.iterations if a.updated_sequence is not None
        ]
        numbered += [(x.started_ns, x.sent_sequence, x, "sent_sequence") for x in kept.exchanges if x.sent_sequence is not None]
        numbered.sort(key=lambda entry: entry[:2])
        for sequence, (_, _, record, name) in enumerate(numbered):
            setattr(record, name, sequence)


def assemble(scenario: Scenario, algorithm: str, value: str, notes: Sequence[Notes], digests: str = "content") -> Trace:
    """The trace of a run from all ranks' notes. digests: "content", or "off" if the ranks recorded none."""
    header = Header("real", "real", algorithm, value, "monotonic", digests, as_table(scenario))
    header.begin = min((one.iterations[0].iteration for one in notes if one.iterations), default=0)
    trace = Trace(header, source=f"real/{scenario.name}/{algorithm}/{scenario.ranks}")
    for one in notes:
        trace.starts.append(one.start)
        trace.executions += one.executions
        trace.iterations += one.iterations
        trace.exchanges += one.exchanges
    trace.sort()
    return trace
