"""What a message costs: LogGP with the overhead as LogGOPSim has it (Alexandrov et al., SPAA 1995; Hoefler et al., HPDC 2010)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import simpy
from simpy.events import EventPriority

from wagma.timing.network import Level, Network

#: At equal times a rank's own step (SimPy's NORMAL, 1) precedes what the network brings: arrivals precede starts.
NETWORK_PRIORITY = EventPriority(2)

#: What a call may return that has released no rank: then there is no need to look whether one goes on at the same time.
NOTHING_NEW = object()

#: A function and what it is called with.
Call = tuple[Callable[..., object], tuple[Any, ...]]


class Moment(simpy.Event):
    """All that the network brings at one time, in the order in which it was sent: one event on SimPy's heap, however much it is."""

    def __init__(self, env: simpy.Environment, at: int, run: Callable[[Any], None]) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.at = at
        self.run = run
        self.calls: list[Call] = []
        self.left = iter(self.calls)  # goes on where it was interrupted, and sees what is appended meanwhile

    def schedule(self, delay: int) -> None:
        """Put the moment on the heap (again)."""
        self.callbacks = [self.run]
        self.env.schedule(self, NETWORK_PRIORITY, delay)


class Channel:
    """One level of the network: what its messages cost, and when its interfaces are free again. interfaces: which one each rank has.

    An interface of one rank takes the next message when that rank's processor has handed the last one over. A shared one takes what
    other processors hand over meanwhile, so that there only its own time counts.
    """

    def __init__(self, level: Level, interfaces: Sequence[int]) -> None:
        self.interfaces = interfaces
        self.free = [0] * (max(interfaces) + 1)
        self._shared = len(self.free) < len(interfaces)
        self.activation = round(level.activation_ns or 0)
        self.overhead = round(level.overhead_ns)
        self.known: dict[int, tuple[int, int]] = {}
        self._level = level

    def durations(self, size: int) -> tuple[int, int]:
        """(from send to received, from send to when the interface is free) of a message of `size` bytes, in ns."""
        flight, free = self._level.durations(size)
        known = self.known[size] = flight, self._level.taken_ns(size) if self._shared else free
        return known


class LogGP:
    """The network of a run: integer nanoseconds, rounded once per message length.

    One interface per rank, or per node if they are shared. If ranks share nodes, messages between ranks of a node have a channel of
    their own with an interface per rank, so that they never wait for those to other nodes.
    """

    def __init__(self, env: simpy.Environment, ranks: int, parameters: Network) -> None:
        self.env: Any = env  # whose clock, unlike SimPy's type of it, is a whole number: all delays are
        self.parameters = parameters
        self.messages = 0
        nodes = [parameters.node_of(rank, ranks) for rank in range(ranks)]
        self._between = Channel(parameters, nodes if parameters.shared_interface else range(ranks))
        self._nodes = None if parameters.node is None else nodes
        self._within = self._between if parameters.node is None else Channel(parameters.node, range(ranks))
        self._moments: dict[int, Moment] = {}

    def durations(self, size: int) -> tuple[int, int]:
        """(from send to received, from send to when the interface is free) of a message between nodes of `size` bytes, in ns."""
        return self._between.durations(size)

    def send(self, sender: int, receiver: int, size: int, function: Callable[..., object], *arguments: Any) -> int:
        """Send `size` bytes; function(*arguments) is called when the receiver has them.

        Returns when the sender's CPU is free, in ns.
        """
        channel = self._between if self._nodes is None else self._channel(sender, receiver)
        flight, taken = channel.known.get(size) or channel.durations(size)
        interface = channel.interfaces[sender]
        now: int = self.env.now
        free = channel.free[interface]
        leave = free if free > now else now
        channel.free[interface] = leave + taken
        self.messages += 1
        self._at(leave + flight).append((function, arguments))
        return leave + channel.overhead

    def activate(self, sender: int, activations: Sequence[Call]) -> None:
        """Send activations: a fixed cost per hop on a control channel, no interface taken.

        Each is a call to make at the receiver, whose rank is the last of its arguments.
        """
        self.messages += len(activations)
        if self._nodes is None:
            self._at(self.env.now + self._between.activation).extend(activations)
            return
        for call in activations:
            self._at(self.env.now + self._channel(sender, call[1][-1]).activation).append(call)

    def call(self, delay: int, function: Callable[..., object], *arguments: Any) -> None:
        """Call function(*arguments) in `delay` ns, after whatever ranks do at that time, and after earlier calls for that time."""
        self._at(self.env.now + delay).append((function, arguments))

    def _channel(self, sender: int, receiver: int) -> Channel:
        assert self._nodes is not None
        return self._within if self._nodes[sender] == self._nodes[receiver] else self._between

    def _at(self, time: int) -> list[Call]:
        """The calls to be made at `time`."""
        moment = self._moments.get(time)
        if moment is None:
            moment = self._moments[time] = Moment(self.env, time, self._run)
            moment.schedule(time - self.env.now)
        return moment.calls

    def _run(self, moment: Moment) -> None:
        """Make the calls of a moment; give way as soon as one of them lets a rank go on at the same time."""
        peek, at = self.env.peek, moment.at
        for function, arguments in moment.left:
            if function(*arguments) is not NOTHING_NEW and peek() == at:
                moment.schedule(0)
                return
        del self._moments[at]
