"""What one real rank notes of a run, and the trace that all ranks' notes make."""

from __future__ import annotations

import socket
import time
from typing import Any

from wagma.core.digest import digest
from wagma.core.protocol import NONE
from wagma.scenario import Scenario, as_table
from wagma.trace import Execution, Header, Iteration, RankStart, Trace

#: (executions, iterations) as the native engine gives them: dicts with the fields of the trace's records.
EngineRecords = tuple[list[dict[str, Any]], list[dict[str, Any]]]
Notes = tuple[RankStart, list[Execution], list[Iteration]]


class Recorder:
    """Iterations of one rank as its driver sees them; the engine's own records are added at the end.

    Times are of time.monotonic_ns, which is the clock of the engine's records too.
    """

    def __init__(self, rank: int, initial: Any) -> None:
        self.start = RankStart(rank, time.monotonic_ns(), socket.gethostname(), digest(initial))
        self._iterations: list[Iteration] = []
        self._began = self.start.started_ns
        self._waited = 0
        self._delayed = 0
        self._joined = False

    def restart_clock(self) -> None:
        """The run begins now: what came before was set-up."""
        self.start.started_ns = self._began = time.monotonic_ns()

    def delayed(self, nanoseconds: int) -> None:
        """That much of the current iteration was an injected delay."""
        self._delayed += nanoseconds

    def waited(self, nanoseconds: int) -> None:
        """That much of the current iteration was spent in a collective."""
        self._waited += nanoseconds
        self._joined = True

    def finish_iteration(self, iteration: int, model: Any, skipped: bool) -> None:
        """The iteration ends now, with `model`; `skipped`: without an update."""
        now = time.monotonic_ns()
        computed = now - self._began - self._waited - self._delayed
        self._iterations.append(
            Iteration(
                self.start.rank, NONE, iteration, now, now, None, None, skipped,
                computed_ns=computed, delayed_ns=self._delayed, model_digest=digest(model),
            )
        )  # fmt: skip
        # Digesting the model is the recorder's own time: the next iteration begins after it.
        self._began, self._waited, self._delayed = time.monotonic_ns(), 0, 0

    def notes(self, engine_records: EngineRecords | None) -> Notes:
        """This rank's part of the trace; call once, when the engine has closed."""
        executions: list[Execution] = []
        if engine_records is not None:
            executed, joined = engine_records
            executions = [Execution(**{**record, "group": list(record["group"])}) for record in executed]
            by_iteration = {record.iteration: record for record in self._iterations}
            for values in joined:
                record = by_iteration.get(values["iteration"])
                if record is None:  # the run ended inside this iteration
                    continue
                for name in ("sequence", "arrival_ns", "return_ns", "fresh", "published_digest", "merged_digest"):
                    setattr(record, name, values[name])
                record.merged_version = None if values["merged_version"] == NONE else values["merged_version"]
        self._number(executions)
        return self.start, executions, self._iterations

    def _number(self, executions: list[Execution]) -> None:
        """One causal sequence: the engine's, with the iterations that joined nothing put in by the rank's own clock."""
        records: list[Execution | Iteration] = [*executions, *self._iterations]
        records.sort(key=lambda r: (r.completed_ns if isinstance(r, Execution) else r.return_ns, r.sequence))
        for sequence, record in enumerate(records):
            record.sequence = sequence


def assemble(scenario: Scenario, algorithm: str, value: str, notes: list[Notes]) -> Trace:
    """The trace of a run from all ranks' notes."""
    header = Header("real", "real", algorithm, value, "monotonic", "content", as_table(scenario))
    trace = Trace(header, source=f"real/{scenario.name}/{algorithm}/{scenario.ranks}")
    for start, executions, iterations in notes:
        trace.starts.append(start)
        trace.executions += executions
        trace.iterations += iterations
    trace.sort()
    return trace
