"""The wait-avoiding collective in virtual time: decision machines, with their outputs carried out as messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import simpy

from wagma.core.protocol import NONE, Complete, Forward, Machine, Output, Retracted, Solo, Start
from wagma.core.schedule import Schedule
from wagma.errors import WagmaError
from wagma.sim.exchange import Phase, phases
from wagma.sim.network import NOTHING_NEW, Call, LogGP
from wagma.sim.numerics import Numerics
from wagma.sim.progress_threads import Handlers, ProgressThreads
from wagma.timing.network import Network
from wagma.trace import Execution


@dataclass(slots=True)
class Meeting:
    """What the members of one group bring to one version. The sum is computed once, for the first member that is done: by then
    every member has started, since its message was needed.
    """

    group: list[int]  # the records of all members share it
    plans: tuple[tuple[Phase, ...], ...]  # of each member
    contributions: list[Any]
    remaining: int
    result: Any = None
    whole_ns: int = 0  # when the last contribution is whole (see `Collective.arrive`)


@dataclass(slots=True)
class Running:
    """One execution under way at one rank."""

    rank: int
    version: int
    start: Start
    meeting: Meeting
    phases: tuple[Phase, ...]
    record: Execution
    phase: int = 0
    sent: bool = False  # whether the current phase has sent its message
    added: bool = False  # whether the sum of what the current phase received is under way
    busy_until: int = 0  # the own overhead of that message, then the sum
    received: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Joined:
    """What an application gets back from a collective; merged_version NONE means that there was nothing to merge."""

    fresh: bool
    merged_version: int
    group_length: int
    result: Any


class Member:
    """One rank's side of the collective."""

    def __init__(self, rank: int, schedule: Schedule, merge_once: bool) -> None:
        self.machine = Machine(rank, schedule, merge_once)
        self.buffers: list[Any] = [None] * self.machine.buffers
        self.lengths = [0] * self.machine.buffers  # |G| of the result in each buffer
        self.activated_ns: dict[int, int] = {}
        self.own_activation = NONE
        self.running: Running | None = None
        self.early: dict[int, set[int]] = {}  # version -> phases whose message came before this rank started it
        self.seats: dict[int, tuple[Meeting, int]] = {}  # version -> its meeting and this rank's index in the group
        self.released: simpy.Event | None = None
        self.whole_ns = 0  # when what it published last is whole
        self.sequence = 0

    def is_waiting(self) -> bool:
        """Whether the application leaves its processor to others: it waits in a collective, or has ended."""
        return self.released is not None or bool(self.machine.closed)

    def next_sequence(self) -> int:
        """The causal order of this rank's records."""
        self.sequence += 1
        return self.sequence - 1


