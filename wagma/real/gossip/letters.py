"""What ranks send each other without a collective: letters, and the post that carries them; this one between threads of a process.

The other one, over MPI, is `wagma.real.gossip.letters_mpi`. Both keep the order of the letters from one rank to another, never wait for a
receiver, and deliver to one thread of each rank.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wagma.core.protocol import NONE

Array = npt.NDArray[Any]


class Kind(IntEnum):
    """What a letter is."""

    PARCEL = 0  # for a neighbour: a value, with its share and mass
    ASK = 1  # for the partner of a pair: the model of who asks
    ANSWER = 2  # the partner's, as it was
    BARRIER = 3  # the sender has come to the barrier; `stamp` is the phase
    JOINED = 4  # for a rank that has closed: the sender has come to the exchanges of iteration `version`
    CLOSED = 5  # the sender's program has ended; `version`: the last iteration whose exchanges it has come to
    DONE = 6  # and it owes nobody anything
    FAILED = 7  # the sender, or rank `version`, has failed; the value is the message


@dataclass(frozen=True, slots=True)
class Letter:
    """`value`, 1-D and C-contiguous, must not change once it is sent; stamp: the iteration that its sender had begun."""

    kind: Kind
    sender: int
    version: int = NONE
    stamp: int = NONE
    share: float = 1.0
    mass: float = 1.0
    value: Array | None = None


class Post(Protocol):
    """One rank's letter box. Any thread may send; one receives."""

    @property
    def rank(self) -> int:
        """Who sends."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    @property
    def name(self) -> str:
        """For messages."""

    def send(self, to: Iterable[int], letter: Letter) -> None:
        """To each of these ranks, after all that was sent to it before. Does not wait for them."""

    def receive(self, limit_s: float) -> Letter | None:
        """The next letter; None if none came within `limit_s`, or if somebody called `wake`."""

    def wake(self) -> None:
        """Somebody waits for a letter, or has the receiving thread look up: it should not take its time."""

    def gone(self) -> list[int]:
        """Ranks whose process has ended."""

    def close(self, limit_s: float, together: bool) -> None:
        """When no thread receives any more: give up what has not left within `limit_s`. `together`: every rank closes, in order."""


def failure(sender: int, rank: int, message: str) -> Letter:
    """The letter that says so; the message may be cut."""
    return Letter(Kind.FAILED, sender, rank, value=np.frombuffer(message.encode()[:_LONGEST_MESSAGE], np.uint8))


def message_of(letter: Letter) -> str:
    """What a failure's letter says."""
    return "" if letter.value is None else letter.value.tobytes().decode(errors="replace")


_LONGEST_MESSAGE = 2000  # bytes


class Office:
    """The letter boxes of all ranks of a process (`wagma.real.local`)."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        # A SimpleQueue's put takes no lock that a thread could hold while it is interrupted: it may be called from anywhere.
        self.boxes: list[queue.SimpleQueue[Letter | None]] = [queue.SimpleQueue() for _ in range(ranks)]

    def fail(self, rank: int, message: str) -> None:
        """Have every rank know that this one has failed."""
        for box in self.boxes:
            box.put(failure(rank, rank, message))

    def post(self, rank: int) -> LocalPost:
        """One rank's."""
        return LocalPost(self, rank)


class LocalPost:
    """A post between threads. Values are handed on as they are."""

    name = "threads"

    def __init__(self, office: Office, rank: int) -> None:
        self.rank = rank
        self.size = office.ranks
        self._boxes = office.boxes

    def send(self, to: Iterable[int], letter: Letter) -> None:
        """Into their boxes."""
        for rank in to:
            self._boxes[rank].put(letter)

    def receive(self, limit_s: float) -> Letter | None:
        """Out of the own box."""
        try:
            return self._boxes[self.rank].get(timeout=limit_s)
        except queue.Empty:
            return None

    def wake(self) -> None:
        """An empty letter."""
        self._boxes[self.rank].put(None)

    def gone(self) -> list[int]:
        """Nobody leaves a process alone: `run_local` says who has failed."""
        return []

    def close(self, limit_s: float, together: bool) -> None:
        """What was sent is there."""
