"""Runs an algorithm's generator on a real rank.

The trampoline is the counterpart of `wagma.sim.driver.Rank`: it knows how each effect happens here, and no algorithm. The
gradient is the user's own loop: `advance` runs from one ComputeGradient to the next.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from wagma.algorithms import Specification
from wagma.core.effects import Allreduce, ApplyUpdate, Average, ComputeGradient, GroupAllreduce, GroupOutcome, Value
from wagma.core.schedule import Schedule
from wagma.core.settings import AlgorithmSettings
from wagma.errors import WagmaError
from wagma.real.kernel import Engine
from wagma.real.recorder import Recorder

if TYPE_CHECKING:
    from wagma import _native

Array = npt.NDArray[Any]


class Flat(Protocol):
    """Tensors as one array (wagma.workloads.flat.FlatView)."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""

    def read(self, out: Array | None = None) -> Array:
        """All values."""

    def write(self, values: Array) -> None:
        """Put values back."""


class Resident(Protocol):
    """Parameters in the engine's buffers (wagma.real.resident)."""

    def attach(self) -> None:
        """Let the parameters look at the buffer that now holds the model."""


class RankDriver:
    """One rank's generator and what its effects act on. `iterations` is endless: the user's loop decides."""

    def __init__(
        self,
        specification: Specification,
        rank: int,
        schedule: Schedule,
        engine: Engine | None,
        flats: Mapping[Value, Flat],
        apply_update: Callable[[], Any],
        recorder: Recorder | None,
        resident: Resident | None = None,
    ) -> None:
        self.iterations = itertools.count()
        self.rank = rank
        self.schedule = schedule
        self.settings = AlgorithmSettings()
        self.iteration = 0  # the one whose gradient is being computed
        self._specification = specification
        self._engine = engine
        self._flats = flats
        self._apply_update = apply_update
        self._recorder = recorder
        self._resident = resident
        self._buffer = np.empty(flats[Value.MODEL].size, flats[Value.MODEL].dtype)
        self._group_length = 0
        self._error: BaseException | None = None
        self._algorithm = specification.run(self)
        self._expect_gradient(next(self._algorithm))

    def advance(self, skip: bool = False) -> None:
        """The gradient is there: run the algorithm until it wants the next one. `skip`: without the local update.

        Raises CollectiveTimeout, PeerFailed, or whatever the update raises; and the same again when called after that, since
        an algorithm cannot go on from the middle of an iteration.
        """
        if self._error is not None:
            raise self._error
        try:
            self._run(skip)
        except BaseException as error:
            self._error = error
            raise

    def _run(self, skip: bool) -> None:
        outcome: Any = None
        while True:
            effect = self._algorithm.send(outcome)
            outcome = None
            match effect:
                case ComputeGradient():
                    if self._recorder is not None:
                        self._recorder.finish_iteration(self.iteration, self._flats[Value.MODEL].read(), skip)
                    self._expect_gradient(effect)
                    return
                case ApplyUpdate():
                    if not skip:
                        self._apply_update()
                case Allreduce():
                    self._allreduce(effect)
                case GroupAllreduce():
                    joined = self._join(effect)
                    self._group_length = joined.group_length
                    if not joined.group_length:
                        self._put(Value.MODEL)
                    outcome = GroupOutcome(int(joined.fresh), joined.group_length)
                case Average():
                    self._average(effect)
                case _:
                    raise WagmaError(f"{effect!r} is no effect that a real rank knows")

    def _expect_gradient(self, effect: object) -> None:
        if not isinstance(effect, ComputeGradient):
            raise WagmaError(f"algorithm {self._specification.name}: {effect!r} comes before the first ComputeGradient")
        self.iteration = effect.iteration

    def _join(self, effect: Allreduce | GroupAllreduce) -> _native.Outcome:
        if self._engine is None:
            raise WagmaError(f"algorithm {self._specification.name}: registered without collectives, but yields {effect!r}")
        own = self._take(effect.value)
        before = time.monotonic_ns()
        joined = self._engine.arrive(effect.iteration, own)
        if self._recorder is not None:
            self._recorder.waited(time.monotonic_ns() - before)
        return joined

    def _allreduce(self, effect: Allreduce) -> None:
        self._join(effect)
        assert self._engine is not None
        self._engine.copy_result(self._own)
        self._put(effect.value)

    def _average(self, effect: Average) -> None:
        assert self._engine is not None
        if self._group_length:
            self._engine.merge(self._own, effect.own_weight, effect.divisor)
            self._put(Value.MODEL)

    @property
    def _own(self) -> Array | None:
        """What the engine reads from and writes to; None: its own buffers."""
        return None if self._resident else self._buffer

    def _take(self, value: Value) -> Array | None:
        if self._resident is None:
            self._flats[value].read(self._buffer)
        return self._own

    def _put(self, value: Value) -> None:
        if self._resident is None:
            self._flats[value].write(self._buffer)
        else:
            self._resident.attach()
