"""How much longer a rank takes when it straggles: the same delays in the simulator and in a real run.

Injected delays are a scenario's `[[imbalance]]` sections, which add up. They are pure functions of (seed, rank, iteration), as the
compute times (wagma/timing/compute.py) that they come on top of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.draws import Iterations, uniform
from wagma.sections import Section
from wagma.timing.compute import LONGEST_S, Compute, Draw, Ranks, Seconds
from wagma.timing.noise import Noise

NANOSECONDS = 1e9

#: A burst costs as many draws per rank and iteration as it is long; what lasts longer is a fixed slow rank.
LONGEST_BURST = 10_000

Nanoseconds = npt.NDArray[np.int64]


def to_nanoseconds(seconds: Any) -> Any:
    """Whole nanoseconds, rounded half to even; the only place where a time is rounded."""
    return np.rint(np.asarray(seconds) * NANOSECONDS).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Delays of `delay_s` seconds times what `share` says for each rank: 0 or 1, or for linear skew a number in between."""

    kind: str
    delay_s: float
    share: Draw


def read_imbalance(section: Section, ranks: int) -> Imbalance:
    """One `[[imbalance]]`; docs/scenarios.md has the keys of each kind."""
    kind = section.choice("kind", IMBALANCE_KINDS)
    delay_s = section.number("delay_s", 0.0, LONGEST_S)
    share = _SHARES[kind](section, ranks)
    section.finish()
    return Imbalance(kind, delay_s, share)


class Times:
    """Compute times and delays of all ranks, by iteration; whole nanoseconds, int64 arrays of shape (ranks,).

    noise: counts as delay; in the simulator only.
    """

    def __init__(
        self, ranks: int, seed: int, compute: Compute, imbalance: tuple[Imbalance, ...], noise: Noise | None = None
    ) -> None:
        self._ranks = np.arange(ranks)
        self._seed = seed
        self._compute = compute
        self._imbalance = imbalance
        self._noise = None if noise == Noise() else noise
        # Ranks ask one by one for the iteration that they are in; they are seldom many iterations apart.
        self.compute_ns = lru_cache(maxsize=128)(self._draw_compute)
        self.delay_ns = lru_cache(maxsize=128)(self._draw_delay)

    def compute_block(self, first: int, count: int) -> Nanoseconds:
        """Compute times of `count` iterations from `first` on, shape (count, ranks): the same numbers, with fewer calls."""
        return self._computed(*self._table(first, count))

    def delay_block(self, first: int, computed: Nanoseconds) -> Nanoseconds:
        """The delays that belong to such a block."""
        return self._delayed(*self._table(first, computed.shape[0]), computed)

    def _table(self, first: int, count: int) -> tuple[Ranks, Iterations]:
        return np.broadcast_to(self._ranks, (count, self._ranks.size)), np.arange(first, first + count)[:, None]

    def _draw_compute(self, iteration: int) -> Nanoseconds:
        return self._computed(self._ranks, iteration)

    def _draw_delay(self, iteration: int) -> Nanoseconds:
        computed = self._ranks if self._noise is None else self.compute_ns(iteration)
        return self._delayed(self._ranks, iteration, computed)

    def _computed(self, ranks: Ranks, iteration: Iterations) -> Nanoseconds:
        times: Nanoseconds = to_nanoseconds(self._compute.draw(self._seed, "compute", ranks, iteration))
        return times

    def _delayed(self, ranks: Ranks, iteration: Iterations, computed: Nanoseconds) -> Nanoseconds:
        """Delays, those of the noise included, which alone depend on the compute times."""
        total = np.zeros(ranks.shape)
        for number, imbalance in enumerate(self._imbalance):
            total += imbalance.delay_s * imbalance.share(self._seed, f"imbalance.{number}", ranks, iteration)
        if self._noise is not None:
            total += self._noise.seconds(self._seed, ranks, iteration, computed / NANOSECONDS)
        delays: Nanoseconds = to_nanoseconds(total)
        return delays


def _independent(section: Section, world_size: int) -> Draw:
    """Each rank by itself with `probability`, or as in the authors' program: `draws` draws of one rank in P, 1 - (1 - 1/P)^draws."""
    draws = section.integer("draws", 1, default=None) if "draws" in section.names() else 0
    if draws and "probability" in section.names():
        section.fail("probability", section.take("probability"), "give either probability or draws")
    probability = 1 - (1 - 1 / world_size) ** draws if draws else section.number("probability", 0.0, 1.0)
    return lambda seed, purpose, ranks, iteration: (uniform(seed, purpose, ranks, iteration) < probability).astype(float)


def _exactly(section: Section, _world_size: int) -> Draw:
    """`count` distinct ranks (the paper's prose: two), others in each iteration."""
    count = section.integer("count", 0)
    return lambda seed, purpose, ranks, iteration: (_places(seed, purpose, ranks, iteration) < count).astype(float)


def _linear(section: Section, world_size: int) -> Draw:
    """Skew over the ranks: r / (P - 1) of the delay. shuffled: dealt out anew in each iteration."""
    shuffled = section.boolean("shuffled", False)
    last = max(world_size - 1, 1)  # a single rank is the one without delay

    def share(seed: int, purpose: str, ranks: Ranks, iteration: Iterations) -> Seconds:
        return (_places(seed, purpose, ranks, iteration) if shuffled else ranks) / last

    return share


def _fixed(section: Section, world_size: int) -> Draw:
    """The given ranks, or `count` of them drawn once from the seed, in every iteration."""
    if "ranks" not in section.names():
        count = section.integer("count", 0)
        return lambda seed, purpose, ranks, _iteration: (_places(seed, purpose, ranks, 0) < count).astype(float)
    if "count" in section.names():
        section.fail("count", section.take("count"), "give either ranks or count")
    slow = section.take("ranks")
    whole = isinstance(slow, list) and all(isinstance(r, int) and not isinstance(r, bool) and 0 <= r < world_size for r in slow)
    if not whole or len(set(slow)) < len(slow):
        section.fail("ranks", slow, f"must be an array of different whole numbers from 0 to {world_size - 1}, the last rank")
    return lambda _seed, _purpose, ranks, _iteration: np.isin(ranks, slow).astype(float)


def _burst(section: Section, _world_size: int) -> Draw:
    """A rank that is hit, with `probability` in an iteration, stays delayed for `length` iterations; longer if hit again meanwhile.

    So a rank is delayed in an iteration with probability 1 - (1 - probability)^length. That holds from the first iteration on: hits
    before the run count, as if it had begun long ago.
    """
    probability = section.number("probability", 0.0, 1.0)
    length = section.integer("length", 1, LONGEST_BURST)

    def share(seed: int, purpose: str, ranks: Ranks, iteration: Iterations) -> Seconds:
        delayed = np.zeros(ranks.shape, bool)
        for ago in range(length):
            delayed |= uniform(seed, purpose, ranks, iteration - ago) < probability
        return delayed.astype(float)

    return share


def _places(seed: int, purpose: str, ranks: Ranks, iteration: Iterations) -> Ranks:
    """A random permutation of 0..P-1: each rank's place in the order of the ranks' draws."""
    order = np.argsort(uniform(seed, purpose, ranks, iteration), axis=-1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.broadcast_to(np.arange(order.shape[-1]), order.shape), axis=-1)
    return places


_SHARES: dict[str, Callable[[Section, int], Draw]] = {
    "independent": _independent,
    "exactly": _exactly,
    "linear": _linear,
    "fixed": _fixed,
    "burst": _burst,
}
IMBALANCE_KINDS = tuple(_SHARES)
