"""The wire between the hosts of tools/hosts.py: takes the packets of each, holds them for as long as the link would, and hands them on.

A host's interface is a TUN device: what it sends is read here, one IP packet at a time. Bytes leave an interface one after the other, at
the link's rate, and arrive after its latency; so a packet is due at max(now, when the interface is free) + bytes / rate + latency. That
is LogGP's G and L, and all of it: nothing is lost, nothing overtakes, and switches are as fast as their ports.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import time
from collections import deque
from collections.abc import Callable, Mapping

FIRST_ADDRESS = 1  # host i has the address 10.87.0.(i + 1)
NETWORK = "10.87.0"
LONGEST_PACKET = 1 << 16
BATCH = 32  # packets of one interface before the others have their turn
IDLE_S = 1.0
PR_SET_TIMERSLACK = 29


class Wire:
    """The link of each host, by the file descriptors of their TUN devices (non-blocking).

    traffic[sender, receiver] is [packets, bytes] so far, headers included.
    """

    def __init__(self, interfaces: Mapping[int, int], latency_s: float, rate: float) -> None:
        self._interfaces = interfaces
        self._latency_ns = round(latency_s * 1e9)
        self._ns_per_byte = 1e9 / rate
        self._free_ns = dict.fromkeys(interfaces, 0)
        # The latency is one for all, so that what an interface sent first is due first: queues need no sorting.
        self._under_way: dict[int, deque[tuple[int, int, bytes]]] = {host: deque() for host in interfaces}
        self.traffic: dict[tuple[int, int], list[int]] = {}

    def carry(self, others: Mapping[int, Callable[[], bool]]) -> None:
        """Until one of `others`, called when its file descriptor can be read, returns False."""
        sharp_timers()
        hosts = {file: host for host, file in self._interfaces.items()}
        watched = [*hosts, *others]
        while True:
            # select, and not epoll: its limit has microseconds.
            ready, _, _ = select.select(watched, [], [], self._deliver())
            for file in ready:
                if file in hosts:
                    self._take(hosts[file])
                elif not others[file]():
                    return

    def _take(self, sender: int) -> None:
        for _ in range(BATCH):
            try:
                packet = os.read(self._interfaces[sender], LONGEST_PACKET)
            except BlockingIOError:
                return
            except OSError:  # the interface is down: what it would have sent is gone
                return
            receiver = packet[19] - FIRST_ADDRESS if packet[0] >> 4 == 4 else -1
            if receiver not in self._interfaces:  # a broadcast, or IPv6's announcements of itself
                continue
            begun = max(time.monotonic_ns(), self._free_ns[sender])
            self._free_ns[sender] = sent = begun + round(len(packet) * self._ns_per_byte)
            self._under_way[sender].append((sent + self._latency_ns, receiver, packet))
            counts = self.traffic.setdefault((sender, receiver), [0, 0])
            counts[0] += 1
            counts[1] += len(packet)

    def _deliver(self) -> float:
        """Hand on all that is due; returns the seconds until more is."""
        for queue in self._under_way.values():
            while queue and queue[0][0] <= time.monotonic_ns():
                _, receiver, packet = queue.popleft()
                with contextlib.suppress(OSError):  # the receiver's interface is down
                    os.write(self._interfaces[receiver], packet)
        due = min((queue[0][0] for queue in self._under_way.values() if queue), default=None)
        return IDLE_S if due is None else max(0, due - time.monotonic_ns()) * 1e-9


def sharp_timers() -> None:
    """The kernel rounds waits up by 50 us, unless a thread asks otherwise."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
