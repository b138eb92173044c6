"""What a run amounts to: figures computed from its records alone, so that both worlds and both engines are measured by the same code.

Throughput is the sum over ranks of the work that the rank did over its finishing time (W's figures 4, 7, 10).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.algorithms import specification
from wagma.columns import Columns, Nanoseconds, Totals
from wagma.core.schedule import Schedule
from wagma.scores import ACCURACY, Score, score_named
from wagma.timing.imbalance import NANOSECONDS
from wagma.trace import Trace

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one run. Times in seconds; None where a figure does not apply or nothing bounds it.

    staleness counts version - stamp over the executions that are no syncs; of gossip, how many iterations the rank was ahead of what it
    got, or 0 (`wagma.trace.ExchangeRecord`). ideal_throughput is what the same compute times
    would give without communication, waiting and injected delay. score: of the mean of all ranks' last models, own_score: the mean of
    what their own last models reach; score_name and score_direction say what that is (`wagma.scores`).
    """

    algorithm: str
    ranks: int
    engine: str
    iterations: int
    throughput: float
    unit: str
    iteration_mean_s: float
    iteration_p50_s: float
    iteration_p99_s: float
    makespan_ns: int
    staleness_max: int | None
    staleness_mean: float | None
    staleness_bound: int | None
    fresh_fraction: float | None
    score: float | None
    score_name: str | None
    score_direction: str | None
    own_score: float | None
    ideal_throughput: float
    wall_s: float

    @property
    def accuracy(self) -> float | None:
        """The score, if it is one: from 0 to 1."""
        return self.score if self.score_name == ACCURACY.name else None

    @property
    def scored_by(self) -> Score | None:
        """What the score is; None if nothing was trained."""
        return score_named(self.score_name, self.score_direction)

    def as_json(self) -> dict[str, Any]:
        """The stable form of `--json`."""
        return {
            "algorithm": self.algorithm,
            "ranks": self.ranks,
            "engine": self.engine,
            "iterations": self.iterations,
            "throughput": {"value": self.throughput, "unit": f"{self.unit}/s"},
            "iteration_s": {"mean": self.iteration_mean_s, "p50": self.iteration_p50_s, "p99": self.iteration_p99_s},
            "makespan_ns": self.makespan_ns,
            "staleness": {"max": self.staleness_max, "mean": self.staleness_mean, "bound": self.staleness_bound},
            "fresh_fraction": self.fresh_fraction,
            "accuracy": self.accuracy,
            "score": self._score_as_json(),
            "wall_s": self.wall_s,
        }

    def _score_as_json(self) -> dict[str, Any] | None:
        if self.score_name is None:
            return None
        return {"name": self.score_name, "direction": self.score_direction, "value": self.score, "own": self.own_score}


def summarize(run: Trace | Columns | Totals) -> Result:
    """The figures of a run. A trace must hold every rank's iterations in causal order (`Trace.sort`)."""
    columns = Columns.of(run) if isinstance(run, Trace) else run
    totals = columns.totals() if isinstance(columns, Columns) else columns
    scenario, counts = totals.scenario, totals.counts
    durations = _durations(totals)
    mean_s = float(durations.mean()) / NANOSECONDS
    p50, p99 = np.percentile(durations, (50, 99), overwrite_input=True)
    contributions = sum(totals.staleness.values())
    stale = sum(value * count for value, count in totals.staleness.items())
    return Result(
        algorithm=totals.algorithm,
        ranks=scenario.ranks,
        engine=totals.engine,
        iterations=int(counts.max(initial=0)),
        throughput=_rate(totals, totals.finish_ns - totals.begin_ns),
        unit=scenario.work_unit,
        iteration_mean_s=mean_s,
        iteration_p50_s=float(p50) / NANOSECONDS,
        iteration_p99_s=float(p99) / NANOSECONDS,
        makespan_ns=int(totals.finish_ns.max() - totals.begin_ns.min()),
        staleness_max=max(totals.staleness) if contributions else None,
        staleness_mean=stale / contributions if contributions else None,
        staleness_bound=staleness_bound(totals.algorithm, scenario.schedule(totals.algorithm)) if contributions else None,
        fresh_fraction=totals.fresh / totals.joined if totals.joined else None,
        score=totals.scores.score,
        score_name=totals.scores.name,
        score_direction=totals.scores.direction,
        own_score=totals.scores.own,
        ideal_throughput=_rate(totals, totals.computed_ns),
        wall_s=totals.wall_s,
    )


def _rate(totals: Totals, spent_ns: Nanoseconds) -> float:
    """Work per second if each rank had spent that time on its iterations."""
    work = totals.scenario.work_per_rank * NANOSECONDS
    done = work * totals.counts if totals.work is None else NANOSECONDS * totals.work
    return float(sum((done / np.maximum(1, spent_ns)).tolist()))


def _durations(totals: Totals) -> npt.NDArray[np.float64]:
    """How long each iteration of each rank took, in ns: all of one rank, then the next."""
    durations = totals.durations_ns.T
    if (totals.counts == durations.shape[1]).all():
        return durations.astype(np.float64, order="C").reshape(-1)
    return durations[np.arange(durations.shape[1]) < totals.counts[:, None]].astype(np.float64)


def staleness_bound(algorithm: str, schedule: Schedule) -> int | None:
    """The staleness that an algorithm promises not to exceed; None where nothing bounds it."""
    return specification(algorithm).staleness_bound(schedule)


def to_json(scenario: str, results: Sequence[Result]) -> str:
    """One line of JSON; never NaN."""
    document = {"schema": SCHEMA, "scenario": scenario, "results": [result.as_json() for result in results]}
    return json.dumps(document, allow_nan=False)
