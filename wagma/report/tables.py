"""Plain-text tables of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wagma.report.paper import Point
from wagma.results import Result
from wagma.text import bounded, number, percent, ratio, seconds, table

SYNCHRONOUS = "allreduce_sgd"
Points = Mapping[tuple[int, str], Point]


def results_table(results: Sequence[Result], paper: Points | None = None, verbose: bool = False) -> str:
    """One line for each result. `paper` adds the published throughput and how far the result is from it.

    x sync: throughput over that of synchronous allreduce_sgd on as many ranks. of ideal: throughput over what the same compute
    times would give without communication, waiting and delays. Staleness: the largest one seen / what bounds it.
    """
    if not results:
        return ""
    paper = paper or {}
    synchronous = {r.ranks: r.throughput for r in results if r.algorithm == SYNCHRONOUS}
    columns: list[tuple[str, Callable[[Result], str]]] = [
        ("algorithm", lambda r: r.algorithm),
        ("ranks", lambda r: str(r.ranks)),
        (f"{results[0].unit}/s", lambda r: number(r.throughput)),
        ("x sync", lambda r: ratio(r.throughput, synchronous.get(r.ranks))),
        ("of ideal", lambda r: percent(r.throughput / r.ideal_throughput)),
        ("paper", lambda r: _published(paper.get((r.ranks, r.algorithm)))),
        ("difference", lambda r: _difference(r.throughput, paper.get((r.ranks, r.algorithm)))),
        ("iteration", lambda r: seconds(r.iteration_mean_s)),
    ]
    if verbose:
        columns += [
            ("p50", lambda r: seconds(r.iteration_p50_s)),
            ("p99", lambda r: seconds(r.iteration_p99_s)),
        ]
    columns += [
        ("time", lambda r: seconds(r.makespan_ns / 1e9)),
        ("staleness", _staleness),
        ("fresh", lambda r: percent(r.fresh_fraction)),
        (results[0].score_name or "score", _score),
    ]
    if verbose:
        columns.append(("took", lambda r: seconds(r.wall_s)))
    return table([name for name, _ in columns], [[show(result) for _, show in columns] for result in results])


def _score(result: Result) -> str:
    score = result.scored_by
    return "" if score is None else score.show(result.score)


def _published(point: Point | None) -> str:
    return "" if point is None else f"{number(point.throughput)} ± {number(point.read_error)}"


def _difference(value: float, point: Point | None) -> str:
    return "" if point is None else f"{100 * (value / point.throughput - 1):+.1f} %"


def _staleness(result: Result) -> str:
    if result.staleness_max is None:
        return ""
    return bounded(result.staleness_max, result.staleness_bound)
