"""A simulated cluster inside somebody else's SimPy environment: beside a job queue, a failing power supply, other clusters.

The cluster keeps a clock of its own, in whole nanoseconds from 0, which follows the environment's. So it runs to the nanosecond as it
does alone, whatever else the environment holds, whatever unit its clock has and whatever time it is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import simpy

from wagma.errors import InputError, WagmaError
from wagma.results import Result, summarize
from wagma.scenario import Scenario
from wagma.sim.driver import Run
from wagma.sim.numerics import Nothing, Numerics, Symbols
from wagma.trace import Iteration, Trace

Before = Callable[[int, int], simpy.Event | None]
After = Callable[[Iteration], object]


class Cluster:
    """Ranks that run an algorithm in `env`, from now on; `yield cluster.done` waits for their end and gives the trace.

    Args:
        env: the environment.
        scenario: what is run; a workload to train is left out, this is about time.
        algorithm: by name.
        unit_ns: how many nanoseconds one unit of the environment's clock is: 1, or 1_000_000_000 for an environment in seconds.
        before_iteration: called as before_iteration(rank, iteration) when a rank is about to begin an iteration. If it returns an event
            of `env`, the rank waits for it, which counts as delay. If that event fails, `done` does, with a WagmaError.
        after_iteration: called with the record of every finished iteration of every rank (`wagma.trace.Iteration`; its times are
            the cluster's own).
        digests: keep in the trace what every model was made from, for `wagma.validate`.

    Raises InputError if the algorithm's settings do not fit the scenario, or unit_ns is not above 0.
    """

    def __init__(
        self,
        env: simpy.Environment,
        scenario: Scenario,
        algorithm: str,
        *,
        unit_ns: int = 1,
        before_iteration: Before | None = None,
        after_iteration: After | None = None,
        digests: bool = False,
    ) -> None:
        unit: Any = unit_ns  # whatever a caller without types gave
        if isinstance(unit, bool) or not isinstance(unit, int) or unit < 1:
            raise InputError(f"unit_ns = {unit_ns!r}: must be a whole number of nanoseconds, at least 1")
        self.env = env
        #: Succeeds with the trace when all ranks are done.
        self.done: simpy.Event = env.event()
        #: How many iterations all ranks together have finished.
        self.finished = 0
        #: The trace, once the cluster is done.
        self.trace: Trace | None = None
        self._unit_ns = unit_ns
        self._before = before_iteration
        self._after = after_iteration
        self._origin: float = env.now  # where the environment's clock stood at the cluster's 0, had there been no pause
        self._paused: float | None = None  # since when
        self._held = 0  # ranks that wait for an event of the environment
        self._failed: WagmaError | None = None  # what ended it before its time
        self._changed = env.event()
        numerics: Numerics = Symbols(scenario.ranks) if digests else Nothing()
        self._run = Run(scenario, algorithm, numerics, None, self._tell)
        if before_iteration is not None:
            self._run.gate = self._gate
        self._run.begin()
        env.process(self._drive())

    @property
    def result(self) -> Result:
        """The figures of the run. Raises WagmaError before its end."""
        if self.trace is None:
            raise WagmaError(f"{self._run.scenario.name}: the cluster is not done yet, so it has no result")
        return summarize(self.trace)

    @property
    def now_ns(self) -> int:
        """The cluster's own time: nanoseconds since its beginning, pauses left out."""
        now: float = self.env.now if self._paused is None else self._paused
        return round((now - self._origin) * self._unit_ns)

    def pause(self) -> None:
        """Everything stands still until `resume`: computing, and messages on their way. A second pause changes nothing."""
        if self._paused is None:
            self._paused = self.env.now

    def resume(self) -> None:
        """Go on where `pause` stopped it."""
        if self._paused is not None:
            self._origin += self.env.now - self._paused
            self._paused = None
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, self.env.event()
        changed.succeed()

    def _drive(self) -> Generator[simpy.Event, Any, None]:
        """Let the cluster's own environment follow the other one, moment by moment."""
        own = self._run.env
        try:
            while True:
                if self._failed is not None:
                    raise self._failed
                at = own.peek()
                if self._paused is not None or (math.isinf(at) and self._held):
                    yield self._changed
                    continue
                if math.isinf(at):
                    break
                left = self._origin + (at if self._unit_ns == 1 else at / self._unit_ns) - self.env.now
                if left > 0:
                    later = self.env.timeout(left)
                    # Only a rank that was held can go on before that.
                    yield later | self._changed if self._held else later
                    continue
                while own.peek() <= at:
                    own.step()
            self.trace = self._run.end()
        except WagmaError as error:
            self.done.fail(error)
            return
        self.done.succeed(self.trace)

    def _gate(self, rank: int, iteration: int) -> simpy.Event | None:
        """An event of the own environment that follows the one that the caller wants the rank to wait for."""
        assert self._before is not None
        awaited = self._before(rank, iteration)
        if awaited is None:
            return None
        if awaited.processed:
            if not awaited.ok:
                raise _not_let_in(rank, iteration, awaited)
            return None
        own = self._run.env
        opened = own.event()
        self._held += 1

        def open_gate(event: simpy.Event) -> None:
            if not event.ok:  # whoever made it fail may have defused it, and the rank would wait for ever
                self._failed = _not_let_in(rank, iteration, event)
                self._wake()
                return
            self._held -= 1
            opened._ok, opened._value = True, None
            own.schedule(opened, delay=max(0, self.now_ns - int(own.now)))
            self._wake()

        awaited.callbacks.append(open_gate)
        return opened

    def _tell(self, _now_ns: int, finished: int) -> None:
        self.finished = finished
        if self._after is not None:
            self._after(self._run.iterations[-1])


def _not_let_in(rank: int, iteration: int, event: simpy.Event) -> WagmaError:
    return WagmaError(f"rank {rank}: what before_iteration returned for iteration {iteration} failed: {event.value!r}")
