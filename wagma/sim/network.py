"""What a message costs: LogGP with the overhead as LogGOPSim has it (Alexandrov et al., SPAA 1995; Hoefler et al., HPDC 2010)."""

from __future__ import annotations

from collections.abc import Callable

import simpy
from simpy.events import EventPriority

from wagma.network import Network

#: At equal times a rank's own step (SimPy's NORMAL, 1) precedes what the network brings: arrivals precede starts.
NETWORK_PRIORITY = EventPriority(2)


class Call(simpy.Event):
    """A function call at a later time; an event of its own, since SimPy's Timeout has no priority."""

    def __init__(self, env: simpy.Environment, delay: int, function: Callable[[], None]) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.callbacks = [lambda _: function()]
        env.schedule(self, NETWORK_PRIORITY, delay)


class LogGP:
    """The network of a run: one interface per rank, integer nanoseconds, rounded once per message length."""

    def __init__(self, env: simpy.Environment, ranks: int, parameters: Network) -> None:
        self.env = env
        self.parameters = parameters
        self.messages = 0
        self._free = [0] * ranks  # when each rank's interface is free again
        self._activation = round(parameters.activation_ns or 0)
        self._overhead = round(parameters.overhead_ns)

    def durations(self, size: int) -> tuple[int, int]:
        """(from send to received, time that the sender's interface is taken) of a message of `size` bytes, in ns."""
        p = self.parameters
        stream = (size - 1) * p.gap_per_byte_ns
        return round(2 * p.overhead_ns + p.latency_ns + stream), round(p.gap_ns + stream)

    def send(self, sender: int, size: int, received: Callable[[], None]) -> int:
        """Send `size` bytes; `received` is called when the receiver has them. Returns when the sender's CPU is free, in ns."""
        flight, taken = self.durations(size)
        leave = max(int(self.env.now), self._free[sender])
        self._free[sender] = leave + taken
        self.messages += 1
        self.call(leave + flight - int(self.env.now), received)
        return leave + self._overhead

    def activate(self, received: Callable[[], None]) -> None:
        """Send an activation: a fixed cost per hop on a control channel, no interface taken."""
        self.messages += 1
        self.call(self._activation, received)

    def call(self, delay: int, function: Callable[[], None]) -> None:
        """Call `function` in `delay` ns, after whatever ranks do at that time."""
        Call(self.env, delay, function)
