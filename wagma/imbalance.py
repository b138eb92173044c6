"""How long a rank computes, and how much longer when it straggles: the same draws in the simulator and in a real run.

Compute times are the scenario's `[compute]`; injected delays are its `[[imbalance]]` sections, which add up. Both are pure
functions of (seed, rank, iteration).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.draws import uniform
from wagma.errors import InputError
from wagma.sections import Section

COMPUTE_KINDS = ("constant", "scipy", "samples")
IMBALANCE_KINDS = ("independent", "exactly")
NANOSECONDS = 1e9

Seconds = npt.NDArray[np.float64]
Nanoseconds = npt.NDArray[np.int64]


def to_nanoseconds(seconds: Any) -> Any:
    """Whole nanoseconds, rounded half to even; the only place where a time is rounded."""
    return np.rint(np.asarray(seconds) * NANOSECONDS).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Compute:
    """Seconds a rank computes per iteration, as an inverse CDF of one uniform draw."""

    kind: str
    inverse_cdf: Callable[[Seconds], Seconds]


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Delays of `delay_s` seconds for the ranks that `kind` picks in each iteration.

    independent: each rank by itself with `probability` (FACTS of the authors' program: two draws of one rank in P, so
    1 - (1 - 1/P)^2). exactly: `count` distinct ranks (the paper's prose: two).
    """

    kind: str
    delay_s: float
    probability: float = 0.0
    count: int = 0


def read_compute(section: Section) -> Compute:
    """`[compute]`: constant (seconds), scipy (distribution, and its parameters in seconds), or samples (seconds = [...])."""
    kind = section.choice("kind", COMPUTE_KINDS)
    if kind == "constant":
        seconds = section.number("seconds", positive=True)
        compute = Compute(kind, lambda u: np.full(u.shape, seconds))
    elif kind == "samples":
        samples = section.take("seconds")
        if not isinstance(samples, list) or not samples or not all(_positive(s) for s in samples):
            section.fail("seconds", samples, "must be a non-empty array of finite numbers greater than 0")
        ordered = np.sort(np.array(samples, float))
        compute = Compute(kind, lambda u: ordered[(u * ordered.size).astype(int)])
    else:
        compute = Compute(kind, _distribution(section))
    section.finish()
    return compute


def read_imbalance(section: Section, ranks: int) -> Imbalance:
    """One `[[imbalance]]`: independent (probability, or draws: 1 - (1 - 1/P)^draws) or exactly (count of ranks)."""
    kind = section.choice("kind", IMBALANCE_KINDS)
    delay_s = section.number("delay_s")
    if kind == "exactly":
        imbalance = Imbalance(kind, delay_s, count=min(section.integer("count", 0), ranks))
    else:
        draws = section.integer("draws", 1, default=None) if "draws" in section.names() else 0
        if draws and "probability" in section.names():
            section.fail("probability", section.take("probability"), "give either probability or draws")
        probability = 1 - (1 - 1 / ranks) ** draws if draws else section.number("probability", 0.0, 1.0)
        imbalance = Imbalance(kind, delay_s, probability=probability)
    section.finish()
    return imbalance


class Times:
    """Compute times and delays of all ranks, by iteration; whole nanoseconds, int64 arrays of shape (ranks,)."""

    def __init__(self, ranks: int, seed: int, compute: Compute, imbalance: tuple[Imbalance, ...]) -> None:
        self._ranks = np.arange(ranks)
        self._seed = seed
        self._compute = compute
        self._imbalance = imbalance
        # Ranks ask one by one for the iteration that they are in; they are seldom many iterations apart.
        self.compute_ns = lru_cache(maxsize=128)(self._draw_compute)
        self.delay_ns = lru_cache(maxsize=128)(self._draw_delay)

    def _draw_compute(self, iteration: int) -> Nanoseconds:
        u = uniform(self._seed, "compute", self._ranks, iteration)
        times: Nanoseconds = to_nanoseconds(self._compute.inverse_cdf(u))
        return times

    def _draw_delay(self, iteration: int) -> Nanoseconds:
        total = np.zeros(self._ranks.shape)
        for number, imbalance in enumerate(self._imbalance):
            u = uniform(self._seed, f"imbalance.{number}", self._ranks, iteration)
            if imbalance.kind == "independent":
                delayed = u < imbalance.probability
            else:
                delayed = np.zeros(u.shape, bool)
                delayed[np.argsort(u, kind="stable")[: imbalance.count]] = True
            total += imbalance.delay_s * delayed
        delays: Nanoseconds = to_nanoseconds(total)
        return delays


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _distribution(section: Section) -> Callable[[Seconds], Seconds]:
    """A scipy.stats distribution by name with its shape parameters, loc and scale; it must not be negative and have a mean."""
    from scipy import stats  # here and not above: scipy.stats takes a second to import, most scenarios do without

    name = section.string("distribution")
    distribution = getattr(stats, name, None)
    if not isinstance(distribution, stats.rv_continuous):
        section.fail("distribution", name, "must be the name of a continuous distribution in scipy.stats")
    shapes = distribution.shapes.replace(" ", "").split(",") if distribution.shapes else []
    parameters = {key: section.number(key, -math.inf) for key in shapes}
    parameters |= {
        "loc": section.number("loc", -math.inf, default=0.0),
        "scale": section.number("scale", positive=True, default=1.0),
    }
    frozen = distribution(**parameters)
    low, mean = frozen.support()[0], frozen.mean()
    if not math.isfinite(mean):
        raise InputError(f"{section.source}: {section.name}: {name} with {parameters} has no finite mean")
    if not low >= 0:
        raise InputError(f"{section.source}: {section.name}: {name} with {parameters} can be negative (from {low:g}); set loc")
    return lambda u: np.asarray(frozen.ppf(u), float)
