"""The simulator's collective, exchanges and ranks, held back until the recording says that it is time.

What is recorded decides when: a rank's gradient is there, it arrives, knows of a version, has a sum, has been read, sends a model, answers.
Everything else is the simulator's own: decision machines, association trees, averages, the algorithm's generators.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import simpy

from wagma.core.effects import PairAverage, RankView
from wagma.core.protocol import NONE, Forward, Solo, Start
from wagma.core.schedule import Schedule
from wagma.core.settings import AlgorithmSettings
from wagma.sim.collective import Collective, Member, Running
from wagma.sim.driver import Rank
from wagma.sim.gossip import Gossip, Parcel, Pending
from wagma.sim.network import Call, LogGP
from wagma.sim.numerics import Numerics, Replicas
from wagma.sim.replay.compare import AT_END, AT_START, OF_EXCHANGE, Comparison, Difference, Recorded, named, take_times
from wagma.sim.replay.script import Kind, Step
from wagma.timing.network import Network
from wagma.trace import ExchangeRecord, Iteration

if TYPE_CHECKING:
    from wagma.sim.replay.run import Replay
    from wagma.workloads.replica import Replica

FAR = 1 << 62  # the end of a compute, which only the recording knows


class Mail(LogGP):
    """A network on which messages take no time, but for activations: they lie with their receivers until the recording has one seen."""

    def __init__(self, env: simpy.Environment, ranks: int) -> None:
        super().__init__(env, ranks, Network())
        self.forwards: list[list[Forward]] = [[] for _ in range(ranks)]
        self.told: list[list[Solo]] = [[] for _ in range(ranks)]

    def activate(self, sender: int, activations: Sequence[Call]) -> None:
        """Put them where they go. A call's arguments are the machine's output."""
        for _, output in activations:
            if isinstance(output, Forward):
                self.forwards[output.rank].append(output)
            elif isinstance(output, Solo):
                self.told[output.rank].append(output)


class ReplayedCollective(Collective):
    """Decision machines that are fed in recorded order, and whose starts and sums have to be those on record."""

    def __init__(
        self, env: simpy.Environment, schedule: Schedule, size: int, numerics: Numerics, merge_once: bool,
        scripts: Sequence[deque[Step]], recorded: Recorded, comparison: Comparison,
    ) -> None:  # fmt: skip
        super().__init__(env, schedule, Network(), size, numerics, merge_once)
        self.network = self.mail = Mail(env, schedule.world_size)
        #: By rank: the version that its program wants to join, with what, and what tells it of the result.
        self.requests: dict[int, tuple[int, Any, simpy.Event]] = {}
        self.summed: dict[tuple[int, int], Running] = {}  # by rank and version: what only waits for its time
        self._scripts = scripts
        self._recorded = recorded
        self._comparison = comparison
        self._early: set[tuple[int, int]] = set()  # versions that a closed rank has started before their time
        self._closing: dict[int, Any] = {}  # ranks that wait for a buffer to close with, and their models

    # -- what ranks ask for ------------------------------------------------------------------------------------------------

    def arrive(self, rank: int, version: int, value: Any, whole_ns: int = 0) -> simpy.Event:
        """The rank has published; the version joins when the recording says so."""
        released: simpy.Event = self.env.event()
        self.requests[rank] = version, value, released
        return released

    def close(self, rank: int, model: Any) -> None:
        """As it is inherited, as soon as no peer reads any more."""
        self._closing[rank] = model
        self.close_some()

    def close_some(self) -> None:
        """Close the ranks that wait for that and can."""
        for rank in list(self._closing):
            if not self.schedule.accumulate or self.members[rank].machine.live != NONE:
                super().close(rank, self._closing.pop(rank))
                self.deliver()

    # -- what the recording says -------------------------------------------------------------------------------------------

    def may(self, step: Step) -> bool:
        """Whether all that the step needs of other ranks, and of the rank's own program, has happened."""
        rank, machine = step.rank, self.members[step.rank].machine
        match step.kind:
            case Kind.ARRIVED:
                asked = rank in self.requests and self.requests[rank][0] == step.number and machine.live != NONE
                return asked and (not self._has_to_hear(step) or self._can_hear(rank, step.number))
            case Kind.ACTIVATED:
                known = any(forward.version >= step.number for forward in self.mail.forwards[rank])
                alone = step.number <= machine.waiting and self._can_hear(rank, machine.waiting)
                return known or alone or machine.activated >= step.number
            case Kind.STARTED:
                if (rank, step.number) not in self._early and not machine.closed:
                    raise Difference(f"{step}: and the decision machine does not start it by then")
                return (rank, step.number) in self._early
            case Kind.SUMMED:
                return (rank, step.number) in self.summed
            case _:
                return machine.reading != NONE and machine.executing == NONE

    def perform(self, step: Step) -> None:
        """Let it happen."""
        match step.kind:
            case Kind.ARRIVED:
                self._arrived(step)
            case Kind.ACTIVATED:
                self._known(step)
            case Kind.SUMMED:
                running = self.summed.pop((step.rank, step.number))
                self._sum(self.members[step.rank], running)
                recorded = self._recorded.execution(running.record)
                self._comparison.check(recorded, running.record, AT_END)
                take_times(recorded, running.record)
            case Kind.READ:
                member = self.members[step.rank]
                self._apply(member, member.machine.read_done)
        self.deliver()
        self.close_some()

    def _arrived(self, step: Step) -> None:
        version, value, released = self.requests.pop(step.rank)
        if self._has_to_hear(step):
            self._hear(step.rank)
        joined = super().arrive(step.rank, version, value)
        _pass_on(joined, released)

    def _known(self, step: Step) -> None:
        """Feed the activations that have come, as ones of this version: a later one says no less, and is kept as well for its own time."""
        member, version = self.members[step.rank], step.number
        if member.machine.activated >= version:
            if not member.machine.closed:
                raise Difference(f"{step}: expected no activation, as it knew of the version before")
            return
        came = sorted((f for f in self.mail.forwards[step.rank] if f.version >= version), key=lambda f: f.dimension)
        if not came:
            self._hear(step.rank)
        for forward in came:
            self._activated(version, forward.dimension, step.rank)

    def _has_to_hear(self, step: Step) -> bool:
        """Whether its arrival activated the version, which it may only if somebody has closed."""
        execution, machine = self._recorded.executions.get((step.rank, step.number)), self.members[step.rank].machine
        return execution is not None and execution.activator and not machine.activates(step.number)

    def _waits_unheard(self, rank: int, version: int) -> bool:
        """Whether the rank waits for an activation of this version or a later one, or is to do so, that it would put out by itself if it
        knew that somebody has closed before `version`.
        """
        machine = self.members[rank].machine
        if machine.waiting > machine.activated and machine.waiting >= version:
            return True
        for step in self._scripts[rank]:
            a = step.record
            if step.kind is not Kind.ARRIVED or not isinstance(a, Iteration) or not a.fresh or step.number < version:
                continue
            execution = self._recorded.executions.get((rank, step.number))
            if execution is None or self.schedule.may_activate(rank, step.number):
                continue
            if execution.activator or execution.activated_ns > a.arrival_ns:
                return not execution.activator  # else it was activated before it came, and tells nothing
        return False

    def _can_hear(self, rank: int, version: int) -> bool:
        return any(solo.version <= version for solo in self.mail.told[rank])

    def _hear(self, rank: int) -> None:
        """It hears of ranks that have closed."""
        told, self.mail.told[rank] = self.mail.told[rank], []
        for solo in told:
            self._apply(self.members[rank], self.members[rank].machine.solo, solo.version, solo.dimension)

    def deliver(self) -> None:
        """Activations of versions that their receivers know already start nothing, and are only passed on; the same with closings."""
        moved = True
        while moved:
            moved = False
            for rank, told in enumerate(self.mail.told):
                if told and not self._waits_unheard(rank, min(solo.version for solo in told)):
                    self._hear(rank)
                    moved = True
            for rank, forwards in enumerate(self.mail.forwards):
                known = self.members[rank].machine.activated
                stale = [forward for forward in forwards if forward.version <= known]
                if stale:
                    self.mail.forwards[rank] = [forward for forward in forwards if forward.version > known]
                    moved = True
                for forward in stale:
                    self._activated(forward.version, forward.dimension, rank)

    # -- what machines answer ----------------------------------------------------------------------------------------------

    def _start(self, member: Member, start: Start) -> None:
        rank, script = member.machine.rank, self._scripts[member.machine.rank]
        super()._start(member, start)
        assert member.running is not None
        record = member.running.record
        recorded = self._recorded.execution(record)
        # The end of an iteration starts nothing, and may come between.
        place = next((n for n, step in enumerate(script) if step.kind is not Kind.ENDED), 0)
        if script and script[place].kind is Kind.STARTED and script[place].number == start.version:
            del script[place]
        elif member.machine.closed:  # nothing that this rank decides depends on when
            self._early.add((rank, start.version))
        else:
            text = (
                f"expected it here, before {script[place]}" if script else "expected it before the end of all that is recorded"
            )
            raise Difference(f"{named(record)}: started_ns = {recorded.started_ns}: {text}")
        self._comparison.check(recorded, record, AT_START)

    def _done(self, member: Member, running: Running) -> None:
        self.summed[running.rank, running.version] = running


