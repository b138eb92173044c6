"""A sweep of two keys as a heat map: one panel for each algorithm and number of ranks, a number in every field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wagma.errors import InputError
from wagma.report.figures import settings_of
from wagma.report.rows import FIGURES, Cells, column
from wagma.report.style import LEAST_INCHES, WIDTH_INCHES, in_order, look, picture
from wagma.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
PANELS_A_ROW = 2
#: Letters between which numbers in the fields are chosen; where the smallest do not fit, there are none but a colour bar.
LETTER_POINTS = (4.5, 6.5)
#: Width of a digit, in parts of a letter's height, and the part of a panel's width that is fields.
_DIGIT, _FIELDS = 0.62, 0.78

NAMES = {
    "throughput": "throughput",
    "iteration_mean_s": "mean iteration, s",
    "iteration_p50_s": "median iteration, s",
    "iteration_p99_s": "99th percentile of iterations, s",
    "makespan_ns": "makespan, ns",
    "staleness_max": "largest staleness, iterations",
    "staleness_mean": "mean staleness, iterations",
    "fresh_fraction": "share of fresh contributions",
    "score": "score",
    "own_score": "score of the ranks' own models",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """Means over seeds, [y, x]; NaN where there is no row."""

    title: str
    values: npt.NDArray[np.float64]


def draw_heatmap(
    rows: Sequence[Cells],
    path: str | Path,
    x: str | None = None,
    y: str | None = None,
    value: str = "throughput",
    width: float = WIDTH_INCHES,
) -> None:
    """Draw `value`, a figure of results, against two columns (default: the two settings that vary); means over seeds.

    Algorithms that the two settings do not change are left out, unless there are no others. The best throughput of a panel has a
    frame. Raises InputError if it is not clear what to draw.
    """
    x, y = _keys(rows, x, y)
    numbers = {name for name in FIGURES if any(isinstance(r.get(name), int | float) for r in rows)}
    if value not in numbers:
        raise InputError(f"--value {value}: must be one of {', '.join(name for name in FIGURES if name in numbers)}")
    columns, lines = column(rows, x), column(rows, y)
    panels = _panels(rows, x, y, value, columns, lines)
    across = min(PANELS_A_ROW, len(panels))
    down = -(-len(panels) // across)
    cell = width / across * _FIELDS / max(len(columns), 2)
    letters = _letters(panels, cell)
    with picture(path, width, max(LEAST_INCHES, down * (min(0.36, cell) * len(lines) + 0.45) + 0.45)) as figure:
        every = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, panel in zip(every, panels, strict=False):
            _draw(figure, axes, panel, letters, value)
            axes.set_xticks(range(len(columns)), [str(v) for v in columns])
            axes.set_yticks(range(len(lines)), [str(v) for v in lines])
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        below, beside = _names(x, y)
        figure.supxlabel(below, fontsize=8.0)
        figure.supylabel(beside, fontsize=8.0)
        unit = f", {rows[0]['unit']}/s" if value == "throughput" and rows[0].get("unit") else ""
        figure.suptitle(f"{NAMES.get(value, value)}{unit}", fontsize=8.0)


def _keys(rows: Sequence[Cells], x: str | None, y: str | None) -> tuple[str, str]:
    for option, name in (("--x", x), ("--y", y)):
        if name is not None and not any(name in row for row in rows):
            raise InputError(f"{option} {name}: no such column; there are {', '.join(rows[0])}")
    varied = [name for name in [*settings_of(rows), "ranks"] if len({str(row.get(name)) for row in rows}) > 1]
    if x is None or y is None:
        free = [name for name in varied if name not in (x, y)]
        if len(free) != (x is None) + (y is None) and (len(free) < 2 or x or y or free[-1] != "ranks" or len(free) > 3):
            raise InputError(f"a heat map needs two columns: give --x and --y; what varies: {', '.join(varied) or 'nothing'}")
        x = x or free.pop(0)
        y = y or free.pop(0)
    for name in (x, y):
        if any(name not in row for row in rows):
            raise InputError(f"column {name!r}: not in every row; there are {', '.join(rows[0])}")
    if x == y:
        raise InputError(f"--x {x} --y {y}: must be two different columns")
    return x, y


def _panels(rows: Sequence[Cells], x: str, y: str, value: str, columns: list[Any], lines: list[Any]) -> list[Panel]:
    several = "ranks" not in (x, y)
    groups: dict[tuple[str, int | None], list[Cells]] = {}
    for row in rows:
        groups.setdefault((row["algorithm"], row["ranks"] if several else None), []).append(row)
    panels = []
    order = in_order([algorithm for algorithm, _ in groups])
    for (algorithm, ranks), members in sorted(groups.items(), key=lambda g: (g[0][1] or 0, order.index(g[0][0]))):
        fields: dict[tuple[int, int], dict[Any, float]] = {}
        for row in members:
            if row.get(value) is None:
                continue
            seeds = fields.setdefault((lines.index(row[y]), columns.index(row[x])), {})
            if seeds.setdefault(row.get("seed"), row[value]) != row[value]:
                others = [k for k in settings_of(rows) if k not in (x, y) and len({str(r.get(k)) for r in rows}) > 1]
                raise InputError(
                    f"rows of {algorithm} differ in {', '.join(others) or 'something else'} too: choose with --where"
                )
        values = np.full((len(lines), len(columns)), np.nan)
        for place, seeds in fields.items():
            values[place] = np.mean(list(seeds.values()))
        panels.append(Panel(look(algorithm).name + (f", {ranks:,} ranks" if ranks is not None else ""), values))
    varying = [p for p in panels if np.unique(p.values[~np.isnan(p.values)]).size > 1]
    chosen = varying or [p for p in panels if not np.isnan(p.values).all()]
    if not chosen:
        raise InputError(f"--value {value}: no row has it")
    if len(chosen) > MOST_PANELS:
        raise InputError(f"{len(chosen)} panels: must be at most {MOST_PANELS}; choose with --algorithms or --where ranks=")
    return chosen


def _letters(panels: Sequence[Panel], cell: float) -> float:
    """The size in points of letters that let every number fit into a field `cell` inches wide; 0: there are none."""
    longest = max(len(number(float(v))) for panel in panels for v in panel.values[~np.isnan(panel.values)])
    fitting = 72 * cell * 0.92 / (longest * _DIGIT)
    return 0.0 if fitting < LETTER_POINTS[0] else min(fitting, LETTER_POINTS[1])


def _draw(figure: Figure, axes: Axes, panel: Panel, letters: float, value: str) -> None:
    image = axes.imshow(panel.values, cmap="cividis", aspect="auto", origin="lower")
    axes.set_title(panel.title, fontsize=7.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if not letters:
        bar = figure.colorbar(image, ax=axes, pad=0.02, format=lambda v, _: number(v))
        bar.ax.tick_params(labelsize=6.0, width=0.5, length=2.0)
    best = np.nanmax(panel.values)
    middle = (np.nanmin(panel.values) + best) / 2
    for (line, place), shown in np.ndenumerate(panel.values):
        if letters and not np.isnan(shown):
            colour = "black" if shown > middle else "white"
            axes.text(place, line, number(float(shown)), ha="center", va="center", fontsize=letters, color=colour)
    if value == "throughput" and np.count_nonzero(panel.values == best) == 1:
        from matplotlib.patches import Rectangle

        line, place = np.unravel_index(int(np.nanargmax(panel.values)), panel.values.shape)
        corner = float(place) - 0.5, float(line) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.4, clip_on=False))


def _names(x: str, y: str) -> tuple[str, str]:
    """What the axes say: "imbalance.0.delay_s" is "delay, s", unless the other key ends alike."""
    alike = x.rpartition(".")[2] == y.rpartition(".")[2]
    return (x, y) if alike else (_name(x), _name(y))


def _name(key: str) -> str:
    last = key.rpartition(".")[2]
    for unit in ("ns", "s"):
        if last.endswith(f"_{unit}"):
            return f"{last.removesuffix(f'_{unit}').replace('_', ' ')}, {unit}"
    return last.replace("_", " ")
