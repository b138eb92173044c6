"""The vocabulary between an algorithm and its world.

An algorithm is a generator: it yields effects and is sent their outcomes. An effect says *what* the rank does next; the driver
(`wagma.sim.driver`, `wagma.real.driver`) knows *how* and how long it takes. Iterations and versions are the same number.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from wagma.core.schedule import Schedule
from wagma.core.settings import AlgorithmSettings

#: A rank (int), or an int64 array of all ranks: one generator can drive them all at once, since algorithms never branch on outcomes.
Ranks = Any
#: A weight: a number for all ranks, or an array over them.
Number = Any


class Value(StrEnum):
    """What a collective carries."""

    MODEL = "model"
    GRADIENT = "gradient"


@dataclass(frozen=True, slots=True)
class ComputeGradient:
    """Forward and backward pass of the iteration on this rank's own data; no outcome."""

    iteration: int


@dataclass(frozen=True, slots=True)
class ApplyUpdate:
    """The local first-order update with the gradient as it now stands: W' = W + U(gradient); no outcome."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Allreduce:
    """Synchronous: replace `value` by its mean over all ranks, waiting for every one of them; no outcome."""

    iteration: int
    value: Value


@dataclass(frozen=True, slots=True)
class GroupAllreduce:
    """Wait-avoiding: publish `value` and join version `iteration`; the outcome is a GroupOutcome, the sum is kept for Average."""

    iteration: int
    value: Value


@dataclass(frozen=True, slots=True)
class Average:
    """value = (sum + own_weight * value) / divisor with the sum that the last GroupAllreduce or Exchange delivered; no outcome."""

    iteration: int
    own_weight: Number
    divisor: Number
    value: Value = Value.MODEL


@dataclass(frozen=True, slots=True)
class Recover:
    """Take back what this rank published and no version has contributed yet, and add it to `value`; no outcome."""

    iteration: int
    value: Value


@dataclass(frozen=True, slots=True)
class Scale:
    """model = factor * model; no outcome. By exactly 1 it changes no bit."""

    iteration: int
    factor: Number


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send the own `value` to the ranks `to` and wait for those of the same iteration of the ranks `sources`.

    The sum over the sources, in their order, of share * value is kept for Average; the outcome is an ExchangeOutcome. `share` and
    `mass` travel with the value, so each sender decides its own. One in an iteration.
    If communication overlaps with the compute, receivers wait for the end of the sender's if what it sends has its gradient in it: the
    gradient itself, or a model after ApplyUpdate.
    """

    iteration: int
    value: Value
    to: tuple[Ranks, ...]
    sources: tuple[Ranks, ...]
    share: Number = 1
    mass: Number = 1


@dataclass(frozen=True, slots=True)
class PairAverage:
    """Average models with `partner`, which does not wait and need not be at any particular iteration; no outcome.

    The partner's model becomes the mean of both when the message reaches it; this rank's model moves by half of the difference
    when the answer is back. What either did to its model meanwhile stays, so that the mean over all ranks is preserved.
    """

    iteration: int
    partner: int


@dataclass(frozen=True, slots=True)
class AwaitIteration:
    """Of a rank's second activity: wait until its first one has begun `iteration`; no outcome."""

    iteration: int


@dataclass(frozen=True, slots=True)
class AwaitAveraging:
    """Of a rank's first activity: wait until its second one has done with `iteration`; no outcome."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """Wait for all ranks to reach this point of `iteration`; no outcome."""

    iteration: int


Effect = (
    ComputeGradient | ApplyUpdate | Allreduce | GroupAllreduce | Average | Recover | Scale | Exchange | PairAverage
    | AwaitIteration | AwaitAveraging | Barrier
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """What a wait-avoiding collective gave this rank.

    fresh: 1 if the value published for this version is in the sum, else 0. group_length: |G| of the merged
    version, 0 if there was nothing to merge (merge_once). Integers, or arrays over ranks: algorithms compute with
    them and never branch on them.
    """

    fresh: Number
    group_length: Number


@dataclass(frozen=True, slots=True)
class ExchangeOutcome:
    """mass: the sum of the masses that came from the sources; a number, or an array over ranks."""

    mass: Number


class RankView(Protocol):
    """What an algorithm may know about the rank it drives."""

    @property
    def rank(self) -> Ranks:
        """This rank, 0 to world_size - 1; or all of them as an array, where one generator drives all ranks."""

    @property
    def settings(self) -> AlgorithmSettings:
        """What the user has set for this algorithm."""

    @property
    def iterations(self) -> Iterable[int]:
        """0, 1, 2, ...: a range, or an endless count where the user's own loop decides."""

    @property
    def schedule(self) -> Schedule:
        """Groups, syncs and staleness bounds of this run."""


Algorithm = Generator[Effect, Any, None]
