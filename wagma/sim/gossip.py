"""Exchanges with neighbours, averaging in pairs and barriers in virtual time.

A model travels as one LogGP message; a rank's messages leave its one network interface one after the other. What a neighbour sent
early is kept until it is asked for. The partner of a pair is served at the instant the message arrives, whatever it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from wagma.core.effects import Exchange, PairAverage, Value
from wagma.core.groups import ceil_log
from wagma.core.protocol import NONE
from wagma.errors import WagmaError
from wagma.sim.network import LogGP
from wagma.sim.numerics import Numerics
from wagma.trace import ExchangeRecord

OVER = 1 << 62  # beyond every iteration


@dataclass(slots=True)
class Parcel:
    """What travels: a model, its weights, and the iteration in which its sender was. whole_ns: when the last of the model is computed."""

    value: Any
    stamp: int
    share: float = 1
    mass: float = 1
    whole_ns: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """The outcome of an exchange: the weighted sum (None: no sources) and the mass."""

    total: Any
    mass: float


@dataclass(slots=True)
class Pending:
    """An exchange or a pair that a rank waits for. busy_until: when the overhead of its own messages is over."""

    rank: int
    record: ExchangeRecord
    released: simpy.Event
    parcel: Parcel
    busy_until: int = 0
    added: bool = False  # whether what came is being added up, until busy_until


class Gossip:
    """All ranks' exchanges on one network; `exchanges` collects the records.

    next_sequence(rank) continues the causal order of a rank's records.
    """

    def __init__(
        self, env: simpy.Environment, network: LogGP, ranks: int, size: int, numerics: Numerics,
        next_sequence: Callable[[int], int],
    ) -> None:  # fmt: skip
        self.exchanges: list[ExchangeRecord] = []
        self._env = env
        self._network = network
        self._ranks = ranks
        self._size = size
        self._numerics = numerics
        self._next_sequence = next_sequence
        self._iterations = [NONE] * ranks  # which one each rank has begun
        self._awaited: dict[int, tuple[int, simpy.Event]] = {}  # by rank: what its second activity waits for
        self._averaged = [NONE] * ranks  # which iteration each rank's second activity has done with
        self._averaging: dict[int, tuple[int, simpy.Event]] = {}  # by rank: what its first activity waits for
        self._pending: dict[int, Pending] = {}  # by rank: its exchange
        self._inbox: list[dict[int, dict[int, Parcel]]] = [{} for _ in range(ranks)]  # by receiver, iteration, sender
        self._barriers: dict[int, dict[int, simpy.Event]] = {}  # by iteration and rank
        self._whole_ns: dict[int, int] = {}  # by iteration: of those that wait at its barrier
        self._pairs = 0  # under way

    # -- what a rank has begun ---------------------------------------------------------------------------------------------

    def begin(self, rank: int, iteration: int) -> None:
        """The rank's first activity begins an iteration."""
        self._iterations[rank] = iteration
        awaited = self._awaited.get(rank)
        if awaited is not None and awaited[0] <= iteration:
            del self._awaited[rank]
            awaited[1].succeed()

    def end(self, rank: int) -> None:
        """The rank's first activity has done its last iteration; whoever waits for a further one is released."""
        if (awaited := self._awaited.pop(rank, None)) is not None:
            awaited[1].succeed()

    def await_iteration(self, rank: int, iteration: int) -> simpy.Event:
        """An event for when the rank's first activity has begun `iteration`, or has ended; the second one has done with those before."""
        self.averaged(rank, iteration - 1)
        event = self._env.event()
        if self._iterations[rank] >= iteration:
            event.succeed()
        else:
            self._awaited[rank] = iteration, event
        return event

    def averaged(self, rank: int, iteration: int = OVER) -> None:
        """The rank's second activity has done with `iteration`, or with all of them."""
        self._averaged[rank] = iteration
        averaging = self._averaging.get(rank)
        if averaging is not None and averaging[0] <= iteration:
            del self._averaging[rank]
            averaging[1].succeed()

    def await_averaging(self, rank: int, iteration: int) -> simpy.Event:
        """An event for when the rank's second activity has done with `iteration`."""
        event = self._env.event()
        if self._averaged[rank] >= iteration:
            event.succeed()
        else:
            self._averaging[rank] = iteration, event
        return event

    # -- synchronous exchanges ---------------------------------------------------------------------------------------------

    def exchange(self, rank: int, effect: Exchange, value: Any, whole_ns: int = 0) -> simpy.Event:
        """Send `value`, whole at whole_ns, to the ranks `effect.to`; the event's value is what came from all sources: Received."""
        parcel = Parcel(value, effect.iteration, effect.share, effect.mass, whole_ns)
        record = self._record(rank, "neighbours", effect.iteration, effect.to, effect.sources, value)
        pending = self._pending[rank] = Pending(rank, record, self._env.event(), parcel, self._now)
        for to in record.to:
            pending.busy_until = self._network.send(rank, to, self._size, self._deliver, to, rank, parcel)
        self._advance(pending)
        return pending.released

    def _deliver(self, rank: int, sender: int, parcel: Parcel) -> None:
        self._inbox[rank].setdefault(parcel.stamp, {})[sender] = parcel
        pending = self._pending.get(rank)
        if pending is not None and pending.parcel.stamp == parcel.stamp:
            self._advance(pending)

    def _advance(self, pending: Pending) -> None:
        """Release the rank once all sources have sent and its own overhead is over."""
        record = pending.record
        came = self._inbox[pending.rank].get(pending.parcel.stamp, {})
        if any(source not in came for source in record.sources):
            return
        if not pending.added:
            ready = max([self._now, pending.busy_until, *(came[source].whole_ns for source in record.sources)])
            pending.busy_until = ready + len(record.sources) * self._network.parameters.adding_ns(self._size)
            pending.added = True
        if pending.busy_until > self._now:
            self._network.call(pending.busy_until - self._now, self._advance, pending)
            return
        parcels = [came.pop(source) for source in record.sources]
        if not came:
            self._inbox[pending.rank].pop(pending.parcel.stamp, None)
        del self._pending[pending.rank]
        record.shares = [parcel.share for parcel in parcels]
        total = self._numerics.weighted_sum([parcel.value for parcel in parcels], record.shares)
        record.result_digest = None if total is None else self._numerics.digest(total)
        self._finish(record, parcels)
        pending.released.succeed(Received(total, sum(parcel.mass for parcel in parcels)))

    # -- pairs -------------------------------------------------------------------------------------------------------------

    def average_pair(self, rank: int, effect: PairAverage) -> simpy.Event:
        """Average models with the partner; the event fires when the rank's own half of it is done."""
        if effect.partner == rank:
            raise WagmaError(f"rank {rank}: {effect!r} asks for an average with itself")
        sent = self._numerics.publish(rank, Value.MODEL)
        record = self._record(rank, "active", effect.iteration, [effect.partner], [effect.partner], sent)
        record.sent_sequence = self._next_sequence(rank)
        pending = Pending(rank, record, self._env.event(), Parcel(sent, self._iterations[rank]))
        self._pairs += 1
        self._network.send(rank, effect.partner, self._size, self._asked, effect.partner, pending)
        return pending.released

    def _asked(self, partner: int, pending: Pending) -> None:
        """The message is there; the partner's progress thread acts on it."""
        if delay := round(self._network.parameters.progress_computing_ns):
            self._network.call(delay, self._serve, partner, pending)
        else:
            self._serve(partner, pending)

    def _serve(self, partner: int, pending: Pending) -> None:
        """The message is there: average at once, and answer with the model as it was."""
        own = self._numerics.publish(partner, Value.MODEL)
        record = self._record(partner, "passive", pending.record.version, [pending.rank], [pending.rank], own)
        self._average(record, pending.parcel, own)
        self._network.send(partner, pending.rank, self._size, self._answered, pending, Parcel(own, record.iteration))

    def _answered(self, pending: Pending, parcel: Parcel) -> None:
        self._average(pending.record, parcel, pending.parcel.value)
        self._pairs -= 1
        pending.released.succeed()

    def _average(self, record: ExchangeRecord, parcel: Parcel, sent: Any) -> None:
        record.own_digest = self._model_digest(record.rank)
        self._numerics.average_pair(record.rank, parcel.value, sent)
        record.result_digest = self._model_digest(record.rank)
        self._finish(record, [parcel])

    # -- barriers ----------------------------------------------------------------------------------------------------------

    def barrier(self, rank: int, iteration: int, whole_ns: int = 0) -> simpy.Event:
        """An event that fires for all ranks ceil(log2 P) hops of a small message after the last one has come.

        That is a dissemination barrier (Hensgen, Finkel, Manber, 1988) of the last rank; that of others may be through in part already.
        The event's value is the latest whole_ns of all ranks: when the compute ends that some of them have begun to communicate in.
        """
        waiting = self._barriers.setdefault(iteration, {})
        event = waiting[rank] = self._env.event()
        self._whole_ns[iteration] = max(whole_ns, self._whole_ns.get(iteration, 0))
        if len(waiting) == self._ranks:
            del self._barriers[iteration]
            hops = ceil_log(self._ranks, 2)
            delay, whole_ns = hops * round(self._network.parameters.activation_ns or 0), self._whole_ns.pop(iteration)
            self._network.call(delay, _release, list(waiting.values()), whole_ns)
        return event

    # -- the end -----------------------------------------------------------------------------------------------------------

    def check_done(self) -> None:
        """Raise WagmaError if the network fell silent while a rank waits, or with models that nobody took."""
        stuck = [
            f"rank {p.rank} waits in iteration {p.record.version} for the models of "
            f"ranks {sorted(set(p.record.sources) - self._inbox[p.rank].get(p.parcel.stamp, {}).keys())}"
            for p in self._pending.values()
        ]
        for iteration, waiting in self._barriers.items():
            missing = sorted(set(range(self._ranks)) - waiting.keys())
            stuck.append(f"ranks {sorted(waiting)} wait at the barrier of iteration {iteration} for ranks {missing}")
        if stuck:
            raise WagmaError(f"the simulation is stuck at {self._now} ns: {'; '.join(stuck[:4])}")
        for rank, inbox in enumerate(self._inbox):
            for iteration, came in inbox.items():
                raise WagmaError(
                    f"rank {rank} never took the models that ranks {sorted(came)} sent it in iteration {iteration}: its "
                    "sources do not name them"
                )
        if self._pairs:
            raise WagmaError(f"the simulation is stuck at {self._now} ns: {self._pairs} pairs are not answered")

    # -- records -----------------------------------------------------------------------------------------------------------

    def _record(
        self, rank: int, role: str, version: int, to: Sequence[int], sources: Sequence[int], sent: Any
    ) -> ExchangeRecord:
        return ExchangeRecord(
            rank, NONE, role, version, self._iterations[rank], [int(peer) for peer in to], [int(peer) for peer in sources], [], [],
            self._now, NONE, self._numerics.digest(sent),
        )  # fmt: skip

    def _model_digest(self, rank: int) -> str | None:
        """Of the model as it stands; a copy of it is made only if there are digests."""
        return None if self._numerics.kind == "off" else self._numerics.digest(self._numerics.publish(rank, Value.MODEL))

    def _finish(self, record: ExchangeRecord, parcels: Sequence[Parcel]) -> None:
        """All that the record lacks is known: the end, and what came."""
        record.sequence, record.completed_ns = self._next_sequence(record.rank), self._now
        record.iteration = self._iterations[record.rank]
        record.stamps = [parcel.stamp for parcel in parcels]
        digests = (self._numerics.digest(parcel.value) for parcel in parcels)
        record.received_digests = [text for text in digests if text is not None]
        self.exchanges.append(record)

    @property
    def _now(self) -> int:
        return int(self._env.now)


def _release(events: Sequence[simpy.Event], value: int) -> None:
    for event in events:
        event.succeed(value)
