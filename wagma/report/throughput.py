"""Throughput against the number of ranks, and speed-ups over a baseline, from the rows of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagma.errors import InputError
from wagma.report.figures import samples, unit_of
from wagma.report.paper import Point
from wagma.report.rows import Cells
from wagma.report.style import WIDTH_INCHES, in_order, legend_below, look, picture, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Mapping[tuple[int, str], Point]

#: With more bars than this the numbers above them would run into each other.
MOST_LABELS = 12


def draw_throughput(rows: Sequence[Cells], path: str | Path, paper: Points | None = None, width: float = WIDTH_INCHES) -> None:
    """A line for each algorithm, both axes logarithmic, and below it the same in percent of `ideal`, where differences show.

    Whiskers reach from the least to the largest of several seeds. paper: published figures, drawn as open markers with their reading
    errors, of the algorithms that there are rows of. Without rows of `ideal` it is what the other runs' compute times alone would allow,
    if the rows say that; if they do not, there is no lower panel.
    """
    found = samples(rows, lambda row: (row["algorithm"], row["ranks"]))
    ranks = sorted({row["ranks"] for row in rows})
    lines = {
        name: {r: list(found[name, r].values()) for r in ranks if (name, r) in found}
        for name in in_order([row["algorithm"] for row in rows])
    }
    if "ideal" not in lines and all(row.get("ideal_throughput") for row in rows):
        lines["ideal"] = {r: [max(row["ideal_throughput"] for row in rows if row["ranks"] == r)] for r in ranks}
    ideal = {r: sum(v) / len(v) for r, v in lines.get("ideal", {}).items()}
    shown = {key: point for key, point in (paper or {}).items() if key[1] in lines}
    ticks = sorted({*ranks, *(size for size, _ in shown)})
    with picture(path, width, (1.3 if ideal else 0.9) * width) as figure:
        panels = figure.subplots(
            2 if ideal else 1, 1, sharex=True, squeeze=False, height_ratios=[1.0, 0.8] if ideal else [1.0]
        )[:, 0]
        axes = panels[0]
        for algorithm, values in lines.items():
            _line(axes, algorithm, values)
        for (size, algorithm), point in shown.items():
            _published(axes, algorithm, size, point.throughput, point.read_error)
        axes.set_yscale("log")
        plain_ticks(axes, "y")
        axes.set_ylabel(f"throughput, {unit_of(rows)}")
        if ideal:
            _percent(panels[1], lines, ideal, shown)
        panels[-1].set_xscale("log", base=2)
        panels[-1].set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
        plain_ticks(panels[-1], "x", ticks)
        panels[-1].set_xlabel("ranks")
        for one in panels:
            one.grid(True, which="major")
        handles = [_handle(algorithm) for algorithm in lines]
        legend_below(figure, [*handles, _marker("as published")] if shown else handles)


def _percent(axes: Axes, lines: Mapping[str, Any], ideal: Mapping[int, float], paper: Points) -> None:
    """The lower panel; what is published is a little to the right, so that both can be seen."""
    names = [name for name in lines if name != "ideal"]
    for number, name in enumerate(names):
        aside = 2 ** (0.05 * (number - (len(names) - 1) / 2))
        values = {r: [100 * v / ideal[r] for v in many] for r, many in lines[name].items() if r in ideal}
        _line(axes, name, {r * aside: many for r, many in values.items()})
        for (size, algorithm), point in paper.items():
            if algorithm == name and size in ideal:
                share = 100 / ideal[size]
                _published(axes, name, size * aside, share * point.throughput, share * point.read_error)
    axes.axhline(100.0, color=look("ideal").colour, linestyle=look("ideal").line)
    axes.set_ylabel("throughput, % of ideal")


def _line(axes: Axes, algorithm: str, values: Mapping[float, Sequence[float]]) -> None:
    style = look(algorithm)
    means, spread = _spread(list(values.values()))
    axes.errorbar(
        list(values), means, yerr=spread if any(map(any, spread)) else None, color=style.colour, marker=style.marker,
        linestyle=style.line, capsize=1.5, elinewidth=0.7, zorder=4 if algorithm == "wagma_sgd" else 2,
        linewidth=1.4 if algorithm == "wagma_sgd" else 0.9, markersize=3.0,
    )  # fmt: skip


def _published(axes: Axes, algorithm: str, x: float, y: float, error: float) -> None:
    style = look(algorithm)
    axes.errorbar(
        x, y, yerr=min(error, 0.9 * y), color=style.colour, marker=style.marker or "_", markerfacecolor="none", markersize=5.5,
        markeredgewidth=0.8, elinewidth=0.6, linestyle="none", zorder=3,
    )  # fmt: skip


def _handle(algorithm: str) -> Any:
    from matplotlib.lines import Line2D

    style = look(algorithm)
    return Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, markersize=3.5, label=style.name)


def _marker(text: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color="#404040", marker="o", markerfacecolor="none", markersize=5.5, linestyle="none", label=text)


def _spread(values: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far below and above them the least and the largest are; 0 for none at all."""
    means = [sum(v) / len(v) if v else 0.0 for v in values]
    # A mean of equal numbers can be rounded past them.
    below = [max(0.0, m - min(v, default=m)) for m, v in zip(means, values, strict=True)]
    above = [max(0.0, max(v, default=m) - m) for m, v in zip(means, values, strict=True)]
    return means, [below, above]


