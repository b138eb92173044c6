"""Runs a scenario for real: every rank trains its shard, with the scenario's delays injected, and the trace is gathered."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from wagma.algorithms import specification
from wagma.core.effects import Value
from wagma.errors import InputError
from wagma.real.limited import barrier, gather
from wagma.real.node import Transport
from wagma.real.optimizer import DistributedOptimizer, distribute
from wagma.real.recorder import assemble
from wagma.scenario import Scenario, require_changing_groups
from wagma.timing.imbalance import Times
from wagma.trace import Trace
from wagma.workloads import consolidated_accuracy, replicas
from wagma.workloads.replica import Replica

Progress = Callable[[int, int], None]

START_LIMIT_S = 300.0  # from the first rank that has its data to the last one
END_LIMIT_S = 300.0  # all ranks have closed: they are done at nearly the same time


def train(
    scenario: Scenario,
    algorithm: str,
    comm: Any,
    progress: Progress | None = None,
    *,
    transport: Transport = "auto",
    resident: bool = False,
) -> Trace | None:
    """Train `scenario` with `algorithm` on all ranks of an mpi4py communicator; the trace on rank 0, None elsewhere.

    The trace's accuracy is that of the consolidated model, the mean over ranks. progress(done, total) is called on rank 0 after
    each of its iterations. transport, resident: as in `distribute`; where the models travel and live changes none of their bits. Raises
    InputError if the scenario trains nothing or has another number of ranks.
    """
    if scenario.training.workload == "none":
        raise InputError(f'{scenario.source}: training.workload = "none": nothing to train; allowed: digits, digits_mlp')
    require_changing_groups(scenario, algorithm)
    if scenario.ranks != comm.size:
        raise InputError(f"{scenario.source}: ranks = {scenario.ranks}: the run has {comm.size}; use -n {scenario.ranks}")
    wall = time.perf_counter()
    replica = replicas(scenario, range(comm.rank, comm.rank + 1))[0]
    settings = scenario.settings_of(algorithm)
    optimizer = distribute(
        replica.optimizer, replica.model, algorithm, settings.group_size, settings.sync_period,
        comm=comm, merge_once=settings.merge_once, transport=transport, resident=resident, record=True,
    )  # fmt: skip
    replica.compute_gradient(0)  # the first one pays for torch's own set-up, which is no iteration's time
    barrier(comm, START_LIMIT_S, "begin training")
    with optimizer:
        _iterate(scenario, algorithm, replica, optimizer, progress if comm.rank == 0 else None)
    notes = gather(comm, optimizer.notes(), END_LIMIT_S, "hand in the trace")
    models = gather(comm, replica.flat(Value.MODEL).read(), END_LIMIT_S, "hand in the model")
    if notes is None or models is None:
        return None
    trace = assemble(scenario, algorithm, specification(algorithm).value, notes)
    trace.header.accuracy = consolidated_accuracy(scenario, algorithm, models)
    trace.wall_s = time.perf_counter() - wall
    return trace


def _iterate(
    scenario: Scenario, algorithm: str, replica: Replica, optimizer: DistributedOptimizer, progress: Progress | None
) -> None:
    times = Times(scenario.ranks, scenario.seed, scenario.compute, scenario.imbalance)
    delayed = specification(algorithm).delayed
    recorder = optimizer.recorder
    assert recorder is not None
    recorder.restart_clock()
    for t in range(scenario.iterations):
        began = time.monotonic_ns()
        replica.compute_gradient(t)
        if scenario.training.paced:
            _sleep_until(began + int(times.compute_ns(t)[replica.rank]))
        if delayed and (delay := int(times.delay_ns(t)[replica.rank])):
            before = time.monotonic_ns()
            _sleep_until(before + delay)
            recorder.delayed(time.monotonic_ns() - before)
        optimizer.step()
        if progress is not None:
            progress(t + 1, scenario.iterations)


def _sleep_until(deadline_ns: int) -> None:
    left = deadline_ns - time.monotonic_ns()
    if left > 0:
        time.sleep(left * 1e-9)
