"""Algorithms by name, with what a driver must know before the first iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from wagma.core.effects import Algorithm, RankView, Value
from wagma.core.schedule import EVERYBODY, NEVER, Schedule
from wagma.errors import InputError


class Collectives(StrEnum):
    """Which versions of the collective an algorithm joins."""

    NONE = "none"  # it never communicates
    EVERY = "every"  # a sync in every iteration
    PERIODIC = "periodic"  # a sync every sync_period iterations, nothing between
    GROUPED = "grouped"  # a group allreduce in every iteration, a sync every sync_period
    WHOLE = "whole"  # gradients over all ranks in every iteration, waiting for nobody; a sync of models every sync_period
    NEIGHBOURS = "neighbours"  # no collective; a synchronous exchange with neighbours in every iteration
    PAIRS = "pairs"  # no collective; averaging in pairs, which nothing keeps in step


@dataclass(frozen=True, slots=True)
class Specification:
    """An algorithm: its generator, the collectives it joins, what they carry, and whether it suffers injected delays.

    keys: the settings beyond the shared ones that it reads (`wagma.core.settings`). companion: a second activity of each rank, beside
    the first (AD-PSGD's communication). by_merge_rule: its group averages are those of `wagma.core.averaging.merge_rule`, so that a
    transport may write a fresh rank's mean at once. plain_alone: one rank of it does what its optimizer alone does.
    """

    name: str
    run: Callable[[RankView], Algorithm]
    collectives: Collectives
    value: Value = Value.MODEL
    delayed: bool = True
    keys: tuple[str, ...] = ()
    companion: Callable[[RankView], Algorithm] | None = None
    by_merge_rule: bool = False
    plain_alone: bool = False

    def schedule(
        self, world_size: int, group_size: int, sync_period: int, initiators: int = EVERYBODY, seed: int = 0
    ) -> Schedule:
        """The schedule of a run with these settings; those that the algorithm does not use are ignored."""
        match self.collectives:
            case Collectives.GROUPED:
                return Schedule(world_size, group_size, sync_period)
            case Collectives.WHOLE:
                return Schedule(world_size, world_size, sync_period, initiators=initiators, seed=seed, accumulate=True)
            case Collectives.PERIODIC:
                if sync_period == NEVER:
                    raise InputError(f'sync_period = "never": {self.name} does nothing but sync; allowed: 1 or more')
                return Schedule(world_size, 1, sync_period, grouped=False)
            case Collectives.EVERY | Collectives.NONE | Collectives.NEIGHBOURS | Collectives.PAIRS:
                return Schedule(world_size, 1, 1, grouped=False)

    def staleness_bound(self, schedule: Schedule) -> int | None:
        """The staleness that the algorithm promises not to exceed; None where nothing bounds it."""
        match self.collectives:
            case Collectives.NEIGHBOURS:
                return 0
            case Collectives.PAIRS:
                return None
        return schedule.worst_staleness

    def exchanged_twice(self, iteration: int) -> InputError:
        """What an engine raises if the algorithm exchanges with neighbours again in an iteration: messages have its number alone."""
        return InputError(
            f"algorithm {self.name}: a second Exchange in iteration {iteration}; allowed: one in an iteration, in order"
        )


#: In the order in which `--algorithms all` runs them.
ALGORITHMS: dict[str, Specification] = {}


def register(
    name: str,
    collectives: Collectives,
    value: Value = Value.MODEL,
    delayed: bool = True,
    keys: tuple[str, ...] = (),
    companion: Callable[[RankView], Algorithm] | None = None,
    by_merge_rule: bool = False,
    plain_alone: bool = False,
) -> Callable[[Callable[[RankView], Algorithm]], Callable[[RankView], Algorithm]]:
    """Decorator: make a generator function available by `name` in both worlds. Raises InputError if the name is taken."""

    def add(run: Callable[[RankView], Algorithm]) -> Callable[[RankView], Algorithm]:
        if name in ALGORITHMS:
            raise InputError(f"algorithm {name!r} is registered already")
        ALGORITHMS[name] = Specification(name, run, collectives, value, delayed, keys, companion, by_merge_rule, plain_alone)
        return run

    return add


def specification(name: str) -> Specification:
    """The algorithm called `name`. Raises InputError, naming what is allowed."""
    if name not in ALGORITHMS:
        raise InputError(f"algorithm = {name!r}: unknown; allowed: {', '.join(sorted(ALGORITHMS))}")
    return ALGORITHMS[name]
