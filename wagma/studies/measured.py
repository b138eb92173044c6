"""Comparisons of real runs: of the traces of `wagma train --every N --trace FILE`, one for each algorithm and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wagma.errors import InputError
from wagma.report.tables import SYNCHRONOUS
from wagma.results import summarize
from wagma.scenario import Scenario
from wagma.studies.bound import measured_bound
from wagma.studies.compare import Comparison, Learned, Line, Variant, check_target, cores
from wagma.studies.learning import Point
from wagma.trace import Trace


def compare_traces(
    scenario: Scenario,
    traces: Mapping[tuple[str, int], Trace],
    every: int,
    target: float | None = None,
) -> Comparison:
    """The comparison that the traces, by algorithm and seed, make.

    target: score to tell the time to; default: what synchronous training reaches at the end in the worst of its runs, so that who reaches
    it is not inferior within what seeds differ by (without such runs, a margin short of the best mean). The bound on gains is of the
    compute times of synchronous training, else of the first algorithm. Raises InputError for traces without scores.
    """
    score = check_target(scenario, target)
    algorithms, seeds = list(dict.fromkeys(a for a, _ in traces)), tuple(dict.fromkeys(s for _, s in traces))
    lines = [Line(Variant(name, name, {}), tuple(learned(traces[name, seed], seed) for seed in seeds)) for name in algorithms]
    synchronous = next((line for line in lines if line.variant.algorithm == SYNCHRONOUS), None)
    if target is None and synchronous is not None:
        target = score.worst(run.score for run in synchronous.runs)
    elif target is None:
        target = score.near(score.best(line.spread(lambda run: run.score)[0] for line in lines))
    reference = SYNCHRONOUS if synchronous is not None else algorithms[0]
    bound = measured_bound(scenario, [traces[reference, seed] for seed in seeds], cores())
    return Comparison(scenario, seeds, every, target, tuple(lines), score, bound)


def learned(trace: Trace, seed: int) -> Learned:
    """A run's figures, and its scores by when the last rank had done so many iterations. Raises InputError if there are none."""
    if not trace.evaluations or trace.header.score is None:
        raise InputError(f"{trace.source}: has no scores on the way; wagma train --every N gives them")
    began = min(start.started_ns for start in trace.starts)
    ends: dict[int, int] = {trace.header.begin: 0}
    for record in trace.iterations:
        done = record.iteration + 1
        ends[done] = max(ends.get(done, 0), record.return_ns - began)
    points = tuple(Point(ends[one.iteration], one.iteration, one.score) for one in trace.evaluations)
    return Learned(seed, summarize(trace), points)


def gain(line: Line, other: Line | None) -> float | None:
    """How many times the throughput of `other` it has, by means; None without another."""
    return None if other is None else _throughput(line) / _throughput(other)


def gain_to_target(line: Line, other: Line | None, target: float) -> float | None:
    """The same by mean times to the target; None unless all runs of both get there."""
    if other is None:
        return None
    times: Sequence[list[float]] = [line.reached(target), other.reached(target)]
    if any(len(reached) < len(one.runs) for reached, one in zip(times, (line, other), strict=True)):
        return None
    own, others = (sum(one) / len(one) for one in times)
    return others / own if own > 0 else None


def _throughput(line: Line) -> float:
    return line.spread(lambda run: run.result.throughput)[0]
