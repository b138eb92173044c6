"""The wait-avoiding collective in virtual time: decision machines, with their outputs carried out as messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import simpy

from wagma.core.groups import Group
from wagma.core.protocol import BUFFERS, NONE, Complete, Forward, Machine, Output, Start
from wagma.core.schedule import Schedule
from wagma.errors import WagmaError
from wagma.network import Network
from wagma.sim.exchange import Phase, phases
from wagma.sim.network import LogGP
from wagma.sim.numerics import Numerics
from wagma.trace import Execution


@dataclass(slots=True)
class Meeting:
    """What the members of one group bring to one version. The sum is computed once, for the first member that is done: by then
    every member has started, since its message was needed.
    """

    contributions: list[Any]
    remaining: int
    result: Any = None


@dataclass(slots=True)
class Running:
    """One execution under way at one rank."""

    start: Start
    group: Group
    meeting: Meeting
    phases: tuple[Phase, ...]
    record: Execution
    phase: int = 0
    sent: bool = False  # whether the current phase has sent its message
    busy_until: int = 0  # the own overhead of that message
    received: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
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
        self.buffers: list[Any] = [None] * BUFFERS
        self.lengths = [0] * BUFFERS  # |G| of the result in each buffer
        self.activated_ns: dict[int, int] = {}
        self.own_activation = NONE
        self.running: Running | None = None
        self.early: dict[int, set[int]] = {}  # version -> phases whose message came before this rank started it
        self.released: simpy.Event | None = None
        self.sequence = 0

    def next_sequence(self) -> int:
        """The causal order of this rank's records."""
        self.sequence += 1
        return self.sequence - 1


class Collective:
    """All ranks' machines on one network; `executions` collects the records."""

    def __init__(
        self, env: simpy.Environment, schedule: Schedule, network: Network, size: int, numerics: Numerics, merge_once: bool
    ) -> None:
        self.env = env
        self.schedule = schedule
        self.network = LogGP(env, schedule.world_size, network)
        self.executions: list[Execution] = []
        self.members = [Member(rank, schedule, merge_once) for rank in range(schedule.world_size)]
        self._exchange = {True: network.allreduce, False: network.group_allreduce}
        self._size = size
        self._numerics = numerics
        self._meetings: dict[tuple[int, int], Meeting] = {}

    def initialize(self, rank: int, model: Any) -> None:
        """Place a rank's initial model where late contributions come from."""
        member = self.members[rank]
        member.buffers[member.machine.published] = model

    def arrive(self, rank: int, version: int, value: Any) -> simpy.Event:
        """Publish `value` and join `version`; the event's value is a Joined."""
        member = self.members[rank]
        member.buffers[member.machine.live] = value
        member.released = released = self.env.event()
        if member.machine.activated < version:
            member.own_activation = version
        self._apply(member, member.machine.arrive, version)
        return released

    def merged(self, rank: int) -> None:
        """The application has merged what it was given."""
        self._apply(self.members[rank], self.members[rank].machine.merge_done)

    def close(self, rank: int) -> None:
        """The rank will not arrive again; once all have closed, the run ends with the last version of any of them."""
        self._apply(self.members[rank], self.members[rank].machine.close)
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

    def _apply(self, member: Member, event: Any, *arguments: int) -> None:
        """Feed one event to a machine, note what it activated, carry its outputs out."""
        version = self.schedule.next(member.machine.activated)
        outputs: list[Output] = event(*arguments)
        while version <= member.machine.activated:
            member.activated_ns[version] = self._now
            version = self.schedule.next(version)
        for output in outputs:
            match output:
                case Forward():
                    receiver = self.members[output.rank]
                    activation = receiver.machine.activation
                    self.network.activate(partial(self._apply, receiver, activation, output.version, output.dimension))
                case Start():
                    self._start(member, output)
                case Complete():
                    self._complete(member, output)

    def _start(self, member: Member, start: Start) -> None:
        rank, version = member.machine.rank, start.version
        group = self.schedule.group(rank, version)
        index = group.index(rank)
        meeting = self._meetings.setdefault((version, min(group)), Meeting([None] * len(group), len(group)))
        contribution = meeting.contributions[index] = member.buffers[start.buffer]
        record = Execution(
            rank, NONE, version, list(group), member.own_activation == version, member.activated_ns.pop(version), self._now,
            NONE, start.stamp, self._numerics.digest(contribution),
        )  # fmt: skip
        plan = phases(self._exchange[self.schedule.is_sync(version)], len(group), self._size)[index]
        member.running = Running(start, group, meeting, plan, record, received=member.early.pop(version, set()))
        if plan:
            self._advance(member, member.running)
        else:  # alone in the group; as an event, so that a long row of such versions does not nest
            self.network.call(0, partial(self._advance, member, member.running))

    def _complete(self, member: Member, complete: Complete) -> None:
        assert member.released is not None
        nothing = complete.merged_version == NONE
        length, result = (0, None) if nothing else (member.lengths[complete.buffer], member.buffers[complete.buffer])
        member.released.succeed(Joined(complete.fresh, complete.merged_version, length, result))
        member.released = None

    # -- one execution ---------------------------------------------------------------------------------------------------

    def _advance(self, member: Member, running: Running) -> None:
        """Go through the phases until one has to wait: for its message, or for the overhead of its own."""
        while running.phase < len(running.phases):
            phase = running.phases[running.phase]
            if phase.to is not None and not running.sent:
                receiver = self.members[running.group[phase.to]]
                deliver = partial(self._message, receiver, running.start.version, phase.to_phase)
                running.busy_until = self.network.send(member.machine.rank, phase.size, deliver)
                running.sent = True
            if phase.waits and running.phase not in running.received:
                return
            if running.busy_until > self._now:
                self.network.call(running.busy_until - self._now, partial(self._advance, member, running))
                return
            running.phase += 1
            running.sent = False
        self._done(member, running)

    def _message(self, member: Member, version: int, phase: int) -> None:
        running = member.running
        if running is None or running.start.version != version:
            member.early.setdefault(version, set()).add(phase)
            return
        running.received.add(phase)
        if phase == running.phase:
            self._advance(member, running)

    def _done(self, member: Member, running: Running) -> None:
        start, meeting, record = running.start, running.meeting, running.record
        if meeting.remaining == len(running.group):
            meeting.result = self._numerics.reduce(meeting.contributions, self.schedule.is_sync(start.version))
            meeting.contributions = []
        meeting.remaining -= 1
        if not meeting.remaining:
            del self._meetings[start.version, min(running.group)]
        member.running = None
        member.buffers[start.target] = meeting.result
        member.lengths[start.target] = len(running.group)
        record.sequence, record.completed_ns = member.next_sequence(), self._now
        record.sum_digest = self._numerics.digest(meeting.result)
        self.executions.append(record)
        self._apply(member, member.machine.exec_done, start.version)
        self._apply(member, member.machine.read_done)

    @property
    def _now(self) -> int:
        return int(self.env.now)
