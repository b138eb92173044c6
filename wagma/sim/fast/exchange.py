"""Messages as arrays: every member of a group goes through its phases, all groups at once.

The phases are those of `wagma.sim.exchange`. In one phase a rank sends when it is ready and its interface is free, and goes on when its own
overhead is over and the message of its partner is there, which may have come long before.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from wagma.core.groups import ceil_log, is_power_of_two
from wagma.core.schedule import Schedule
from wagma.sim.exchange import core_phases
from wagma.sim.fast.arrays import Ints, Times, swapped
from wagma.timing.network import Network


class Interfaces:
    """The network interfaces of all ranks; free: when each may send again."""

    def __init__(self, ranks: int, network: Network) -> None:
        self.free: Times = np.zeros(ranks, np.int64)
        self.overhead = round(network.overhead_ns)
        self._network = network
        self._durations: dict[int, tuple[int, int]] = {}

    def durations(self, size: int) -> tuple[int, int]:
        """(from send to received, from send to the sender's next one) of a message of `size` bytes, in ns."""
        known = self._durations.get(size)
        if known is None:
            known = self._durations[size] = self._network.durations(size)
        return known

    def adding_ns(self, size: int) -> int:
        """Time to add up `size` received bytes, in ns."""
        return self._network.adding_ns(size)

    def meet(self, now: Times, free: Times, bit: int, size: int, adds: int) -> tuple[Times, Times]:
        """One phase between members that differ in `bit`: (when each goes on, when its interface is free)."""
        flight, taken = self.durations(size)
        leave = np.maximum(now, free)
        after = swapped(leave, bit)
        after += flight
        free = leave + taken
        leave += self.overhead
        np.maximum(after, leave, out=after)
        if adding := self.adding_ns(adds):
            after += adding
        return after, free

    def send(self, now: Times, free: Times, size: int) -> tuple[Times, Times, Times]:
        """(when the message is received, when the sender goes on, when its interface is free)."""
        flight, taken = self.durations(size)
        leave = np.maximum(now, free)
        return leave + flight, leave + self.overhead, leave + taken


class Groups:
    """Carries out the groups of one schedule for values of `size` bytes."""

    def __init__(self, schedule: Schedule, network: Network, size: int) -> None:
        self.interfaces = Interfaces(schedule.world_size, network)
        self._schedule = schedule
        self._kind = {True: network.allreduce, False: network.group_allreduce}
        self._size = size

    def run(self, version: int, started: Times) -> Times:
        """When each rank has the sum of `version`, if it starts then; ns."""
        kind = self._kind[self._schedule.is_sync(version)]
        bits, tables = self._layout(version)
        now, free = started, self.interfaces.free
        if not tables:
            for place, amount, adds in core_phases(kind, 1 << len(bits), self._size):
                now, free = self.interfaces.meet(now, free, bits[place.bit_length() - 1], amount, adds)
            self.interfaces.free = free
            return now
        done = np.empty_like(started)
        for members in tables:
            done[members] = self._run(kind, members, started[members])
        return done

    def latest(self, version: int, times: Times) -> Times:
        """For each rank the latest of the times of its group's members."""
        bits, tables = self._layout(version)
        for bit in bits:
            times = np.maximum(times, swapped(times, bit))
        if tables:
            latest = np.empty_like(times)
            for members in tables:
                latest[members] = times[members].max(axis=1, keepdims=True)
            return latest
        return times

    def _layout(self, version: int) -> tuple[list[int], list[Ints]]:
        """The groups of a version: (in which bit of the rank members differ for each bit of their place, []) where that is so.

        Else ([], tables [group, place] of ranks).
        """
        schedule, ranks = self._schedule, self._schedule.world_size
        everyone = schedule.is_sync(version) or schedule.group_size == ranks
        size = ranks if everyone else schedule.group_size
        number = 0 if everyone or schedule.fixed else version
        if is_power_of_two(ranks) and is_power_of_two(size):
            width, wanted = ranks.bit_length() - 1, size.bit_length() - 1
            # Bit j of a place in the group is bit first + j of the rank (wagma.core.groups).
            return [1 << (number * wanted + j) % width for j in range(wanted)], []
        return [], [np.arange(ranks).reshape(1, ranks)] if everyone else riffle_groups(ranks, size, number)

    def lengths(self, version: int) -> int | Ints:
        """The length of each rank's group; a number if all have the same."""
        schedule, ranks = self._schedule, self._schedule.world_size
        if schedule.is_sync(version) or schedule.group_size == ranks:
            return ranks
        if is_power_of_two(ranks) and is_power_of_two(schedule.group_size):
            return schedule.group_size
        lengths = np.empty(ranks, np.int64)
        for members in riffle_groups(ranks, schedule.group_size, 0 if schedule.fixed else version):
            lengths[members] = members.shape[1]
        return lengths

    def longest_ns(self) -> int:
        """No version completes later than this after the latest of its starts and of the interfaces' last messages."""
        ranks = self._schedule.world_size
        phases = [
            phase for kind in self._kind.values() for phase in core_phases(kind, 1 << (ranks.bit_length() - 1), self._size)
        ]
        sizes = [size for _, size, _ in phases] + [self._size] * 2
        net = self.interfaces
        return sum(sum(net.durations(size)) + net.overhead + net.adding_ns(size) for size in sizes)

    def _run(self, kind: str, members: Ints, now: Times) -> Times:
        """The same of groups of one length, [group, place]; members beyond the largest power of two hand in first and get last."""
        net, length = self.interfaces, members.shape[1]
        core = 1 << (length.bit_length() - 1)
        extra = length - core
        free = net.free[members]
        inner, outer = now[:, :core].copy(), now[:, core:]
        inner_free, outer_free = free[:, :core].copy(), free[:, core:]
        if extra:
            received, outer, outer_free = net.send(outer, outer_free, self._size)
            inner[:, :extra] = np.maximum(inner[:, :extra], received) + net.adding_ns(self._size)
        for bit, amount, adds in core_phases(kind, core, self._size):
            inner, inner_free = net.meet(inner, inner_free, bit, amount, adds)
        if extra:
            received, after, busy = net.send(inner[:, :extra], inner_free[:, :extra], self._size)
            inner[:, :extra], inner_free[:, :extra] = after, busy
            outer = np.maximum(outer, received)
        net.free[members] = np.concatenate((inner_free, outer_free), axis=1)
        return np.concatenate((inner, outer), axis=1)


def riffle_groups(ranks: int, group_size: int, number: int) -> list[Ints]:
    """The groups of a version where the butterfly is undefined, as tables [group, place] of ranks, one for each length."""
    groups = -(-ranks // group_size)
    orders = _orders(ranks, groups, group_size)
    rotated = np.roll(orders[number % len(orders)], -(number % ranks))
    size, larger = divmod(ranks, groups)
    cut = larger * (size + 1)
    tables = [rotated[:cut].reshape(larger, size + 1), rotated[cut:].reshape(groups - larger, size)]
    return [table for table in tables if table.shape[0]]


@lru_cache(maxsize=8)
def _orders(ranks: int, groups: int, group_size: int) -> list[Ints]:
    """The order of the cards after 0, 1, 2, ... riffles into `groups` piles (`wagma.core.groups`)."""
    place = np.arange(ranks)
    riffle = np.lexsort((place // groups, place % groups))
    orders = [place]
    for _ in range(max(1, ceil_log(ranks, max(2, group_size))) - 1):
        orders.append(orders[-1][riffle])
    return orders
