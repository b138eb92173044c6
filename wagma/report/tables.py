"""Plain-text tables of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wagma.report.paper import Point
from wagma.results import Result

SYNCHRONOUS = "allreduce_sgd"
Points = Mapping[tuple[int, str], Point]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; a column of numbers is aligned at the right. A column that is empty throughout is left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    cells = [[line[i] for i in kept] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(kept))]
    numeric = [all(not line[i] or _is_number(line[i]) for line in cells[1:]) for i in range(len(kept))]
    aligned = (
        "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in aligned)


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
        ("accuracy", lambda r: percent(r.accuracy)),
    ]
    if verbose:
        columns.append(("took", lambda r: seconds(r.wall_s)))
    return table([name for name, _ in columns], [[show(result) for _, show in columns] for result in results])


def number(value: float) -> str:
    """With a comma every three digits; three significant digits below a hundred."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float, reference: float | None) -> str:
    """value / reference, or nothing without a reference."""
    return "" if not reference else f"{value / reference:.2f}"


def percent(share: float | None) -> str:
    """A share from 0 to 1 in percent; nothing for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def seconds(value: float) -> str:
    """A duration in seconds or milliseconds."""
    return f"{1e3 * value:.3g} ms" if value < 0.1 else f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def _published(point: Point | None) -> str:
    return "" if point is None else f"{number(point.throughput)} ± {point.read_error:.0f}"


def _difference(value: float, point: Point | None) -> str:
    return "" if point is None else f"{100 * (value / point.throughput - 1):+.1f} %"


def _staleness(result: Result) -> str:
    if result.staleness_max is None:
        return ""
    return f"{result.staleness_max} / {'unbounded' if result.staleness_bound is None else result.staleness_bound}"


def _is_number(cell: str) -> bool:
    """Whether a cell begins like a number (what follows may be a unit, an error or a bound)."""
    return cell.lstrip("+-")[:1].isdigit()
