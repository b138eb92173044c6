"""Progress threads that take their time: `network.progress_computing_ns` and `network.progress_waiting_ns`.

What arrives at a rank is acted on by a thread that sleeps until then. It needs time to wake up and to get a processor: more while the
application computes than while it waits. When it acts, it acts on all that is there, in the order in which it came.

How long it needs is settled when something arrives. That the application begins to wait meanwhile wakes nobody; the next arrival does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from wagma.core.protocol import NONE
from wagma.sim.network import Call, LogGP


class Handlers(NamedTuple):
    """What is done with an activation, the news that a rank has closed, and a message; the receiver's rank is the last argument."""

    activation: Callable[..., object]
    telling: Callable[..., object]
    message: Callable[..., object]


class ProgressThreads:
    """All ranks' threads. waiting: asks of each rank whether its application waits."""

    def __init__(self, network: LogGP, waiting: Sequence[Callable[[], bool]]) -> None:
        parameters = network.parameters
        self._network = network
        self._waiting = waiting
        self._delays = {True: round(parameters.progress_waiting_ns), False: round(parameters.progress_computing_ns)}
        self._there: list[list[Call]] = [[] for _ in waiting]  # what came and is not acted on yet
        self._wakes = [NONE] * len(waiting)  # when each thread will act; NONE: nothing is there

    def in_between(self, handlers: Handlers) -> Handlers:
        """The same handlers, called when the threads act."""
        return Handlers(*(partial(self._arrived, handler) for handler in handlers))

    def _arrived(self, handler: Callable[..., object], *arguments: int) -> None:
        rank = arguments[-1]
        self._there[rank].append((handler, arguments))
        delay = self._delays[self._waiting[rank]()]
        wake = self._network.env.now + delay
        if not delay:
            self._act(rank, wake, early=True)
        elif self._wakes[rank] == NONE or wake < self._wakes[rank]:
            self._wakes[rank] = wake
            self._network.call(delay, self._act, rank, wake)

    def _act(self, rank: int, wake: int, early: bool = False) -> None:
        if wake != self._wakes[rank] and not early:
            return  # it has acted before, when the application began to wait
        self._wakes[rank] = NONE
        there, self._there[rank] = self._there[rank], []
        for handler, arguments in there:
            handler(*arguments)
