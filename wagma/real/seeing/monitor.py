"""What a training run shows while it goes on and when it ends: progress line, TensorBoard, summary, trace, log.

Each rank sums up its own records (`wagma.seeing.Facts`) about once a second and hangs the sums out (`wagma.real.seeing.board`);
rank 0 reads them. Nobody waits for it: it all happens between two iterations, on the thread that trains.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wagma.algorithms import Specification
from wagma.core.schedule import NEVER, Schedule
from wagma.errors import InputError
from wagma.files import why_not_writable
from wagma.logs import RankLogger
from wagma.progress import Line
from wagma.real.kernel import Engine
from wagma.real.limited import LONGEST_TIMEOUT_S
from wagma.real.seeing.board import make_board
from wagma.real.seeing.own_trace import write_trace
from wagma.real.seeing.recorder import Recorder
from wagma.seeing import COLUMNS, Facts, Figures, Summary, line
from wagma.text import seconds

if TYPE_CHECKING:
    from wagma.real.seeing.tensorboard import Board as TensorBoard

Record = bool | Literal["times"]

#: How often each rank hangs out its sums, at most.
LOOK_S = 1.0
#: A wait is worth a warning if it is at least so long, and so many times a rank's own part of an iteration; not more often than that.
STALL_S = 1.0
STALL_TIMES = 10
WARN_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Seeing:
    """The options of `wagma.distribute` about what is seen; it says what they mean."""

    progress: bool | Callable[[str], None] = False
    report_every: float = 10.0
    tensorboard: str | Path | None = None
    trace: str | Path | None = None
    record: Record = False

    def check(self, rank: int) -> None:
        """Raise InputError for values that mean nothing; on rank 0, for files that cannot be written, and MissingDependencyError."""
        given: Any = self.progress
        if not isinstance(given, bool) and not callable(given):
            raise InputError(f"progress = {given!r}: must be True, False or a function that takes a line of text")
        every: Any = self.report_every
        if not isinstance(every, int | float) or isinstance(every, bool) or not 0 < every <= LONGEST_TIMEOUT_S:
            raise InputError(f"report_every = {every!r}: must be seconds, above 0 and at most {LONGEST_TIMEOUT_S:g}")
        if self.record not in (False, True, "times"):
            raise InputError(f'record = {self.record!r}: must be False, "times" or True')
        for name, path in (("tensorboard", self.tensorboard), ("trace", self.trace)):
            given = path
            if given is not None and (not isinstance(given, str | Path) or not str(given)):
                raise InputError(f"{name} = {given!r}: must be a path")
        if rank == 0:
            self._check_files()

    def _check_files(self) -> None:
        if self.trace is not None and (reason := why_not_writable(self.trace)) is not None:
            raise InputError(f"trace = {str(self.trace)!r}: cannot be written: {reason}")
        if self.tensorboard is not None:
            from wagma.real.seeing.tensorboard import check_tensorboard

            check_tensorboard(self.tensorboard)

    def describe(self) -> str:
        """What all ranks need alike, for `wagma.real.limited.agree`; shorter than the values, which only rank 0 uses."""
        asked = {
            "progress": bool(self.progress),
            "tensorboard": self.tensorboard is not None,
            "trace": self.trace is not None,
            "record": self.record,
        }
        return " and ".join(f'{name} = "times"' if on == "times" else name for name, on in asked.items() if on) or "no records"

    @property
    def shows(self) -> bool:
        """Whether somebody looks while the run goes on."""
        return bool(self.progress) or self.tensorboard is not None

    @property
    def keeps(self) -> bool:
        """Whether records are kept for a trace."""
        return bool(self.record) or self.trace is not None

    @property
    def records(self) -> bool:
        """Whether the engine has to record."""
        return self.shows or self.keeps

    @property
    def digests(self) -> bool:
        """Whether models are read and digested in every iteration."""
        return self.record is True

    def recorder(self, rank: int, initial: Any) -> Recorder:
        """What records for these options."""
        return Recorder(rank, initial, keep=self.keeps, digests=self.digests, collects=self.records)


class Monitor:
    """One rank's eyes. Collective: all ranks make one, with the same options as far as `Seeing.describe` names them.

    size, dtype: of the model, for the trace's header. timeout_s: limit of the meeting at the beginning and at the end.
    """

    def __init__(
        self,
        comm: Any,
        seeing: Seeing,
        specification: Specification,
        schedule: Schedule,
        engine: Engine | None,
        recorder: Recorder,
        size: int,
        dtype: str,
        timeout_s: float,
    ) -> None:
        self.recorder = recorder
        self.summary: Summary | None = None
        self._seeing = seeing
        self._specification = specification
        self._bound = specification.staleness_bound(schedule)
        self._schedule = schedule
        self._engine = engine
        self._rank: int = comm.rank
        self._model = size, dtype
        self._timeout_s = timeout_s
        self._log = RankLogger(comm.rank)
        self._facts = Facts()
        self._losses: list[Any] = []  # tensors of this look's iterations: reading them would wait for the GPU
        self._logged = False
        self._board = make_board(comm, len(COLUMNS), timeout_s) if seeing.shows or seeing.trace is not None else None
        self._tensorboard: TensorBoard | None = None
        if seeing.tensorboard is not None and comm.rank == 0:
            from wagma.real.seeing.tensorboard import Board as TensorBoard

            self._tensorboard = TensorBoard(seeing.tensorboard)
        self._line = Line(seeing.report_every) if seeing.progress is True and comm.rank == 0 else None
        now = time.monotonic()
        self._look_at = now + min(LOOK_S, seeing.report_every)
        self._report_at = now + seeing.report_every
        self._warned_at = -WARN_EVERY_S
        self._own_ns = self._own_count = 0
        self._seen: deque[tuple[float, Figures]] = deque()  # rank 0: what it saw lately, oldest first
        self._ended = False
        self._begin(comm)

    def _begin(self, comm: Any) -> None:
        """Say what begins: rank 0 what is the same everywhere."""
        schedule, (size, dtype) = self._schedule, self._model
        often = "never a sync" if schedule.sync_period == NEVER else f"a sync every {schedule.sync_period} iterations"
        groups = f"groups of {schedule.group_size}, {often}" if schedule.grouped else often
        through = f"through {self._engine.transport}" if self._engine is not None and self._engine.transport else "alone"
        how = "no collectives" if self._engine is None else f"{groups}, {through}"
        say = self._log.info if self._rank == 0 else self._log.debug
        ranks = f"{comm.size} rank{'s' if comm.size > 1 else ''}"
        say("%s on %s: %s; %s parameters of %s", self._specification.name, ranks, how, f"{size:,}", dtype)
        self._log.debug("on host %s", self.recorder.start.host)

    def log(self, loss: Any = None, samples: float | None = None) -> None:
        """What only the program knows of the iteration that is under way: see `DistributedOptimizer.log`."""
        given: Any = samples
        if given is not None:
            if not isinstance(given, int | float) or isinstance(given, bool) or not given >= 0:
                raise InputError(f"rank {self._rank}: samples = {given!r}: must be a number, at least 0")
            self._facts.samples += given
        if loss is None:
            return
        self._logged = True
        if hasattr(loss, "detach") and loss.numel() == 1:
            if self._seeing.shows:  # else nobody would ever take them out again
                self._losses.append(loss.detach())
        elif isinstance(loss, int | float):
            self._facts.loss += loss
        else:
            what = f"a tensor of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else repr(loss)
            raise InputError(f"rank {self._rank}: loss = {what}: must be a number or a tensor of one element")
        self._facts.losses += 1

    def log_unless_logged(self, loss: Any) -> None:
        """What a closure returned is the loss, if the program says no other."""
        if not self._logged and (isinstance(loss, int | float) or (hasattr(loss, "detach") and loss.numel() == 1)):
            self.log(loss)

    def iterated(self, iteration: int) -> None:
        """That iteration has ended: once after each."""
        self._logged = False
        self._own_ns += self.recorder.computed_ns
        self._own_count += 1
        waited = self.recorder.waited_ns
        if waited > STALL_S * 1e9 and waited > STALL_TIMES * self._own_ns / self._own_count:
            self._warn(iteration, waited)
        if self._schedule.is_sync(iteration) and self._log.isEnabledFor(logging.DEBUG):
            self._log.debug("iteration %d, a sync: waited %s", iteration, seconds(waited / 1e9))
        if self._seeing.shows and time.monotonic() >= self._look_at:
            self._look(iteration + 1)

    def _warn(self, iteration: int, waited_ns: int) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            own = seconds(self._own_ns / self._own_count / 1e9)
            self._log.warning(
                "iteration %d: waited %s for others; its own part of an iteration takes %s",
                iteration,
                seconds(waited_ns / 1e9),
                own,
            )

    def _look(self, done: int) -> None:
        """Hang out this rank's sums; on rank 0, show everybody's. done: iterations that this rank has ended."""
        assert self._board is not None
        now = time.monotonic()
        self._look_at = now + min(LOOK_S, self._seeing.report_every)
        self._sum_up()
        self._board.put(self._facts.row())
        if self._rank == 0:
            self._show(done, now, Figures(self._board.rows()))

    def _sum_up(self) -> None:
        taken = self.recorder.absorb(None if self._engine is None else self._engine.take_records())
        self._facts.add(self._schedule, *taken)
        self._facts.loss += sum(float(loss) for loss in self._losses)
        self._losses.clear()

    def _show(self, done: int, now: float, run: Figures) -> None:
        every = self._seeing.report_every
        while len(self._seen) > 1 and self._seen[1][0] <= now - every:
            self._seen.popleft()
        lately = run.since(self._seen[0][1] if self._seen else None)
        self._seen.append((now, run))
        due = now >= self._report_at
        if due:
            self._report_at = now + every
        if self._line is not None and self._line.is_due():
            self._line.show(f"wagma: {line(done, run, lately, self._bound)}")
        elif callable(self._seeing.progress) and due:
            self._seeing.progress(line(done, run, lately, self._bound))
        if self._tensorboard is not None and due:
            self._tensorboard.add(done, run, lately)

    def finish(self, done: int) -> None:
        """Collective, once all ranks have closed: hand in, and on rank 0 say how it went. Again: nothing. done: this rank's iterations.

        Raises CollectiveTimeout if a rank does not come, InputError if the trace cannot be written.
        """
        if self._ended:
            return
        self._ended = True
        if self._line is not None:
            self._line.erase()
        self._log.info("ended after %d iterations, as all ranks have", done)
        if self._board is None:
            return
        self._sum_up()
        traced = self._seeing.trace is not None
        handed_in = self._facts, self.recorder.notes(None) if traced else None
        values = self._board.finish(handed_in, self._timeout_s)
        if values is None:
            return
        facts, notes = zip(*values, strict=True)
        through = "" if self._engine is None else self._engine.transport
        self.summary = Summary(self._specification.name, self._bound, facts, through)
        if self._tensorboard is not None:
            run = self.summary.figures
            self._tensorboard.add(done, run, run.since(self._seen[0][1] if self._seen else None))
            self._tensorboard.close(str(self.summary))
        if self._line is not None and sys.stderr is not None:
            sys.stderr.write("".join(f"wagma: {text}\n" for text in str(self.summary).splitlines()))
            sys.stderr.flush()
        if self._seeing.trace is not None:
            digests = "content" if self._seeing.digests else "off"
            write_trace(self._seeing.trace, self._specification, self._schedule, self._model, notes, digests)

    def abandon(self) -> None:
        """The run ends with an error: show nothing any more, and wait for nobody."""
        if self._ended:
            return
        self._ended = True
        if self._line is not None:
            self._line.erase()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._board is not None:
            self._board.abandon()
