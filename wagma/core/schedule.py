"""Which versions of the collective exist, which of them are syncs, who takes part, and how stale a contribution can be.

Version = iteration, sync iterations included. `sync_period` is the paper's tau: version v is a sync when
(v + 1) mod sync_period == 0 (W algorithm 2; the authors' program syncs one iteration later, see docs/algorithms.md).
NEVER (0) means no sync. Algorithms without group collectives (allreduce_sgd, local_sgd) have the syncs only.

Initiators (E): which ranks may activate a version. EVERYBODY is solo, where the first of all ranks to arrive activates; m < P draws m
candidates per version, the same at every rank, and the first of them to arrive activates: with m = 1, majority, half of the
ranks have arrived by then in expectation, in general (P + 1) / (m + 1).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

from wagma.core.groups import Group, everyone, group_of
from wagma.core.mixing import GOLDEN, mix_word

NEVER = 0
EVERYBODY = 0
_PURPOSE = zlib.crc32(b"initiators")
_STEP = int(GOLDEN)


@lru_cache(maxsize=128)  # ranks ask for the versions under way; half of a million candidates each would be too many to keep
def candidates(world_size: int, initiators: int, seed: int, version: int) -> frozenset[int]:
    """The ranks that may activate a version: `initiators` distinct ones, uniformly drawn; everybody without any draw.

    Floyd's sampling (Bentley and Floyd, CACM 1987): one draw for each candidate, whatever the world size. Draw j is
    `wagma.core.mixing.bits(seed, "initiators", j, version)`, scaled to 0..j by its upper bits.
    """
    if initiators in (EVERYBODY, world_size):
        return frozenset(range(world_size))
    state = seed
    for word in (_PURPOSE, version):
        state = mix_word((state ^ word) + _STEP)
    chosen: set[int] = set()
    for j in range(world_size - initiators, world_size):
        word = mix_word(mix_word((state ^ j) + _STEP))
        rank = word * (j + 1) >> 64
        chosen.add(j if rank in chosen else rank)
    return frozenset(chosen)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The collectives of a run: world_size >= 1, 1 <= group_size <= world_size, sync_period >= 0 (0: never).

    `grouped` False leaves the syncs only. `fixed`: the groups of version 0 in every version, one of
    W's ablations. `initiators`: how many ranks may activate a version, 0 (everybody) to world_size; `seed` decides which.
    `accumulate`: contributions to group versions are sums of what no version has taken yet (gradients, E) instead of the newest that
    was published (models, W). `begin`: the first iteration, 0 or where a resumed run goes on; what versions are does not depend on it.
    Raises ValueError for values out of range.
    """

    world_size: int
    group_size: int
    sync_period: int
    grouped: bool = True
    fixed: bool = False
    initiators: int = EVERYBODY
    seed: int = 0
    accumulate: bool = False
    begin: int = 0

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"world_size = {self.world_size}: must be at least 1")
        if not 1 <= self.group_size <= self.world_size:
            raise ValueError(f"group_size = {self.group_size}: must be from 1 to world_size = {self.world_size}")
        if self.sync_period < 0 or (self.sync_period == NEVER and not self.grouped):
            raise ValueError(f"sync_period = {self.sync_period}: must be at least 1, or 0 for never with group collectives")
        if not 0 <= self.initiators <= self.world_size:
            allowed = f"0 (everybody) to world_size = {self.world_size}"
            raise ValueError(f"initiators = {self.initiators}: must be from {allowed}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed = {self.seed}: must be from 0 to 2^63 - 1")
        if self.accumulate and not self.grouped:
            raise ValueError("accumulate = True: must be False without group collectives")
        if self.begin < 0:
            raise ValueError(f"begin = {self.begin}: must be at least 0")

    @property
    def first(self) -> int:
        """The first version."""
        return self.next(self.begin - 1)

    def next(self, version: int) -> int:
        """The version that follows `version` (which may be any iteration, or -1)."""
        if self.grouped:
            return version + 1
        return (version + 1) // self.sync_period * self.sync_period + self.sync_period - 1

    def previous(self, version: int) -> int:
        """The version before `version`; negative before the first."""
        return version - (1 if self.grouped else self.sync_period)

    def is_sync(self, version: int) -> bool:
        """Whether `version` is a global sync."""
        return self.sync_period != NEVER and (version + 1) % self.sync_period == 0

    def group(self, rank: int, version: int) -> Group:
        """The members that execute `version` together with `rank`, in association order; one group of all is in rank order."""
        if self.group_size == self.world_size or self.is_sync(version):
            return everyone(self.world_size)
        return group_of(self.world_size, self.group_size, 0 if self.fixed else version, rank)

    @property
    def selective(self) -> bool:
        """Whether some ranks may not activate some versions."""
        return self.initiators not in (EVERYBODY, self.world_size)

    def may_activate(self, rank: int, version: int) -> bool:
        """Whether the arrival of `rank` may activate `version`. A sync is activated by everybody."""
        return not self.selective or self.is_sync(version) or rank in self.candidates(version)

    def candidates(self, version: int) -> frozenset[int]:
        """The ranks that may activate `version`, if it is no sync."""
        return candidates(self.world_size, self.initiators, self.seed, version)

    def staleness_bound(self, version: int) -> int:
        """Largest possible version - stamp: 0 at a sync; it grows by one an iteration since (stamp begin - 1: the initial model).

        Where contributions accumulate, stamp is that of the oldest gradient: none is left from before or at a sync, so it is one less.
        """
        bound = version + 1 if self.sync_period == NEVER else (version + 1) % self.sync_period
        return max(0, bound - 1) if self.accumulate else bound

    @property
    def worst_staleness(self) -> int | None:
        """The bound over all versions: sync_period - 1, 0 where there are syncs only; None where nothing bounds it."""
        if not self.grouped:
            return 0
        return None if self.sync_period == NEVER else self.staleness_bound(max(0, self.sync_period - 2))
