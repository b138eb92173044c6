"""Group averages with exact numbers: each rank checks everything that its records claim against what its peers published."""

from __future__ import annotations

import sys
import time

import numpy as np
from ranks import COMM, RANK, say

from wagma.core.averaging import merge_rule
from wagma.core.digest import digest
from wagma.core.schedule import Schedule
from wagma.real.kernel import Engine


def published(rank: int, version: int) -> int:
    """Whole numbers: sums are exact, and a sum tells who contributed what."""
    return (version + 2) * 1000 + rank


def run(comm, schedule: Schedule, count: int, dtype: str, iterations: int, transport: str) -> None:
    """Every version's sum is that of the members' contributions; every merge uses a sum of the records."""
    initial = np.full(count, published(comm.rank, -1), dtype)
    engine = Engine(comm, schedule, initial, transport=transport, record=True, digests=True, timeout_s=30.0)
    merges = {}
    for t in range(iterations):
        model = np.full(count, published(comm.rank, t), dtype)
        if (t * 7 + comm.rank * 3) % 5 == 0:
            time.sleep(0.003)
        outcome = engine.arrive(t, model)
        if schedule.is_sync(t):
            engine.copy_result(model)
        else:
            own_weight, divisor = merge_rule(int(outcome.fresh), outcome.group_length)
            engine.merge(model, own_weight, divisor)
        assert (model == model[0]).all(), "torn"
        merges[t] = (outcome.fresh, outcome.merged_version, float(model[0]))
    engine.close()
    executions, _ = engine.take_records()
    check(comm, schedule, count, dtype, executions, merges)


def check(comm, schedule: Schedule, count: int, dtype: str, executions, merges) -> None:
    """Compare with the stamps that all members noted."""
    iterations = len(merges)
    assert [e["version"] for e in executions] == list(range(iterations))
    stamps = comm.allgather([e["own_stamp"] for e in executions])
    sums = {}
    for execution in executions:
        version = execution["version"]
        group = schedule.group(comm.rank, version)
        assert tuple(execution["group"]) == group
        synced = version // schedule.sync_period * schedule.sync_period - 1 if schedule.sync_period else -1
        parts = [stamps[member][version] for member in group]
        assert all(stamp >= synced for stamp in parts)
        if synced >= 0 and synced in parts:
            continue  # a synced model is in the sum: its value is no pattern
        total = np.asarray(sum(published(m, s) for m, s in zip(group, parts, strict=True)), dtype)
        value = (total / np.asarray(len(group), dtype)).astype(dtype) if schedule.is_sync(version) else total
        sums[version] = value
        assert execution["sum_digest"] == digest(np.full(count, value, dtype)), version
    for t, (fresh, merged, value) in merges.items():
        assert fresh == (stamps[comm.rank][t] == t)
        if merged not in sums:
            continue
        if schedule.is_sync(t):
            expected = sums[merged]
        else:
            own_weight, divisor = merge_rule(int(fresh), len(schedule.group(comm.rank, merged)))
            expected = ((sums[merged] + own_weight * np.asarray(published(comm.rank, t), dtype)) / divisor).astype(dtype)
        assert value == float(expected), (t, fresh, merged, value, expected)
    assert len(sums) >= iterations // 4  # the patterns were seen often enough to mean something


def main() -> None:
    """Each argument is a case: group_size,sync_period,count,dtype,world|sub,iterations,transport."""
    halves = COMM.Split(color=RANK % 2, key=-RANK)  # two runs at a time, with ranks in another order than the world's
    for case in sys.argv[1:]:
        group_size, sync_period, count, dtype, where, iterations, transport = case.split(",")
        comm = halves if where == "sub" else COMM
        schedule = Schedule(comm.size, int(group_size), int(sync_period))
        run(comm, schedule, int(count), dtype, int(iterations), transport)
        say(f"ok {case}")
        COMM.Barrier()


if __name__ == "__main__":
    main()
