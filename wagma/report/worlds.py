"""Both worlds side by side: for each algorithm the distribution of iteration times, and the histogram of staleness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.errors import InputError
from wagma.report.style import WIDTH_INCHES, legend_below, look, picture

MOST_LINES = 12
ROW_INCHES = 1.15
_MOST_BARS = 12


@dataclass(frozen=True, slots=True)
class Shown:
    """An algorithm: sorted seconds of its iterations, and shares of contributions by staleness; real first."""

    algorithm: str
    seconds: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
    staleness: tuple[Mapping[int, float], Mapping[int, float]]


def draw_worlds(lines: Sequence[Shown], path: str | Path, width: float = 2 * WIDTH_INCHES) -> None:
    """A row for each algorithm. Raises InputError for none, or too many, and as `picture` does."""
    if not 1 <= len(lines) <= MOST_LINES:
        raise InputError(f"{len(lines)} algorithms: a picture of both worlds shows 1 to {MOST_LINES}")
    with picture(path, width, 0.75 + ROW_INCHES * len(lines)) as figure:
        rows = figure.subplots(len(lines), 2, squeeze=False, width_ratios=[3, 2])
        handles: list[Any] = []
        for row, line in zip(rows, lines, strict=True):
            handles = _times(row[0], line)
            _staleness(row[1], line)
        rows[-1][0].set_xlabel("iteration, ms")
        rows[-1][1].set_xlabel("staleness, iterations")
        legend_below(figure, handles, columns=2)


def _times(axes: Any, line: Shown) -> list[Any]:
    """Both empirical distribution functions."""
    handles = []
    colour = look(line.algorithm).colour
    for seconds, label, style, line_colour in zip(
        line.seconds, ("real", "simulated"), ("-", (0, (3, 1.5))), (colour, "#000000"), strict=True
    ):
        shares = np.arange(1, seconds.size + 1) / seconds.size
        handles += axes.step(1e3 * seconds, 100 * shares, where="post", color=line_colour, linestyle=style, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 102)
    _plain(axes, [float(one.min()) for one in line.seconds], [float(one.max()) for one in line.seconds])
    axes.set_ylabel("% of all")
    axes.set_title(look(line.algorithm).name, loc="left")
    axes.grid(True)
    # Algorithms have colours of their own, and one legend serves all.
    return [_grey(one) for one in handles]


def _plain(axes: Any, least: Sequence[float], most: Sequence[float]) -> None:
    """Ticks of 1, 2 and 5 times powers of ten, as numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = 1e3 * min(least), 1e3 * max(most)
    axes.set_xlim(0.9 * low, 1.1 * high)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _grey(handle: Any) -> Any:
    from matplotlib.lines import Line2D

    solid = handle.get_linestyle() == "-"
    return Line2D([], [], color="#7A7A7A" if solid else "#000000", linestyle=handle.get_linestyle(), label=handle.get_label())


def _staleness(axes: Any, line: Shown) -> None:
    """Bars side by side, the largest values in one."""
    if not any(line.staleness):
        axes.axis("off")
        return
    values = sorted({value for own in line.staleness for value in own})
    last = max(values)
    shown = list(range(min(last, _MOST_BARS - 1) + 1))
    for number, (own, colour) in enumerate(zip(line.staleness, (look(line.algorithm).colour, "#000000"), strict=True)):
        shares = [100 * own.get(value, 0.0) for value in shown]
        shares[-1] = 100 * sum(share for value, share in own.items() if value >= shown[-1])
        axes.bar([x + 0.4 * (number - 0.5) for x in shown], shares, 0.38, color=colour if not number else "white",
                 edgecolor=colour, linewidth=0.6)  # fmt: skip
    axes.set_xticks(shown, [str(value) for value in shown[:-1]] + [f"{shown[-1]}+" if last > shown[-1] else str(shown[-1])])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("% of models")
    axes.grid(True, axis="y")
