"""What a user can set for an algorithm beyond its schedule of collectives; numbers, resolved and checked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlgorithmSettings:
    """Each algorithm reads what concerns it.

    out_neighbours: sgp, to how many ranks each sends per iteration, at least 1. local_steps: swarm_sgd, updates between two
    averagings, at least 1. global_clock: d_psgd and sgp, whether all ranks begin an iteration together (W section 2.2) or each
    as soon as its own neighbours allow. all_ask: ad_psgd, whether both sides of the bipartition ask the other one, or even ranks only.
    await_averaging: ad_psgd, whether an iteration ends no sooner than the rank's own averaging in it. seed: of random choices
    such as partners.
    """

    out_neighbours: int = 1
    local_steps: int = 1
    global_clock: bool = False
    all_ask: bool = False
    await_averaging: bool = False
    seed: int = 0