def draw_speedup(rows: Sequence[Cells], path: str | Path, baseline: str, width: float = WIDTH_INCHES) -> None:
    """Bars of throughput over that of `baseline` on as many ranks; of several seeds the mean of the ratios, with their range.

    Raises InputError if the baseline is not among the rows, or has no row for a number of ranks and seed that another has.
    """
    found = samples(rows, lambda row: (row["algorithm"], row["ranks"]))
    algorithms = [name for name in in_order([row["algorithm"] for row in rows]) if name != baseline]
    ranks = sorted({row["ranks"] for row in rows})
    there = in_order([row["algorithm"] for row in rows])
    if baseline not in there:
        raise InputError(f"baseline {baseline!r}: no such row; there are {', '.join(there)}")
    if not algorithms:
        raise InputError(f"baseline {baseline!r}: there are no rows of another algorithm to compare with it")
    bars = {
        (name, r): _ratios(found[name, r], found.get((baseline, r), {}), baseline, r)
        for name in algorithms
        for r in ranks
        if (name, r) in found
    }
    with picture(path, width, 0.8 * width) as figure:
        axes = figure.subplots()
        thickness = 0.84 / len(algorithms)
        for number, name in enumerate(algorithms):
            ratios = [bars.get((name, r), []) for r in ranks]
            means, spread = _spread(ratios)
            places = [x + (number - (len(algorithms) - 1) / 2) * thickness for x in range(len(ranks))]
            style = look(name)
            hatched: dict[str, Any] = {"fill": False, "hatch": "////", "edgecolor": "#7A7A7A"} if name == "ideal" else {}
            drawn = axes.bar(places, means, 0.92 * thickness, color=style.colour, label=style.name, linewidth=0.5, **hatched)
            if any(len(v) > 1 for v in ratios):
                axes.errorbar(places, means, yerr=spread, color="#000000", linestyle="none", capsize=1.5, elinewidth=0.7)
            elif len(bars) <= MOST_LABELS:
                axes.bar_label(drawn, [f"{m:.2f}" if m else "" for m in means], padding=1.5, fontsize=6.0)
        line = axes.axhline(1.0, color="#000000", linewidth=0.8, label=f"{look(baseline).name} = 1")
        axes.set_xticks(range(len(ranks)), [f"{r:,}" for r in ranks])
        axes.tick_params(axis="x", length=0)
        axes.grid(True, axis="y")
        axes.set_xlabel("ranks")
        axes.set_ylabel(f"throughput over {look(baseline).name}")
        handles = [handle for handle in axes.containers if handle.get_label() in {look(name).name for name in algorithms}]
        legend_below(figure, [*handles, line])


def _ratios(values: Mapping[Any, float], reference: Mapping[Any, float], baseline: str, ranks: int) -> list[float]:
    for seed in values:
        if seed not in reference:
            raise InputError(f"baseline {baseline!r}: no row for {ranks} ranks{'' if seed is None else f' and seed {seed}'}")
    return [value / reference[seed] for seed, value in values.items()]