class Collective:
    """All ranks' machines on one network; `executions` collects the records."""

    def __init__(
        self, env: simpy.Environment, schedule: Schedule, network: Network, size: int, numerics: Numerics, merge_once: bool
    ) -> None:
        self.env: Any = env  # whose clock, unlike SimPy's type of it, is a whole number: all delays are
        self.schedule = schedule
        self.network = LogGP(env, schedule.world_size, network)
        self.executions: list[Execution] = []
        self.members = [Member(rank, schedule, merge_once) for rank in range(schedule.world_size)]
        self._exchange = {True: network.allreduce, False: network.group_allreduce}
        self._size = size
        self._numerics = numerics
        self._reduces = network.reduce_ns_per_byte > 0
        handlers = Handlers(self._activated, self._told, self._message)
        if network.progress_computing_ns or network.progress_waiting_ns:
            handlers = ProgressThreads(self.network, [member.is_waiting for member in self.members]).in_between(handlers)
        self._on_activation, self._on_telling, self._on_message = handlers

    def initialize(self, rank: int, model: Any) -> None:
        """Place a rank's initial model where late contributions come from; gradients have nothing there."""
        member = self.members[rank]
        if member.machine.published != NONE:
            member.buffers[member.machine.published] = model

    def arrive(self, rank: int, version: int, value: Any, whole_ns: int = 0) -> simpy.Event:
        """Publish `value` and join `version`; the event's value is a Joined.

        whole_ns: when the last of `value` is computed, if it travels piece by piece meanwhile (overlap): no sum that it is part of is
        complete before that.
        """
        member = self.members[rank]
        member.whole_ns = whole_ns
        member.buffers[member.machine.live] = value  # there is one: here contributions are read by when the sum is there
        released: simpy.Event = self.env.event()
        member.released = released
        if member.machine.activates(version):
            member.own_activation = version
        self._apply(member, member.machine.arrive, version)
        return released

    def merged(self, rank: int) -> None:
        """The application has merged what it was given."""
        self._apply(self.members[rank], self.members[rank].machine.merge_done)

    def retract(self, rank: int) -> list[Any]:
        """Take back the sum of gradients that no version has taken yet: one, or none."""
        member = self.members[rank]
        taken = [member.buffers[o.buffer] for o in member.machine.retract() if isinstance(o, Retracted)]
        if taken:
            member.machine.merge_done()
        return taken

    def close(self, rank: int, model: Any) -> None:
        """The rank will not arrive again, `model` is its last; once all have closed, the run ends with the last version of any."""
        member = self.members[rank]
        if self.schedule.accumulate:
            member.buffers[member.machine.live] = model
        self._apply(member, member.machine.close)
        if all(member.machine.closed for member in self.members):
            last = max(member.machine.arrived for member in self.members)
            for member in self.members:
                self._apply(member, member.machine.finish, last)

    def check_done(self) -> None:
        """Raise WagmaError if the network fell silent before every rank was done: a defect, named as precisely as possible."""
        stuck = [m.machine for m in self.members if not m.machine.done]
        if stuck:
            what = "; ".join(
                f"rank {m.rank} waits in version {m.waiting} (next {m.next_version}, executing {m.executing}, "
                f"activated up to {m.activated})"
                for m in stuck[:4]
            )
            raise WagmaError(f"the simulation is stuck at {self._now} ns with {len(stuck)} ranks not done: {what}")

    # -- outputs of the decision machine ---------------------------------------------------------------------------------

    def _activated(self, version: int, dimension: int, rank: int) -> object:
        """An activation has arrived. Most of them bring nothing new."""
        member = self.members[rank]
        if member.machine.knows(version, dimension):
            return NOTHING_NEW
        self._apply(member, member.machine.activation, version, dimension)
        return None

    def _told(self, version: int, dimension: int, rank: int) -> None:
        """Somebody has closed before `version`: a rank that waits there for a candidate activates it now."""
        member = self.members[rank]
        machine = member.machine
        if machine.waiting > machine.activated and machine.waiting >= version:
            member.own_activation = machine.waiting
        self._apply(member, machine.solo, version, dimension)

    def _apply(self, member: Member, event: Callable[..., list[Output]], *arguments: int) -> None:
        """Feed one event to a machine, note what it activated, carry its outputs out."""
        machine = member.machine
        before = machine.activated
        outputs = event(*arguments)
        if machine.activated > before:
            now, version = self.env.now, self.schedule.next(before)
            while version <= machine.activated:
                member.activated_ns[version] = now
                version = self.schedule.next(version)
        if not outputs:
            return
        activations: list[Call] = []
        last: list[Output] = []  # a machine puts the activations out before all else
        for output in outputs:
            if isinstance(output, Forward):
                activations.append((self._on_activation, output))
            elif isinstance(output, Solo):
                activations.append((self._on_telling, output))
            else:
                last.append(output)
        if activations:
            self.network.activate(machine.rank, activations)
        for output in last:
            if isinstance(output, Start):
                self._start(member, output)
            elif isinstance(output, Complete):
                self._complete(member, output)

    def _start(self, member: Member, start: Start) -> None:
        rank, version = member.machine.rank, start.version
        if version not in member.seats:
            self._meet(rank, version)
        meeting, index = member.seats.pop(version)
        contribution = None if start.buffer == NONE else member.buffers[start.buffer]
        if member.whole_ns > meeting.whole_ns and start.buffer != NONE:
            meeting.whole_ns = member.whole_ns
        meeting.contributions[index] = contribution
        record = Execution(
            rank, NONE, version, meeting.group, member.own_activation == version, member.activated_ns.pop(version), self.env.now,
            NONE, start.stamp, self._numerics.digest(contribution), oldest_stamp=start.oldest if self.schedule.accumulate else None,
        )  # fmt: skip
        member.running = Running(
            rank, version, start, meeting, meeting.plans[index], record, received=member.early.pop(version, set())
        )
        if member.running.phases:
            self._advance(member, member.running)
        else:  # alone in the group; as an event, so that a long row of such versions does not nest
            self.network.call(0, self._advance, member, member.running)

    def _meet(self, rank: int, version: int) -> None:
        """Seat all members of a group, for the first of them that starts."""
        group = self.schedule.group(rank, version)
        length = len(group)
        plans = phases(self._exchange[self.schedule.is_sync(version)], length, self._size)
        meeting = Meeting(list(group), plans, [None] * length, length)
        for index, other in enumerate(group):
            self.members[other].seats[version] = (meeting, index)

    def _complete(self, member: Member, complete: Complete) -> None:
        assert member.released is not None
        nothing = complete.merged_version == NONE
        length, result = (0, None) if nothing else (member.lengths[complete.buffer], member.buffers[complete.buffer])
        member.released.succeed(Joined(complete.fresh, complete.merged_version, length, result))
        member.released = None

    # -- one execution ---------------------------------------------------------------------------------------------------

    def _advance(self, member: Member, running: Running) -> object:
        """Go through the phases until one has to wait: for its message, or for the overhead of its own."""
        now = self.env.now
        plan, group, received, index = running.phases, running.meeting.group, running.received, running.phase
        while index < len(plan):
            to, to_phase, waits, size, adds = plan[index]
            if to is not None and not running.sent:
                receiver = group[to]
                running.busy_until = self.network.send(
                    running.rank, receiver, size, self._on_message, running.version, to_phase, receiver
                )
                running.sent = True
            if waits and index not in received:
                return NOTHING_NEW
            if self._reduces and adds and not running.added:
                running.busy_until = max(running.busy_until, now) + self.network.parameters.adding_ns(adds)
                running.added = True
            if running.busy_until > now:
                self.network.call(running.busy_until - now, self._advance, member, running)
                return NOTHING_NEW
            index += 1
            running.phase = index
            running.sent = running.added = False
        if running.meeting.whole_ns > now:
            self.network.call(running.meeting.whole_ns - now, self._done, member, running)
            return NOTHING_NEW
        self._done(member, running)
        return None

    def _message(self, version: int, phase: int, rank: int) -> object:
        member = self.members[rank]
        running = member.running
        if running is None or running.version != version:
            member.early.setdefault(version, set()).add(phase)
            return NOTHING_NEW
        running.received.add(phase)
        if phase != running.phase:
            return NOTHING_NEW
        return self._advance(member, running)

    def _done(self, member: Member, running: Running) -> None:
        """The sum is complete, and the peers have read the contribution, which they did with the messages."""
        self._sum(member, running)
        if running.start.buffer != NONE:
            self._apply(member, member.machine.read_done)

    def _sum(self, member: Member, running: Running) -> None:
        start, meeting, record = running.start, running.meeting, running.record
        if meeting.remaining == len(meeting.group):
            meeting.result = self._numerics.reduce(meeting.contributions, self.schedule.is_sync(start.version))
            meeting.contributions = []
        meeting.remaining -= 1
        member.running = None
        member.buffers[start.target] = meeting.result
        member.lengths[start.target] = len(meeting.group)
        record.sequence, record.completed_ns = member.next_sequence(), self.env.now
        record.sum_digest = self._numerics.digest(meeting.result)
        self.executions.append(record)
        self._apply(member, member.machine.exec_done, start.version)

    @property
    def _now(self) -> int:
        now: int = self.env.now
        return now
