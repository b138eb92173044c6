"""Which versions of the collective exist, which of them are syncs, who takes part, and how stale a contribution can be.

Version = iteration, sync iterations included. `sync_period` is the paper's tau: version v is a sync when
(v + 1) mod sync_period == 0 (W algorithm 2; the authors' program syncs one iteration later, see docs/algorithms.md).
NEVER (0) means no sync. Algorithms without group collectives (allreduce_sgd, local_sgd) have the syncs only.
"""

from __future__ import annotations

from dataclasses import dataclass

from wagma.core.groups import Group, everyone, group_of

NEVER = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The collectives of a run: world_size >= 1, 1 <= group_size <= world_size, sync_period >= 0 (0: never).

    `grouped` False leaves the syncs only. Raises ValueError for values out of range.
    """

    world_size: int
    group_size: int
    sync_period: int
    grouped: bool = True

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"world_size = {self.world_size}: must be at least 1")
        if not 1 <= self.group_size <= self.world_size:
            raise ValueError(f"group_size = {self.group_size}: must be from 1 to world_size = {self.world_size}")
        if self.sync_period < 0 or (self.sync_period == NEVER and not self.grouped):
            raise ValueError(f"sync_period = {self.sync_period}: must be at least 1, or 0 for never with group collectives")

    @property
    def first(self) -> int:
        """The first version."""
        return self.next(-1)

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
        """The members that execute `version` together with `rank`, in association order."""
        if self.is_sync(version):
            return everyone(self.world_size)
        return group_of(self.world_size, self.group_size, version, rank)

    def staleness_bound(self, version: int) -> int:
        """Largest possible version - stamp: 0 at a sync; it grows by one an iteration since (stamp -1: the initial model)."""
        return version + 1 if self.sync_period == NEVER else (version + 1) % self.sync_period

    @property
    def worst_staleness(self) -> int | None:
        """The bound over all versions: sync_period - 1, 0 where there are syncs only; None where nothing bounds it."""
        if not self.grouped:
            return 0
        return None if self.sync_period == NEVER else self.sync_period - 1
