"""Letters between processes, over MPI: point to point, on a communicator of their own, with nothing that waits for ever.

A letter is a header of fixed length and, if it has a value, that value as a second message, straight out of and into arrays. MPI
delivers messages of one sender and tag in order, so the k-th value belongs to the k-th header that announces one. MPI makes progress
only inside calls: the receiving thread looks again and again, with pauses that grow while nothing comes.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.real.gossip.letters import Kind, Letter
from wagma.real.limited import duplicate, gather_text
from wagma.real.node import machine

Array = npt.NDArray[Any]

SHORTEST_PAUSE_S = 2e-5
LONGEST_PAUSE_S = 2e-3  # as an idle engine's nap over MPI
#: The same while a letter is on its way: a value follows its header, and where it is long both sides have to look for it to be sent.
UNDER_WAY_PAUSE_S = 1e-4
_HEADER, _VALUE = 1, 2  # tags
#: kind, version, stamp, elements of the value, and the bits of share and mass.
_WORDS = 6


class MpiPost:
    """One rank's letters over MPI. Collective: all ranks make one, for values of `dtype`.

    `_sending` keeps the two messages of a letter together: two threads that send to one rank would otherwise give one's value to the
    other's header. It also protects `_leaving`. What comes is touched by the receiving thread alone.
    """

    name = "MPI"

    def __init__(self, comm: Any, dtype: np.dtype[Any], timeout_s: float) -> None:
        self._mpi = import_module("mpi4py.MPI")
        self._comm = duplicate(comm, timeout_s)
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self._dtype = dtype
        here = machine()
        told = (text.rsplit(" ", 1) for text in gather_text(comm, f"{here} {os.getpid()}", timeout_s))
        pids = {rank: int(process) for rank, (where, process) in enumerate(told) if where == here and rank != self.rank}
        self._processes = {rank: watched for rank, process in pids.items() if (watched := _watch(process)) is not None}
        self._sending = threading.Lock()
        self._leaving: list[tuple[Any, Array]] = []  # requests, with what they send
        self._coming: dict[int, deque[tuple[Letter, Any]]] = {}  # by sender: letters with the requests of their values
        self._bell = threading.Event()

    def send(self, to: Iterable[int], letter: Letter) -> None:
        """Begin to; MPI does the rest while the receiving thread looks."""
        header = np.zeros(_WORDS, np.int64)
        header[:4] = letter.kind, letter.version, letter.stamp, NOTHING if letter.value is None else letter.value.size
        header[4:].view(np.float64)[:] = letter.share, letter.mass
        with self._sending:
            for rank in to:
                self._leaving.append((self._comm.Isend(header, rank, _HEADER), header))
                if letter.value is not None:
                    raw = _as_integers(letter.value)
                    self._leaving.append((self._comm.Isend(raw, rank, _VALUE), raw))

    def receive(self, limit_s: float) -> Letter | None:
        """Look, at growing intervals. A wake makes them short again."""
        deadline, pause = time.monotonic() + limit_s, SHORTEST_PAUSE_S
        while True:
            self._look()
            letter = self._next()
            left = deadline - time.monotonic()
            if letter is not None or left <= 0:
                return letter
            if self._bell.wait(min(pause, left)):
                self._bell.clear()
                return None
            pause = min(2 * pause, UNDER_WAY_PAUSE_S if self._under_way() else LONGEST_PAUSE_S)

    def wake(self) -> None:
        """Look at once, and often."""
        self._bell.set()

    def gone(self) -> list[int]:
        """Of those on this machine; of others nobody here can tell."""
        return [rank for rank, process in list(self._processes.items()) if _can_be_read(process)]

    def close(self, limit_s: float, together: bool) -> None:
        """Wait until all has left. A communicator that others may still use is never freed: that is collective."""
        deadline = time.monotonic() + limit_s
        while not self._all_left() and time.monotonic() < deadline:
            self._look()  # what is under way makes progress in any call
            time.sleep(SHORTEST_PAUSE_S)
        coming = [item for letters in self._coming.values() for item in letters if item[1] is not None]
        if self._leaving or coming:
            _given_up.append((self._leaving, coming))
        elif together:
            self._comm.Free()
        while self._processes:
            os.close(self._processes.popitem()[1])

    def _all_left(self) -> bool:
        with self._sending:
            self._leaving = [item for item in self._leaving if not item[0].Test()]
            return not self._leaving

    def _look(self) -> None:
        """Take in the headers that have come, and begin to receive their values."""
        if self._leaving:
            self._all_left()
        status = self._mpi.Status()
        while (matched := self._comm.Improbe(self._mpi.ANY_SOURCE, _HEADER, status)) is not None:
            sender, header = status.Get_source(), np.empty(_WORDS, np.int64)
            matched.Recv(header)  # so small that it is here
            kind, version, stamp, elements = (int(word) for word in header[:4])
            share, mass = header[4:].view(np.float64)
            value, request = None, None
            if elements != NOTHING:
                value = np.empty(elements, np.uint8 if kind == Kind.FAILED else self._dtype)
                request = self._comm.Irecv(_as_integers(value), sender, _VALUE)
            letter = Letter(Kind(kind), sender, version, stamp, float(share), float(mass), value)
            self._coming.setdefault(sender, deque()).append((letter, request))

    def _under_way(self) -> bool:
        """Whether something is being sent or received. A send that another thread begins right now is seen at the next look."""
        return bool(self._leaving) or any(self._coming.values())

    def _next(self) -> Letter | None:
        """The first letter of any sender that is whole. A large one holds up only what its own sender sent after it."""
        for letters in self._coming.values():
            if letters and (letters[0][1] is None or letters[0][1].Test()):
                return letters.popleft()[0]
        return None


NOTHING = -1
#: What was not delivered, or has not come in whole, by the end: MPI may still read it, or write into it.
_given_up: list[Any] = []


def _as_integers(value: Array) -> Array:
    """The same memory, as something that every MPI library has a type for."""
    return value.view(np.dtype(f"u{value.dtype.itemsize}"))


def _watch(process: int) -> int | None:
    """A descriptor that can be read when the process has ended, even if nobody has asked for its status yet; None: it cannot be watched."""
    try:
        return os.pidfd_open(process)
    except (AttributeError, OSError):  # not Linux, or not allowed
        return None


def _can_be_read(descriptor: int) -> bool:
    poll = select.poll()  # not select.select, which knows descriptors below 1024 only
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
