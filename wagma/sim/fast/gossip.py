"""Synchronous exchanges with neighbours as arrays (`wagma.sim.gossip`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from wagma.core.effects import Exchange
from wagma.sim.fast.arrays import Ints, Times, Unfit
from wagma.sim.fast.exchange import Interfaces

#: How many different graphs are remembered: the directed exponential one has log2 P of them.
REMEMBERED = 64


class Graph:
    """Who sends to whom in one iteration: for each source of every rank, as which of its messages it sends to that rank."""

    def __init__(self, to: tuple[Ints, ...], sources: tuple[Ints, ...], ranks: int) -> None:
        self.to, self.sources = to, sources
        everyone = np.arange(ranks)
        each: Any  # whatever an algorithm made
        for each in (*to, *sources):
            if not isinstance(each, np.ndarray) or each.shape != (ranks,) or ((each < 0) | (each >= ranks)).any():
                raise Unfit("the neighbours of an exchange are no arrays over all ranks")
        self.slots: list[int | Ints] = []
        taken = np.zeros((len(to), ranks), np.int64)
        for source in sources:
            slots = np.full(ranks, -1, np.int64)
            for slot, receivers in enumerate(to):
                slots[receivers[source] == everyone] = slot
            if slots.min(initial=0) < 0:
                raise Unfit("a rank waits for a message that nobody sends to it")
            np.add.at(taken, (slots, source), 1)
            same = ranks > 0 and bool((slots == slots[0]).all())
            self.slots.append(int(slots[0]) if same else slots)
        if (taken != 1).any():
            raise Unfit("not every message of an exchange has one receiver that waits for it")

    def is_of(self, effect: Exchange) -> bool:
        """Whether the effect has this graph."""
        ours, theirs = (*self.to, *self.sources), (*effect.to, *effect.sources)
        return len(self.to) == len(effect.to) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


class Neighbours:
    """The exchanges of one run."""

    def __init__(self, interfaces: Interfaces, size: int) -> None:
        self._interfaces = interfaces
        self._size = size
        self._graphs: dict[tuple[int, ...], Graph] = {}  # by the neighbours of rank 0
        self._last: dict[int, Graph] = {}  # by the identity of the effect's neighbours, which the graph keeps alive

    def exchange(self, now: Times, whole: Times, effect: Exchange) -> Times:
        """When each rank has the values of all its sources, if it comes `now` with one that is whole then; ns. Raises Unfit."""
        graph = self._graph(effect)
        net = self._interfaces
        flight, taken = net.durations(self._size)
        leaves = []
        leave = np.maximum(now, net.free) if effect.to else now
        for number in range(len(effect.to)):
            leave = leave + taken if number else leave
            leaves.append(leave)
        if not leaves:
            return now
        net.free = leave + taken
        done = leave + net.overhead
        for source, slot in zip(graph.sources, graph.slots, strict=True):
            sent = leaves[slot][source] if isinstance(slot, int) else np.stack(leaves)[slot, source]
            sent += flight
            np.maximum(done, sent, out=done)
            if whole is not now:
                np.maximum(done, whole[source], out=done)
        done += len(effect.sources) * net.adding_ns(self._size)
        return done

    def longest_ns(self, effect: Exchange) -> int:
        """How much later than the latest time of all an exchange can end, and the interfaces be free."""
        flight, taken = self._interfaces.durations(self._size)
        own, adding = self._interfaces.overhead, self._interfaces.adding_ns(self._size)
        return flight + own + len(effect.to) * taken + len(effect.sources) * adding

    def mass(self, effect: Exchange) -> Any:
        """The sum of the masses that each rank receives, in the order of its sources."""
        if not isinstance(effect.mass, np.ndarray):
            return sum(effect.mass for _ in effect.sources)
        return sum(effect.mass[source] for source in effect.sources)

    def _graph(self, effect: Exchange) -> Graph:
        last = self._last.get(id(effect.to))
        if last is not None and last.to is effect.to and last.sources is effect.sources:  # the very same objects, as mostly
            return last
        if len(effect.to) != len(effect.sources):
            raise Unfit("not every message of an exchange has one receiver that waits for it")
        key = tuple(int(np.ravel(each)[0]) for each in (*effect.to, *effect.sources))
        graph = self._graphs.get(key)
        if graph is None or not graph.is_of(effect):
            if len(self._graphs) >= REMEMBERED:
                self._graphs.clear()
                self._last.clear()
            graph = self._graphs[key] = Graph(effect.to, effect.sources, self._interfaces.free.size)
            self._last[id(effect.to)] = graph
        return graph
