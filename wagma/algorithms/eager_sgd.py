"""Eager-SGD: gradient averaging with partial collectives (Li et al., PPoPP 2020; E)."""

from __future__ import annotations

from wagma.algorithms.registry import Collectives, register
from wagma.core.effects import (
    Algorithm,
    Allreduce,
    ApplyUpdate,
    Average,
    ComputeGradient,
    GroupAllreduce,
    RankView,
    Recover,
    Value,
)


@register("eager_sgd", Collectives.WHOLE, Value.GRADIENT, keys=("initiators",), plain_alone=True)
def eager_sgd(rank: RankView) -> Algorithm:
    """Average the gradients that are there when an initiator arrives; a late one is added to the next. Average models at times."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield Recover(t, Value.GRADIENT)  # g = g + what no version has taken yet
        if rank.schedule.is_sync(t):
            yield ApplyUpdate(t)
            yield Allreduce(t, Value.MODEL)  # W = sum over all ranks / P
        else:
            yield GroupAllreduce(t, Value.GRADIENT)
            yield Average(t, 0, rank.schedule.world_size, Value.GRADIENT)  # g = sum / P, whether the own one is in it or not
            yield ApplyUpdate(t)
