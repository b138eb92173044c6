"""Eager-SGD on real ranks, recomputed: late runs are noisy, and only this tells lateness from gradients lost, doubled or misapplied."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("wagma._native")
pytest.importorskip("sklearn")

from real_ranks import train_locally  # after the checks that they can be imported

from wagma.core.averaging import add, mean, merge, with_zeros
from wagma.core.digest import digest
from wagma.core.effects import Value
from wagma.core.trees import tree_sum
from wagma.scenario import load
from wagma.trace import Trace
from wagma.workloads import replicas


class Replay:
    """Of a trace only who was late, and when: which published gradient each version took, and which sum each rank got."""

    def __init__(self, trace: Trace) -> None:
        self.schedule = trace.schedule
        self.ranks = range(self.schedule.world_size)
        self.replicas = replicas(trace.scenario, self.ranks)
        self.iterations = {(a.rank, a.iteration): a for a in trace.iterations}
        self.stamps = {(e.rank, e.version): e.own_stamp for e in trace.executions}
        self.published: dict[tuple[int, int], Any] = {}
        self.sums: dict[int, Any] = {}

    def run(self) -> list[tuple[int, int]]:
        """Every rank as far as the sums that it needs are known, until all are at the end; where a model differs from the recorded one."""
        waiting = {rank: self._rank(rank) for rank in self.ranks}
        different: list[tuple[int, int]] = []
        moved = True
        while waiting and moved:
            moved = False
            for rank, steps in list(waiting.items()):
                for step in steps:
                    if step is None:  # it waits
                        break
                    moved = True
                    model = self.replicas[rank].flat(Value.MODEL).read()
                    if digest(model) != self.iterations[rank, step].model_digest:
                        different.append((rank, step))
                else:
                    del waiting[rank]
        assert not waiting, "a version took what had not been published"
        return different

    def _rank(self, rank: int) -> Any:
        replica = self.replicas[rank]
        model, gradient = replica.flat(Value.MODEL), replica.flat(Value.GRADIENT)
        for t in sorted(t for of, t in self.iterations if of == rank):
            record = self.iterations[rank, t]
            replica.compute_gradient(t)
            if record.retracted_ns is not None:
                gradient.write(add(self.published[rank, t - 1], gradient.read()))
            sync = self.schedule.is_sync(t)
            if sync:
                replica.apply_update()
            self.published[rank, t] = (model if sync else gradient).read()
            while (total := self._sum(t if sync else record.merged_version)) is None:
                yield None
            if sync:
                model.write(total)
            else:
                gradient.write(merge(total, gradient.read(), 0, len(self.ranks)))
                replica.apply_update()
            yield t

    def _sum(self, version: int) -> Any:
        if version not in self.sums:
            stamps = [self.stamps[rank, version] for rank in self.ranks]
            if any(s >= 0 and (rank, s) not in self.published for rank, s in enumerate(stamps)):
                return None
            taken = [None if s < 0 else self.published[rank, s] for rank, s in enumerate(stamps)]
            self.sums[version] = mean(taken) if self.schedule.is_sync(version) else tree_sum(with_zeros(taken))
        return self.sums[version]


def test_late_gradients_give_the_models_that_they_have_to() -> None:
    """Each model of each rank, momentum and all, bit for bit; and each gradient is in one sum, or was taken back and is in the next."""
    scenario = load("digits", {"iterations": 24, "imbalance": [], "algorithm.sync_period": 8})
    trace = train_locally(scenario, "eager_sgd", lambda rank, t: 0.01 * (t % 4 == rank) + 0.002)
    replay = Replay(trace)
    late = [a for a in trace.iterations if not a.fresh]
    retracted = {(a.rank, a.iteration - 1) for a in trace.iterations if a.retracted_ns is not None}
    assert late, "the run was too tame to show anything"
    assert retracted, "no gradient came back"
    assert replay.run() == []
    taken = Counter((rank, s) for (rank, v), s in replay.stamps.items() if s >= 0 and not replay.schedule.is_sync(v))
    groups = {(rank, t) for rank, t in replay.iterations if not replay.schedule.is_sync(t)}
    assert set(taken.values()) == {1}
    assert taken.keys() | retracted == groups
    assert not taken.keys() & retracted
    assert np.isfinite(replay.replicas[0].flat(Value.MODEL).read()).all()