class ReplayedGossip(Gossip):
    """Pairs that send, answer and average in recorded order; what neighbours exchange waits for nothing but its sources."""

    def __init__(self, replay: Replay, network: LogGP, paired: bool) -> None:
        scenario = replay.scenario
        super().__init__(replay.env, network, scenario.ranks, scenario.model_bytes, replay.numerics, replay.next_sequence)
        self._recorded, self._comparison = replay.recorded, replay.comparison
        self._waits_to_begin = paired
        self._begun: set[int] = set()
        #: Averages that programs wait for, and what has come but is not taken in: by asking rank and version, questions also by partner.
        self.wishes: dict[tuple[int, int], tuple[PairAverage, simpy.Event]] = {}
        self.questions: dict[tuple[int, int, int], Pending] = {}
        self.answers: dict[tuple[int, int], tuple[Pending, Parcel]] = {}

    def begin(self, rank: int, iteration: int) -> None:
        """Others see the first iteration of a rank when the recording says so."""
        if not self._waits_to_begin or rank in self._begun:
            super().begin(rank, iteration)

    def exchange(self, rank: int, effect: Any, value: Any, whole_ns: int = 0) -> simpy.Event:
        """As it is inherited: a model that is sent is whole."""
        return super().exchange(rank, effect, value)

    def average_pair(self, rank: int, effect: PairAverage) -> simpy.Event:
        """The rank's model is sent when the recording says so."""
        released = self._env.event()
        self.wishes[rank, effect.iteration] = effect, released
        return released

    def _asked(self, partner: int, pending: Pending) -> None:
        self.questions[partner, pending.rank, pending.record.version] = pending

    def _answered(self, pending: Pending, parcel: Parcel) -> None:
        self.answers[pending.rank, pending.record.version] = pending, parcel

    def may(self, step: Step) -> bool:
        """Whether all that the step needs has happened."""
        match step.kind:
            case Kind.SENT:
                return (step.rank, step.number) in self.wishes
            case Kind.SERVED:
                return (step.rank, step.asker, step.number) in self.questions
            case Kind.AVERAGED:
                return (step.rank, step.number) in self.answers
            case _:
                return True

    def perform(self, step: Step) -> None:
        """Let it happen."""
        rank, version = step.rank, step.number
        match step.kind:
            case Kind.SENT:
                effect, released = self.wishes.pop((rank, version))
                answered = super().average_pair(rank, effect)
                _pass_on(answered, released)
            case Kind.SERVED:
                self._serve(rank, self.questions.pop((rank, step.asker, version)))
            case Kind.AVERAGED:
                super()._answered(*self.answers.pop((rank, version)))
            case Kind.BEGUN:
                self._begun.add(rank)
                super().begin(rank, version)

    def _record(self, *about: Any) -> ExchangeRecord:
        record = super()._record(*about)
        recorded = self._recorded.exchange(record)
        if record.sent_digest != recorded.sent_digest:  # before the other side averages with it
            text = f"recorded {recorded.sent_digest}, recomputed {record.sent_digest}"
            raise Difference(f"{named(recorded)}: sent_digest: {text}")
        return record

    def _finish(self, record: ExchangeRecord, parcels: Sequence[Parcel]) -> None:
        super()._finish(record, parcels)
        recorded = self._recorded.exchange(record)
        self._comparison.check(recorded, record, OF_EXCHANGE)
        take_times(recorded, record)


