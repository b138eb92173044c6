"""How long a rank computes in an iteration: `[compute]` of a scenario.

Every kind is a pure function of (seed, purpose, rank, iteration). A distribution is the inverse of its CDF at one uniform draw. A
mixture, and a bucket, is picked by a draw with a purpose of its own: what is left of the picking draw would be uniform too, but with
as many bits fewer as the weight is small, and could round to 0 or 1, where an inverse CDF may be infinite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.draws import Iterations, uniform
from wagma.errors import InputError
from wagma.sections import Section
from wagma.timing.measured import read_csv

#: What can be in a mixture: distributions. A mixture of mixtures is a mixture, and a trace draws nothing.
COMPONENT_KINDS = ("constant", "scipy", "samples", "buckets")
COMPUTE_KINDS = (*COMPONENT_KINDS, "mixture", "trace")

#: 30 years: whole nanoseconds stay within 63 bits, a few delays added. Lengths and weights keep within it too.
LONGEST_S = 1e9
ALLOWED = f"numbers greater than 0 and at most {LONGEST_S:g}"

Seconds = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]

#: (seed, purpose, ranks, iteration) -> one value for each of the ranks. Of a column of iterations, shape (n, 1), with the ranks repeated
#: for each, shape (n, ranks), that is a table of the same bits.
Draw = Callable[[int, str, Ranks, Iterations], Seconds]
Pick = Callable[[int, str, Ranks, Iterations], npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Compute:
    """Seconds that ranks compute in an iteration. measured: the times of a trace, [rank, iteration], which are read, not drawn."""

    kind: str
    draw: Draw
    measured: Seconds | None = field(default=None, compare=False, repr=False)


def read_compute(section: Section) -> Compute:
    """`[compute]`; docs/scenarios.md has the keys of each kind."""
    kind = section.choice("kind", COMPUTE_KINDS)
    if kind == "trace":
        measured = _measured(section)
        section.finish()
        return Compute(kind, _repeated(measured), measured)
    return Compute(kind, _mixture(section) if kind == "mixture" else _component(kind, section))


def _component(kind: str, section: Section) -> Draw:
    """The draw of a kind that can stand alone and in a mixture; all keys of the section are taken."""
    if kind == "buckets":
        draw = _buckets(section)
    elif kind == "constant":
        draw = _constant(section)
    else:
        inverse_cdf = {"samples": _samples, "scipy": _distribution}[kind](section)

        def draw(seed: int, purpose: str, ranks: Ranks, iteration: Iterations) -> Seconds:
            return inverse_cdf(uniform(seed, purpose, ranks, iteration))

    section.finish()
    return draw


def _constant(section: Section) -> Draw:
    seconds = section.number("seconds", 0.0, LONGEST_S, positive=True)
    return lambda _seed, _purpose, ranks, _iteration: np.full(ranks.shape, seconds)


def _samples(section: Section) -> Callable[[Seconds], Seconds]:
    samples = section.take("seconds")
    if not _all_positive(samples):
        section.fail("seconds", samples, f"must be a non-empty array of finite {ALLOWED}")
    ordered = np.sort(np.array(samples, float))
    return lambda u: ordered[(u * ordered.size).astype(int)]


def _distribution(section: Section) -> Callable[[Seconds], Seconds]:
    """A scipy.stats distribution by name with its shape parameters, loc and scale; it must not be negative and have a mean.

    What is drawn from it is checked when it is drawn: a tail that is heavy, with a finite mean, may reach beyond what can be counted.
    """
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
    what = f"{section.source}: {section.name}: {name} with {parameters}"
    frozen = distribution(**parameters)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of overflows on the way: what comes out is checked
        low, mean, index = float(frozen.support()[0]), float(frozen.mean()), _tail_index(frozen)
    if math.isfinite(mean) and mean > LONGEST_S:
        raise InputError(f"{what} has a mean of {mean:g} s; must be at most {LONGEST_S:g} s")
    if not math.isfinite(mean) or mean < low or index <= 1:
        raise InputError(f"{what} has no finite mean")
    if not low >= 0:
        raise InputError(f"{what} can be negative (from {low:g}); set loc")

    def inverse_cdf(u: Seconds) -> Seconds:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            seconds = np.asarray(frozen.ppf(u), float)
        if not np.all((seconds >= 0) & (seconds <= LONGEST_S)):
            worst = float(seconds[~((seconds >= 0) & (seconds <= LONGEST_S))].flat[0])
            raise InputError(f"{what}: a rank would compute for {worst:g} s; must be at most {LONGEST_S:g} s")
        return seconds

    return inverse_cdf


def _tail_index(frozen: Any) -> float:
    """a where the tail is that of a power law, P(X > x) ~ x^-a: the mean is finite only above 1. inf: the tail is too thin to see.

    scipy continues some means analytically to where there are none (invweibull), so they are not to be relied on.
    """
    near, far = (float(frozen.sf(x)) for x in (1e50, 1e100))
    if not 0 < far < near:  # a tail that rounding keeps from falling is none
        return math.inf
    return math.log(near / far) / math.log(1e50)


def _mixture(section: Section) -> Draw:
    """components: tables with a weight and a distribution each. Which one: drawn per rank, or once for all (shared)."""
    components = section.subsections("components")
    if not components:
        section.fail("components", [], "must be a non-empty array of tables ([[...]])")
    weights = [component.number("weight", 0.0, LONGEST_S, positive=True) for component in components]
    draws = [_component(component.choice("kind", COMPONENT_KINDS), component) for component in components]
    pick = _picker(weights, section.boolean("shared", False))
    section.finish()

    def draw(seed: int, purpose: str, ranks: Ranks, iteration: Iterations) -> Seconds:
        picked = pick(seed, f"{purpose}.pick", ranks, iteration)
        seconds = np.empty(ranks.shape)
        for number, component in enumerate(draws):
            mine = picked == number
            # A purpose for each component, for its draws must not be those that another one, or a bucket in it, was picked by.
            if isinstance(iteration, np.ndarray):
                for row, one in enumerate(iteration[:, 0].tolist()):
                    here = mine[row]
                    seconds[row, here] = component(seed, f"{purpose}.{number}", ranks[row, here], one)
            else:
                seconds[mine] = component(seed, f"{purpose}.{number}", ranks[mine], iteration)
        return seconds

    return draw


def _buckets(section: Section) -> Draw:
    """A batch of equally many sequences from one bucket: base_s + linear_s * length + quadratic_s * length^2 seconds.

    A bucket has one length, which batches are padded to, or [shortest, longest], and a batch's length is uniform in between. shared:
    all ranks take the same bucket in an iteration; their lengths within it are still their own.
    """
    lengths = section.take("lengths")
    bounds = [item if isinstance(item, list) else [item, item] for item in lengths] if isinstance(lengths, list) else []
    if not bounds or not all(len(pair) == 2 and _all_positive(pair) and pair[0] <= pair[1] for pair in bounds):
        section.fail("lengths", lengths, f"must be a non-empty array of {ALLOWED}, or of pairs [shortest, longest]")
    weights = section.take("weights", [1] * len(bounds))
    if not _all_positive(weights) or len(weights) != len(bounds):
        section.fail("weights", weights, f"must be one for each of the {len(bounds)} lengths, {ALLOWED}")
    base, quadratic = (section.number(key, 0.0, LONGEST_S, default=0.0) for key in ("base_s", "quadratic_s"))
    linear = section.number("linear_s", 0.0, LONGEST_S, positive=True)
    pick = _picker(weights, section.boolean("shared", False))
    low, high = np.array(bounds, float).T

    def seconds(length: Seconds) -> Seconds:
        return base + (linear + quadratic * length) * length

    if not (slowest := float(seconds(high).max())) <= LONGEST_S:
        section.fail("lengths", lengths, f"the longest takes {slowest:g} s; must be at most {LONGEST_S:g} s")

    def draw(seed: int, purpose: str, ranks: Ranks, iteration: Iterations) -> Seconds:
        picked = pick(seed, f"{purpose}.pick", ranks, iteration)
        within = uniform(seed, purpose, ranks, iteration)
        return seconds(low[picked] + (high - low)[picked] * within)

    return draw


def _picker(weights: list[float], shared: bool) -> Pick:
    """Which of several, by cumulative weight; weights need not sum to 1. shared: all ranks go by rank 0's draw."""
    cumulative = np.cumsum(np.array(weights, float))
    bounds = (cumulative / cumulative[-1])[:-1]  # without the last, which is 1: a draw above the others picks the last

    def pick(seed: int, purpose: str, ranks: Ranks, iteration: Iterations) -> npt.NDArray[np.int64]:
        drawing = np.zeros_like(ranks) if shared else ranks
        return np.searchsorted(bounds, uniform(seed, purpose, drawing, iteration), side="right")

    return pick


def _measured(section: Section) -> Seconds:
    """The times of a CSV file beside the scenario (file), or those that a trace's header carries instead (seconds)."""
    if "seconds" not in section.names():
        return read_csv(Path(section.source).parent / section.string("file"), LONGEST_S)
    if "file" in section.names():
        section.fail("file", section.take("file"), "give either file or seconds")
    rows = section.take("seconds")
    if not isinstance(rows, list) or not rows or not all(_all_positive(r) and len(r) == len(rows[0]) for r in rows):
        section.fail("seconds", rows, f"must be equally long arrays, one for each rank, of finite {ALLOWED}")
    return np.array(rows, float)


def _repeated(measured: Seconds) -> Draw:
    """The measured times, from the start again for ranks and iterations beyond them."""

    def draw(_seed: int, _purpose: str, ranks: Ranks, iteration: Iterations) -> Seconds:
        seconds: Seconds = measured[ranks % measured.shape[0], iteration % measured.shape[1]]
        return seconds

    return draw


def _all_positive(values: Any) -> bool:
    """A non-empty array of what ALLOWED says."""
    return isinstance(values, list) and bool(values) and all(_positive(value) for value in values)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LONGEST_S
