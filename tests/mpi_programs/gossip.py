"""Ranks that write to each other over MPI: exact means, uneven ends, errors, and an end without close. One job for all of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from ranks import COMM, RANK, say

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what tests on threads use, too

from real_ranks import Numbers, total

from wagma.algorithms import Collectives, register
from wagma.core.effects import Allreduce, ApplyUpdate, Average, ComputeGradient, Exchange, Value
from wagma.core.graphs import ring
from wagma.errors import CollectiveTimeout, PeerFailed

KEPT = []


def mean(comm, algorithm: str, counts, **options) -> None:
    """All models together are all updates, whoever ended when."""
    numbers = Numbers(comm, algorithm, **options)
    with numbers.optimizer:
        for t in range(counts[comm.rank]):
            time.sleep(0.002 * ((t + comm.rank) % 3 == 0))
            numbers.step(t)
    models = comm.allgather(numbers.value)
    assert abs(sum(models) - total(counts)) < 1e-6, (algorithm, models, total(counts))
    assert comm.size == 2 or len({round(model, 3) for model in models}) > 1, "no difference is left: the sum says little"


def error(comm, algorithm: str) -> None:
    """One rank raises; the others hear of it, and all can go on with something else."""
    try:
        with Numbers(comm, algorithm).optimizer as optimizer:
            for t in range(10**6):
                if comm.rank == 1 and t == 5:
                    raise ValueError("bad batch")
                time.sleep(0.002)
                optimizer.step()
    except ValueError as raised:
        say(f"{algorithm}: {raised}")
    except PeerFailed as failed:
        say(f"{algorithm}: {failed}")


def limit(comm) -> None:
    """Rank 1 stays away."""
    numbers = Numbers(comm, "d_psgd", timeout_s=1.0 if comm.rank != 1 else 30.0)
    try:
        if comm.rank == 1:
            comm.Barrier()
        else:
            numbers.step(0)
    except CollectiveTimeout as late:
        say(f"late: {late}")
    if comm.rank != 1:
        comm.Barrier()
    numbers.optimizer.__exit__(ValueError, ValueError("gave up"), None)


def large(comm) -> None:
    """Models that no library sends along with an envelope, to several at a time."""
    size = 300_000
    for algorithm, settings in (("sgp", {"out_neighbours": 3}), ("ad_psgd", {"all_ask": True})):
        numbers = Numbers(comm, algorithm, size=size, settings=settings)
        with numbers.optimizer:
            for t in range(4):
                numbers.step(t)
        models = comm.allgather(numbers.value)
        assert abs(sum(models) - total([4] * comm.size)) < 1e-6


def main() -> None:
    """On 4 ranks."""
    for algorithm, settings in (
        ("d_psgd", {"global_clock": True}), ("sgp", {"out_neighbours": 2}), ("ad_psgd", {"all_ask": True}), ("swarm_sgd", {}),
    ):  # fmt: skip
        mean(COMM, algorithm, [12] * 4, settings=settings)
        mean(COMM, algorithm, [3, 9, 0, 6], settings=settings)
        mean(COMM.Split(RANK % 2, -RANK), algorithm, [5, 8], settings=settings)
    large(COMM)
    for algorithm in ("d_psgd", "ad_psgd", "swarm_sgd", "eager_sgd"):
        error(COMM, algorithm)
    limit(COMM)
    COMM.Barrier()
    numbers = Numbers(COMM, "both", sync_period=4)
    KEPT.append(numbers)  # and never closed
    for t in range(2 + 3 * RANK):
        numbers.step(t)
    assert np.isfinite(numbers.value)
    say("done")


@register("both", Collectives.PERIODIC, companion=lambda rank: iter(()))
def both(rank):
    """Collectives and exchanges: a rank that has ended has to go on with both, also where the exit handler closes it."""
    others = ring(rank.schedule.world_size, rank.rank)
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if rank.schedule.is_sync(t):
            yield Allreduce(t, Value.MODEL)
        yield Exchange(t, Value.MODEL, others, others)
        yield Average(t, 1, 1 + len(others))


main()
