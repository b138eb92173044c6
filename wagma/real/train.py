"""Runs a scenario for real: every rank trains its shard, with the scenario's delays injected, and the trace is gathered."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wagma.algorithms import specification
from wagma.errors import InputError
from wagma.real.checkpoints.run import Saving
from wagma.real.devices.choice import CPU, Choice
from wagma.real.evaluation import Snapshots, judge
from wagma.real.limited import barrier, gather
from wagma.real.node import Transport
from wagma.real.seeing.recorder import assemble
from wagma.real.wrapper.distribute import distribute
from wagma.real.wrapper.optimizer import DistributedOptimizer
from wagma.scenario import Scenario, require_changing_groups
from wagma.timing.imbalance import Times
from wagma.trace import Trace
from wagma.workloads import REGISTRY, environment, replicas
from wagma.workloads.replica import Replica

Progress = Callable[[int, int, str], None]

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
    saving: Saving | None = None,
    digests: bool = True,
    tensorboard: str | Path | None = None,
    every: int | None = None,
    device: Choice = CPU,
    told: Callable[[str], object] | None = None,
) -> Trace | None:
    """Train `scenario` with `algorithm` on all ranks of an mpi4py communicator; the trace on rank 0, None elsewhere.

    The trace's score is that of the consolidated model, the mean over ranks; every: there is one after each so many iterations, too.
    progress(done, total, text) is called on rank 0 after each of its iterations, text being the newest line about the run. transport,
    resident: as in `distribute`; where the models travel and live changes none of their bits. saving: checkpoints, and the one to go on
    from. digests: of all models, in the trace. tensorboard: a folder for scalars. device: where this rank trains; told: called on rank 0
    with how models travel, before the first iteration. Raises InputError if the scenario trains nothing or has another number of ranks.
    """
    if scenario.training.workload == "none":
        raise InputError(f'{scenario.source}: training.workload = "none": nothing to train; allowed: {", ".join(REGISTRY)}')
    scenario = scenario.tuned(algorithm)
    require_changing_groups(scenario, algorithm)
    if scenario.ranks != comm.size:
        raise InputError(f"{scenario.source}: ranks = {scenario.ranks}: the run has {comm.size}; use -n {scenario.ranks}")
    wall = time.perf_counter()
    replica = _replica(scenario, comm.rank, device)
    settings = scenario.settings_of(algorithm)
    own = {key: getattr(settings, key) for key in specification(algorithm).keys}
    newest = _Newest()
    optimizer = distribute(
        replica.optimizer, replica.model, algorithm, settings.group_size, settings.sync_period,
        comm=comm, merge_once=settings.merge_once, settings=own, seed=scenario.seed, transport=transport, resident=resident,
        device="emulated" if device.emulated else None,
        progress=newest if progress is not None else False, report_every=1.0, tensorboard=tensorboard, record=True if digests else "times",
    )  # fmt: skip
    newest(f"through {optimizer.transport}" if optimizer.transport else "")
    if told is not None and comm.rank == 0:
        told(optimizer.transport)
    optimizer.recorder.start.environment = environment(scenario.training.workload, device.tensors)
    replica.warm_up()
    saving = Saving() if saving is None else saving
    saving.go_on(optimizer, scenario, replica.state)
    snapshots = Snapshots(replica, every)
    barrier(comm, START_LIMIT_S, "begin training")
    with optimizer:
        _iterate(scenario, algorithm, replica, optimizer, saving, snapshots, progress if comm.rank == 0 else None, newest)
    snapshots.after(optimizer.iteration, last=True)  # once closed: a partner may have averaged with this rank after its own end
    notes = gather(comm, optimizer.notes(), END_LIMIT_S, "hand in the trace")
    judgement = judge(comm, replica, snapshots, algorithm, END_LIMIT_S)
    if notes is None:
        return None
    trace = assemble(scenario, algorithm, specification(algorithm).value, notes, "content" if digests else "off")
    judgement.enter(trace, on_the_way=every is not None)
    trace.wall_s = time.perf_counter() - wall
    return trace


def _replica(scenario: Scenario, rank: int, device: Choice) -> Replica:
    if device.on_gpu:
        torch.cuda.set_device(device.tensors)  # or what has no device yet would be made on the first one
    return replicas(scenario, range(rank, rank + 1), device.tensors)[0]


class _Newest:
    """The newest line about the run."""

    def __init__(self) -> None:
        self.line = ""

    def __call__(self, line: str) -> None:
        self.line = line


def _iterate(
    scenario: Scenario,
    algorithm: str,
    replica: Replica,
    optimizer: DistributedOptimizer,
    saving: Saving,
    snapshots: Snapshots,
    progress: Progress | None,
    newest: _Newest,
) -> None:
    times = Times(scenario.ranks, scenario.seed, scenario.compute, scenario.imbalance)
    delayed = specification(algorithm).delayed
    recorder, training = optimizer.recorder, scenario.training
    saved = optimizer.iteration
    snapshots.after(saved)
    recorder.restart_clock()
    if progress is not None:
        progress(saved, scenario.iterations, newest.line)
    for t in range(saved, scenario.iterations):
        began, busy = time.monotonic_ns(), time.thread_time_ns()
        work = replica.compute_gradient(t)
        replica.settle()  # what is still computed when the step begins would count as waiting for others
        if training.paced:
            _sleep_until(began + int(times.compute_ns(t)[replica.rank]))
        elif training.stretch > 1:
            # By the processor's time: what other ranks took of this core meanwhile is part of the sleep, not of what is stretched. A GPU
            # has no such clock for one of its users.
            own = time.monotonic_ns() - began if replica.on_gpu else time.thread_time_ns() - busy
            _sleep_until(began + int(training.stretch * own))
        recorder.worked(work)
        if delayed and (delay := int(times.delay_ns(t)[replica.rank])):
            before = time.monotonic_ns()
            _sleep_until(before + delay)
            recorder.delayed(time.monotonic_ns() - before)
        optimizer.log(replica.last_loss, scenario.work_per_rank if work is None else work)
        optimizer.step()
        saved = saving.after(optimizer, scenario, replica.state, saved)
        snapshots.after(t + 1)
        if progress is not None:
            progress(t + 1, scenario.iterations, newest.line)


def _sleep_until(deadline_ns: int) -> None:
    left = deadline_ns - time.monotonic_ns()
    if left > 0:
        time.sleep(left * 1e-9)