@dataclass(frozen=True, slots=True)
class Endless:
    """What a rank's second activity sees: the first one's loop decides when it ends, as with real ranks."""

    rank: int
    schedule: Schedule
    settings: AlgorithmSettings
    begin: int

    @property
    def iterations(self) -> Iterable[int]:
        """Endless."""
        return itertools.count(self.begin)


class ReplayedRank(Rank):
    """A rank that goes through as many iterations as were recorded, and is held when its gradient is there and when an iteration ends."""

    def __init__(self, rank: int, run: Replay, count: int) -> None:
        super().__init__(rank, run)
        self.iterations = range(self.schedule.begin, self.schedule.begin + count)
        self._replay = run

    @property
    def other(self) -> RankView:
        """Its second activity does not know how many there are."""
        return Endless(self.rank, self.schedule, self.settings, self.schedule.begin)

    def is_over(self) -> bool:
        """Its second activity may ask for as many averages as it likes: there are those on record."""
        return False

    @property
    def published(self) -> str | None:
        """The digest of what it has published in this iteration."""
        return None if self._record is None else self._record.published_digest

    def _compute(self, iteration: int, held: int) -> simpy.Event:
        """The gradient; the rank goes on when the recording says that it was there."""
        replay = self._replay
        replay.gossip.begin(self.rank, iteration)
        self._record = Iteration(self.rank, NONE, iteration, 0, 0, None, None, (self.rank, iteration) in replay.skipped)
        self._record.work = replay.numerics.compute_gradient(self.rank, iteration)
        self._computed_until, self._updated = FAR, False
        return replay.hold(Kind.COMPUTED, self.rank, iteration)

    def _finish_compute(self) -> Generator[simpy.Event, Any, None]:
        if self._record is not None:
            yield self._replay.hold(Kind.ENDED, self.rank, self._record.iteration)

    def _finish_iteration(self) -> None:
        """The next iteration begins with the end of this one, as with real ranks; beyond the last one there is one that begins only."""
        record = self._record
        super()._finish_iteration()
        if record is not None:
            self._replay.gossip.begin(self.rank, record.iteration + 1)


def _pass_on(inner: simpy.Event, outer: simpy.Event) -> None:
    """The outer event fires when the inner one does, with its value."""

    def fire(event: simpy.Event) -> None:
        outer.succeed(event.value)

    assert inner.callbacks is not None
    inner.callbacks.append(fire)


class Skipping(Replicas):
    """Real training, but for updates that were skipped."""

    def __init__(self, replicas: Sequence[Replica], skipped: set[tuple[int, int]]) -> None:
        super().__init__(replicas)
        self._skipped = skipped

    def apply_update(self, rank: int, iteration: int) -> None:
        """One step of the local optimizer, unless the recorded rank made none."""
        if (rank, iteration) not in self._skipped:
            super().apply_update(rank, iteration)
