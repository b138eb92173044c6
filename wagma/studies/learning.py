"""Training in virtual time: a simulation whose ranks train, and how well their common model does on the way.

What is evaluated is the mean of all ranks' models as they stand at that virtual time, on the held-out data. Evaluating takes no virtual
time and changes nothing: a run that is observed gives the same trace as one that is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from wagma import workloads
from wagma.core.averaging import mean
from wagma.core.effects import Value
from wagma.scenario import Scenario
from wagma.sim import driver
from wagma.sim.numerics import Numerics, Replicas
from wagma.trace import Trace

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Point:
    """Score of the mean of all models at a time, when ranks had done `iterations` on average."""

    time_ns: int
    iterations: float
    score: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that trained; the trace's header has its scores. curve: [] unless asked for."""

    trace: Trace
    curve: list[Point]


def train(
    scenario: Scenario, algorithm: str, digests: bool = False, progress: Progress | None = None, every: int | None = None
) -> Trained:
    """Simulate with ranks that train; the trace's header holds the score of the consolidated model.

    every: evaluate at the start, whenever the ranks have done that many more iterations on average, and at the end. digests: record
    those of all that is moved; the per-rank mode always does. Raises InputError and MissingDependencyError.
    """
    from wagma.workloads.replica import EvenWorkload, Replica

    scenario = scenario.tuned(algorithm)
    data = workloads.workload(scenario)
    numerics: Numerics
    if scenario.training.numerics == "batched":
        from wagma.sim.batched import Batched

        numerics = Batched(cast(EvenWorkload, data), scenario, digests)  # the others have refused such a scenario
    else:
        numerics = Replicas([Replica(data, scenario, rank) for rank in range(scenario.ranks)])
    judge = Replica(data, scenario, 0)
    curve: list[Point] = []
    total = scenario.ranks * scenario.iterations

    def evaluate(now_ns: int, done: int) -> None:
        if every is not None and (done % (every * scenario.ranks) == 0 or done == total):
            models = [numerics.publish(rank, Value.MODEL) for rank in range(scenario.ranks)]
            curve.append(Point(now_ns, done / scenario.ranks, judge.evaluate(mean(models))))

    evaluate(0, 0)
    trace = driver.simulate(scenario, algorithm, numerics, progress, evaluate)
    models = [numerics.publish(rank, Value.MODEL) for rank in range(scenario.ranks)]
    header = trace.header
    header.judged_by(data.score)
    common = workloads.consolidated(algorithm, models)
    header.score = None if common is None else judge.evaluate(common)
    header.own_score = sum(judge.evaluate(model) for model in models) / scenario.ranks
    return Trained(trace, curve)
