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
    """W = (sum + own_weight * own) / divisor with the sum that the last GroupAllreduce delivered; no outcome."""

    iteration: int
    own_weight: int
    divisor: int


Effect = ComputeGradient | ApplyUpdate | Allreduce | GroupAllreduce | Average


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """What a wait-avoiding collective gave this rank.

    fresh: 1 if the value published for this version is in the sum, else 0. group_length: |G| of the merged
    version, 0 if there was nothing to merge (merge_once). Integers, or arrays over ranks: algorithms compute with
    them and never branch on them.
    """

    fresh: int
    group_length: int


class RankView(Protocol):
    """What an algorithm may know about the rank it drives."""

    @property
    def iterations(self) -> Iterable[int]:
        """0, 1, 2, ...: a range, or an endless count where the user's own loop decides."""

    @property
    def schedule(self) -> Schedule:
        """Groups, syncs and staleness bounds of this run."""


Algorithm = Generator[Effect, Any, None]
