"""Where ranks hang out what they have done so far, and rank 0 reads it: without a collective, and without waiting for anybody.

A board loses what is out of date: rank 0 sees the newest row of each rank, as old as that rank's last `put`. At the end all meet once, when
everybody has closed.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wagma.errors import CollectiveTimeout
from wagma.real.limited import duplicate, is_local

Array = npt.NDArray[np.float64]

_POLL_S = 0.001
_TAG = 1

#: What was given up, with its buffers: MPI may still read them.
_given_up: list[Any] = []


class Board(Protocol):
    """One rank's view of the board."""

    def put(self, row: Array) -> None:
        """Hang out this rank's row, float64 of fixed length."""

    def rows(self) -> Array:
        """On rank 0: the newest row of each rank, zeros before the first; shape (ranks, row length), not to be changed."""

    def finish(self, value: Any, timeout_s: float) -> list[Any] | None:
        """Collective, once, when no rank puts any more: every rank's value on rank 0, None elsewhere. Raises CollectiveTimeout."""

    def abandon(self) -> None:
        """The run has failed: no `finish` follows."""


def make_board(comm: Any, length: int, timeout_s: float) -> Board:
    """A board for rows of `length`. Collective. Raises CollectiveTimeout if a rank does not come."""
    if is_local(comm):
        return LocalBoard(comm, length)
    return MpiBoard(comm, length, timeout_s)


class LocalBoard:
    """Between threads of a process. A row is exchanged as a whole: Python assigns an item of a list in one piece."""

    def __init__(self, comm: Any, length: int) -> None:
        self._comm = comm
        rows = [np.zeros(length) for _ in range(comm.size)] if comm.rank == 0 else None
        self._rows: list[Array] = comm.allgather(rows)[0]

    def put(self, row: Array) -> None:
        """As Board has it."""
        self._rows[self._comm.rank] = row

    def rows(self) -> Array:
        """As Board has it."""
        return np.stack(self._rows)

    def finish(self, value: Any, timeout_s: float) -> list[Any] | None:
        """As Board has it; raises PeerFailed if another rank has failed."""
        values: list[Any] = self._comm.allgather(value, timeout_s)
        return values if self._comm.rank == 0 else None

    def abandon(self) -> None:
        """Nothing is under way."""


class MpiBoard:
    """Over MPI, on a communicator of its own: one message of a few hundred bytes at a time from each rank, received whenever rank 0 looks.

    Called by the application's thread only. A message so short is on its way at once; if it is not (rank 0 has not called MPI for
    long, and its mailbox is full), this rank's next rows are dropped until it is.
    """

    def __init__(self, comm: Any, length: int, timeout_s: float) -> None:
        self._mpi = import_module("mpi4py.MPI")
        self._comm = duplicate(comm, timeout_s)
        self._rows = np.zeros((self._comm.size, length))
        self._sent: Any = None  # the request, if there is one, of _row
        self._row = np.zeros(length)

    def put(self, row: Array) -> None:
        """As Board has it."""
        if self._comm.rank == 0:
            self._rows[0] = row
        elif self._has_left():
            self._row[:] = row
            self._sent = self._comm.Isend(self._row, 0, _TAG)

    def rows(self) -> Array:
        """As Board has it."""
        status = self._mpi.Status()
        while (message := self._comm.Improbe(self._mpi.ANY_SOURCE, _TAG, status)) is not None:
            message.Recv(self._rows[status.Get_source()])
        return self._rows.copy()

    def finish(self, value: Any, timeout_s: float) -> list[Any] | None:
        """As Board has it.

        Nobody is in the barrier before its last row has left, and rank 0 goes on receiving until all are: so nobody waits for a rank 0
        that waits for it.
        """
        deadline = time.monotonic() + timeout_s
        while not self._has_left():
            self._pause(deadline)
        arrived = self._comm.Ibarrier()
        while not arrived.Test():
            if self._comm.rank == 0:
                self.rows()
            try:
                self._pause(deadline)
            except BaseException:  # Ctrl-C, too
                _given_up.append((self._comm, arrived))
                raise
        values: list[Any] | None = self._comm.gather(value, 0)  # all are here: the rest is data
        if self._comm.rank == 0:
            self.rows()
        self._comm.Free()
        return values

    def abandon(self) -> None:
        """Leave the last message to MPI."""
        _given_up.append((self._comm, self._sent, self._row))

    def _has_left(self) -> bool:
        if self._sent is not None and self._sent.Test():
            self._sent = None
        return self._sent is None

    def _pause(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            self.abandon()
            raise CollectiveTimeout(
                f"rank {self._comm.rank}: not all {self._comm.size} ranks came to hand in what they saw in time, after all had closed"
            )
        time.sleep(_POLL_S)
