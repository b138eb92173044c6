"""Runs an algorithm's generator on a real rank.

The trampoline is the counterpart of `wagma.sim.driver.Rank`: it knows how each effect happens here, and no algorithm. The
gradient is the user's own loop: `advance` runs from one ComputeGradient to the next.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wagma.algorithms import Specification
from wagma.core.averaging import merge, weighted
from wagma.core.effects import (
    Allreduce,
    ApplyUpdate,
    Average,
    AwaitAveraging,
    Barrier,
    ComputeGradient,
    Exchange,
    ExchangeOutcome,
    GroupAllreduce,
    GroupOutcome,
    PairAverage,
    Recover,
    Scale,
    Value,
)
from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.core.settings import AlgorithmSettings
from wagma.errors import WagmaError
from wagma.real.algorithms import gossips_in_pairs
from wagma.real.carriers import Carrier, HostCarrier
from wagma.real.devices.place import HOST, Place
from wagma.real.gossip.exchange import Gossip, Received
from wagma.real.gossip.second import View, start_second
from wagma.real.gossip.shared import Flat, SharedModel
from wagma.real.kernel import Engine
from wagma.real.seeing.recorder import Recorder

if TYPE_CHECKING:
    from wagma import _native

Array = npt.NDArray[Any]


class RankDriver:
    """One rank's generator and what its effects act on; of algorithms that gossip, the thread of a second one, too.

    Where pairs average models (`wagma.real.gossip.shared`) the parameters are a snapshot, and all effects work on the original. carrier:
    between the tensors, which are at `where`, and the engine; None: through host memory.
    """

    def __init__(
        self,
        specification: Specification,
        rank: int,
        schedule: Schedule,
        engine: Engine | None,
        flats: Mapping[Value, Flat],
        apply_update: Callable[[], Any],
        recorder: Recorder | None,
        carrier: Carrier | None = None,
        *,
        settings: AlgorithmSettings | None = None,
        gossip: Gossip | None = None,
        where: Place = HOST,
    ) -> None:
        self.rank = rank
        self.schedule = schedule
        self.settings = settings or AlgorithmSettings()
        self.iteration = schedule.begin  # the one whose gradient is being computed
        self._specification = specification
        self._engine = engine
        self._flats = dict(flats)
        self._apply_update = apply_update
        self._recorder = recorder
        self._gossip = gossip
        self._shared: SharedModel | None = None
        self._lock: AbstractContextManager[Any] = nullcontext()  # what an iteration ends, and updates, under
        self._group_length = 0
        self._received: Received | None = None  # what Average works on; None: the engine's result
        self._exchanged = NONE  # the last iteration in which it exchanged
        self._begun = gossip is None
        self._error: BaseException | None = None
        if gossip is not None:
            self._prepare(gossip)
        self._carrier = carrier or HostCarrier(self._flats, self._shared is None, where)
        self._algorithm = specification.run(self)
        self._expect_gradient(next(self._algorithm))

    @property
    def iterations(self) -> Iterable[int]:
        """Endless: the user's loop decides. A count for each of a rank's activities."""
        return itertools.count(self.schedule.begin)

    def _prepare(self, gossip: Gossip) -> None:
        if gossips_in_pairs(self._specification):
            gossip.model = self._shared = SharedModel(self._flats[Value.MODEL], gossip.changed)
            self._flats[Value.MODEL] = self._shared
            self._lock = gossip.changed
        if self._recorder is not None:
            gossip.record = self._recorder.exchanged if self._recorder.collects else None
            gossip.place = self._recorder.place
            gossip.digests = self._recorder.digests
            self._recorder.on_restart, self._recorder.lock = self.begin, gossip.changed
        gossip.iterate = self._go_on
        gossip.start()

    def begin(self) -> None:
        """The first iteration begins, and with it a second activity; at the first `advance` at the latest. Again: nothing."""
        if self._begun or self._gossip is None:
            return
        self._begun = True
        self._gossip.begin(self.iteration)
        if (second := self._specification.companion) is not None:
            start_second(self._gossip, second(View(self.rank, self.schedule, self.settings)))

    def begin_at(self, iteration: int, published: Array | None) -> None:
        """Of a run that is resumed, before the first `advance`: its first iteration, and the engine's.

        published: what `published` gave where the run was stopped; None: that is what the parameters hold.
        """
        own = self._flats[Value.MODEL]
        # Of another size: saved when this rank's model went through the collectives, in whose place there is a stand-in now.
        initial = own.read() if published is None or published.size != own.size else published
        if self._engine is not None:
            self._engine.begin_at(iteration, initial)
        self._carrier.begin(initial)
        self.schedule = replace(self.schedule, begin=iteration)
        self._algorithm = self._specification.run(self)
        self._expect_gradient(next(self._algorithm))
        if self._recorder is not None:
            self._recorder.resumed(initial)

    @property
    def carrier(self) -> Carrier:
        """Between the rank's tensors and its engine."""
        return self._carrier

    def advance(self, skip: bool = False) -> None:
        """The gradient is there: run the algorithm until it wants the next one. `skip`: without the local update.

        Raises CollectiveTimeout, PeerFailed, or whatever the update raises; and the same again when called after that, since
        an algorithm cannot go on from the middle of an iteration.
        """
        if self._error is not None:
            raise self._error
        try:
            self.begin()
            if self._gossip is not None:
                self._gossip.check()
            self._run(skip)
        except BaseException as error:
            self._error = error
            raise

    def close(self) -> None:
        """This rank's program has ended: serve those that gossip until all have closed. Raises as `advance` does; again: nothing."""
        if self._gossip is not None:
            self._gossip.close()

    def ended(self) -> None:
        """All ranks have closed."""
        if self._recorder is not None:
            self._recorder.ended(self._flats[Value.MODEL].read)

    def _go_on(self) -> None:
        """Of a rank that has closed: one more iteration, since others exchange in it. It has no gradient any more."""
        if self._specification.value is Value.GRADIENT:
            gradient = self._flats[Value.GRADIENT]
            gradient.write(np.zeros(gradient.size, gradient.dtype))
        self.advance(skip=True)

    def _run(self, skip: bool) -> None:
        outcome: Any = None
        while True:
            effect = self._algorithm.send(outcome)
            outcome = None
            match effect:
                case ComputeGradient():
                    self._finish_iteration(effect, skip)
                    return
                case ApplyUpdate():
                    self._update(skip)
                case Allreduce():
                    self._allreduce(effect)
                case GroupAllreduce():
                    joined = self._join(effect)
                    self._group_length, self._received = joined.group_length, None
                    if not joined.group_length:
                        self._carrier.joined()
                    outcome = GroupOutcome(int(joined.fresh), joined.group_length)
                case Average():
                    self._average(effect)
                case Recover():
                    if self._collective(effect).retract(self._carrier.place(effect.value, read=True)):
                        self._carrier.put(effect.value)
                case Scale():
                    self._scale(effect)
                case Exchange():
                    self._received = self._exchange(effect)
                    outcome = ExchangeOutcome(self._received.mass)
                case Barrier() | PairAverage() | AwaitAveraging():
                    self._wait(effect)
                case _:
                    raise WagmaError(f"rank {self.rank}: {effect!r} is no effect that a real rank knows")

    def _finish_iteration(self, effect: ComputeGradient, skip: bool) -> None:
        with self._lock:
            if self._recorder is not None:
                self._recorder.finish_iteration(self.iteration, self._flats[Value.MODEL].read, skip)
            self._expect_gradient(effect)
            if self._gossip is not None:
                self._gossip.begin(self.iteration)
            if self._shared is not None:
                self._shared.settle()

    def _expect_gradient(self, effect: object) -> None:
        if not isinstance(effect, ComputeGradient):
            raise WagmaError(f"algorithm {self._specification.name}: {effect!r} comes before the first ComputeGradient")
        self.iteration = effect.iteration

    def _update(self, skip: bool) -> None:
        self._carrier.updated()
        with self._lock:
            if not skip and self._shared is not None:
                self._shared.update(self._apply_update)
            elif not skip:
                self._apply_update()
            if self._recorder is not None and self._shared is not None:
                self._recorder.updated()

    # -- collectives -------------------------------------------------------------------------------------------------------

    def _collective(self, effect: object) -> Engine:
        if self._engine is None:
            raise WagmaError(f"algorithm {self._specification.name}: registered without collectives, but yields {effect!r}")
        return self._engine

    def _join(self, effect: Allreduce | GroupAllreduce) -> _native.Outcome:
        engine, own = self._collective(effect), self._carrier.take(effect.value)
        # A rank that has closed goes on with both: exchanges come with the collectives of their iteration.
        if self._gossip is not None:
            self._gossip.join(effect.iteration)
        with self._waiting():
            return engine.arrive(effect.iteration, own)

    def _allreduce(self, effect: Allreduce) -> None:
        self._join(effect)
        self._collective(effect).copy_result(self._carrier.place(effect.value, read=False))
        self._carrier.put(effect.value)

    def _average(self, effect: Average) -> None:
        weight, divisor = effect.own_weight, effect.divisor
        flat = self._flats[effect.value]
        with self._lock:
            if self._received is not None:
                flat.write(merge(self._received.total, flat.read(), weight, divisor))
            elif not self._group_length:  # merge_once, and nothing new
                if weight != divisor:
                    flat.write(merge(None, flat.read(), weight, divisor))
            elif weight in (0, 1) and divisor == int(divisor):  # which is what the kernel knows
                own = self._carrier.place(effect.value, read=bool(weight))
                self._collective(effect).merge(own, int(weight), int(divisor))
                self._carrier.put(effect.value)
            else:
                total = self._carrier.result(self._collective(effect))
                flat.write(merge(total, flat.read(), weight, divisor))

    def _scale(self, effect: Scale) -> None:
        self._carrier.updated()
        flat = self._flats[Value.MODEL]
        with self._lock:
            if effect.factor != 1:
                flat.write(weighted(flat.read(), effect.factor))

    # -- gossip ------------------------------------------------------------------------------------------------------------

    def _talk(self, effect: object) -> Gossip:
        if self._gossip is None:
            raise WagmaError(
                f"algorithm {self._specification.name}: registered as {self._specification.collectives!s}, but yields {effect!r}; "
                "real ranks have that where it is registered as neighbours or pairs"
            )
        return self._gossip

    def _exchange(self, effect: Exchange) -> Received:
        gossip = self._talk(effect)
        if effect.iteration <= self._exchanged:
            raise self._specification.exchanged_twice(effect.iteration)
        self._exchanged = effect.iteration
        value = self._flats[effect.value].read()
        if self._recorder is not None:
            self._recorder.published(value)
        with self._waiting():
            return gossip.exchange(effect, value)

    def _wait(self, effect: Barrier | PairAverage | AwaitAveraging) -> None:
        gossip = self._talk(effect)
        with self._waiting():
            match effect:
                case Barrier():
                    gossip.barrier(effect.iteration)
                case AwaitAveraging():
                    gossip.await_averaging(effect.iteration)
                case PairAverage() if self._shared is not None:
                    gossip.average_pair(effect)
                case PairAverage():
                    raise WagmaError(
                        f"algorithm {self._specification.name}: registered as {self._specification.collectives!s}, but yields "
                        f"{effect!r}; real ranks have that where it is registered as pairs, or with a companion"
                    )

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        before = time.monotonic_ns()
        yield
        if self._recorder is not None:
            self._recorder.waited(before)
