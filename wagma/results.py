"""What a run amounts to: figures computed from its trace alone, so that both worlds are measured by the same code.

Throughput is the sum over ranks of the work that the rank did over its finishing time (W's figures 4, 7, 10).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wagma.algorithms import Collectives, specification
from wagma.imbalance import NANOSECONDS
from wagma.trace import Trace

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one run. Times in seconds; None where a figure does not apply or nothing bounds it.

    staleness counts version - stamp over the executions that are no syncs. ideal_throughput is what the same compute times
    would give without communication, waiting and injected delay.
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
    accuracy: float | None
    ideal_throughput: float
    wall_s: float

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
            "wall_s": self.wall_s,
        }


def summarize(trace: Trace) -> Result:
    """The figures of a run. The trace must hold every rank's iterations in causal order (`Trace.sort`)."""
    scenario, header = trace.scenario, trace.header
    begin = {start.rank: start.started_ns for start in trace.starts}
    durations, finish = _durations(trace, begin)
    work = scenario.work_per_rank * NANOSECONDS
    counts = dict.fromkeys(begin, 0)
    computed = dict.fromkeys(begin, 0)
    for record in trace.iterations:
        counts[record.rank] += 1
        computed[record.rank] += record.computed_ns
    grouped = specification(header.algorithm).collectives is Collectives.GROUPED
    schedule = trace.schedule
    staleness = [e.version - e.own_stamp for e in trace.executions if not (grouped and schedule.is_sync(e.version))]
    fresh = [r.fresh for r in trace.iterations if r.fresh is not None and not (grouped and schedule.is_sync(r.iteration))]
    return Result(
        algorithm=header.algorithm,
        ranks=scenario.ranks,
        engine=header.engine,
        iterations=max(counts.values(), default=0),
        throughput=sum(work * counts[rank] / max(1, finish[rank] - begin[rank]) for rank in finish),
        unit=scenario.work_unit,
        iteration_mean_s=float(durations.mean()) / NANOSECONDS,
        iteration_p50_s=float(np.percentile(durations, 50)) / NANOSECONDS,
        iteration_p99_s=float(np.percentile(durations, 99)) / NANOSECONDS,
        makespan_ns=max(finish.values()) - min(begin.values()),
        staleness_max=max(staleness) if staleness else None,
        staleness_mean=float(np.mean(staleness)) if staleness else None,
        staleness_bound=schedule.worst_staleness if trace.executions else None,
        fresh_fraction=float(np.mean(fresh)) if fresh else None,
        accuracy=header.accuracy,
        ideal_throughput=sum(work * counts[rank] / max(1, computed[rank]) for rank in finish),
        wall_s=trace.wall_s,
    )


def to_json(scenario: str, results: Sequence[Result]) -> str:
    """One line of JSON; never NaN."""
    document = {"schema": SCHEMA, "scenario": scenario, "results": [result.as_json() for result in results]}
    return json.dumps(document, allow_nan=False)


def _durations(trace: Trace, begin: dict[int, int]) -> tuple[Any, dict[int, int]]:
    """(duration of every iteration of every rank in ns, when each rank returned from its last one)."""
    finish = dict(begin)
    durations = []
    for record in trace.iterations:
        durations.append(record.return_ns - finish[record.rank])
        finish[record.rank] = record.return_ns
    return np.array(durations, np.float64), finish
