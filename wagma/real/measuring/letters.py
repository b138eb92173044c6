"""What ranks that gossip send each other (`wagma.real.gossip`): a pair's average, and an exchange."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.core.effects import Exchange, PairAverage, Value
from wagma.draws import uniform
from wagma.real.bench.idle import compute_until
from wagma.real.bench.rounds import Rounds
from wagma.real.gossip.exchange import Gossip, gossip_of
from wagma.real.gossip.letters import Kind, Letter
from wagma.real.gossip.shared import SharedModel

TIMEOUT_S = 60.0
WARM_UP = 3
#: Between two averages: so long that the receiving threads have come to their longest naps, and not always at the same point of one.
REST_S = (4e-3, 12e-3)

Array = npt.NDArray[Any]


class Plain:
    """A model that is an array (`wagma.real.gossip.shared.Flat`)."""

    exact = True

    def __init__(self, values: Array) -> None:
        self._values = values
        self.size = values.size
        self.dtype = values.dtype

    def read(self, out: Array | None = None) -> Array:
        """All values."""
        if out is None:
            return self._values.copy()
        out[...] = self._values
        return out

    def write(self, values: Array) -> None:
        """Put values back."""
        self._values[...] = values


def samples(comm: Any, count: int, repetitions: int, work_s: float) -> dict[str, list[float]] | None:
    """Seconds on the two ranks of `comm`, models being `count` float32; on rank 0, None on the other.

    pair: an average, whose partner sleeps. exchange: from the last rank's coming to its last return, where both compute for work_s
    before they come, and afterwards. sender: what sending keeps the program's thread.
    """
    rounds = Rounds(comm)
    gossip = gossip_of(comm, np.dtype(np.float32), TIMEOUT_S, 0.0)
    gossip.model = SharedModel(Plain(np.ones(count, np.float32)), gossip.changed)
    gossip.start()
    pairs: list[float] = []
    senders: list[float] = []
    rounds.line_up()
    for number in range(WARM_UP + repetitions):
        gossip.begin(number)
        if comm.rank == 0:
            time.sleep(REST_S[0] + (REST_S[1] - REST_S[0]) * _uniform(number))
            before = time.monotonic_ns()
            gossip.average_pair(PairAverage(number, 1))
            pairs.append((time.monotonic_ns() - before) * 1e-9)
            before = time.monotonic_ns()
            gossip.post.send([1], Letter(Kind.JOINED, 0))  # says nothing: it has come to no exchange
            senders.append((time.monotonic_ns() - before) * 1e-9)
    exchanges = _exchanges(comm, rounds, gossip, count, repetitions, work_s)
    gossip.close()
    return {"pair": pairs[WARM_UP:], "sender": senders[WARM_UP:], "exchange": exchanges} if comm.rank == 0 else None


def _exchanges(comm: Any, rounds: Rounds, gossip: Gossip, count: int, repetitions: int, work_s: float) -> list[float]:
    """Of each exchange of both ranks, seconds from the last call to the last return; on rank 0, nothing of use on the other."""
    other, work = (1 - comm.rank,), np.ones(2_000)
    begins, ends = [], []
    first = gossip.iteration + 1
    for number in range(first, first + WARM_UP + repetitions):
        start, _ = rounds.line_up()
        gossip.begin(number)
        compute_until(start + int(1e9 * work_s), work)
        begins.append(time.monotonic_ns())
        gossip.exchange(Exchange(number, Value.MODEL, to=other, sources=other), np.ones(count, np.float32))
        ends.append(time.monotonic_ns())
        compute_until(ends[-1] + int(1e9 * work_s), work)
    gossip.begin(first + WARM_UP + repetitions)  # beyond all exchanges: the end asks for no further one
    rounds.line_up()
    found = comm.allgather((begins[WARM_UP:], ends[WARM_UP:]))
    taken = np.array([e for _, e in found]).max(axis=0) - np.array([b for b, _ in found]).max(axis=0)
    return [float(nanoseconds) * 1e-9 for nanoseconds in taken]


def _uniform(number: int) -> float:
    """From 0 to 1, the same numbers in every measurement."""
    return float(uniform(0, "measure.letters", np.zeros(1, np.int64), number)[0])
