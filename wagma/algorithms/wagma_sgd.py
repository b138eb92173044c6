"""WAGMA-SGD: wait-avoiding group model averaging (Li et al., TPDS 2021, algorithm 2)."""

from __future__ import annotations

from wagma.algorithms.registry import Collectives, register
from wagma.core.averaging import merge_rule
from wagma.core.effects import Algorithm, Allreduce, ApplyUpdate, Average, ComputeGradient, GroupAllreduce, RankView, Value


@register("wagma_sgd", Collectives.GROUPED, by_merge_rule=True, plain_alone=True)
def wagma_sgd(rank: RankView) -> Algorithm:
    """Average models in changing groups without waiting for late members, and over all ranks every sync_period iterations."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)  # W' = W + U(gradient)
        if rank.schedule.is_sync(t):
            yield Allreduce(t, Value.MODEL)  # W = sum over all ranks / P
        else:
            outcome = yield GroupAllreduce(t, Value.MODEL)
            own_weight, divisor = merge_rule(outcome.fresh, outcome.group_length)
            yield Average(t, own_weight, divisor)  # W = sum/|G|, or (sum + W')/(|G| + 1) if W' came late
