"""Score against time, one line for each algorithm with the spread over seeds.

Time is logarithmic, unless there is too little of it: twice as fast is the same distance everywhere, and neither the beginning nor the end
is squeezed into a corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagma.report.style import look, picture, plain_ticks
from wagma.scores import ACCURACY, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Both columns of a paper: eight lines that run close together need the room.
WIDTH_INCHES, HEIGHT_INCHES = 7.0, 3.4
#: Percent that the axis shows below the worst final accuracy; what is further down is a steep climb that all lines have. Of other scores,
#: so much of the way from the worst start to the best end.
SHOWN_BELOW, SHOWN_SHARE = 15.0, 0.14
LOGARITHMIC = 4.0  # ratio of the ends of the axis; below, there would be one label or none
CLOSEST = 1.025  # ratio of the times of two points next to each other
MARKERS = 6  # along a line, to tell lines apart where colours are not

_TICKS = [digit * 10.0**power for power in range(-3, 9) for digit in (1, 2, 5)]
_UNITS = ((3 * 86_400.0, 86_400.0, "days"), (3 * 3_600.0, 3_600.0, "hours"), (600.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: seconds and scores, all of one length; low and high are the spread over seeds."""

    algorithm: str
    seconds: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def draw(
    curves: Sequence[Curve],
    path: str | Path,
    title: str,
    seeds: int,
    target: float | None = None,
    score: Score = ACCURACY,
    clock: str = "simulated time",
) -> None:
    """Draw into a file, the best final score first in the legend; target is a dotted line. clock: what the seconds are of.

    Raises InputError if the file cannot be written, MissingDependencyError without matplotlib.
    """
    longest = max(curve.seconds[-1] for curve in curves)
    scale, unit = next((scale, unit) for least, scale, unit in _UNITS if longest >= least)
    with picture(path, WIDTH_INCHES, HEIGHT_INCHES) as figure:
        axes = figure.subplots()
        handles = []
        ranked = sorted(curves, key=lambda curve: curve.mean[-1], reverse=score.direction == "up")
        for number, curve in enumerate(ranked):
            handles.append(_line(axes, curve, scale, number, score))
        if target is not None:
            line = axes.axhline(_unit(score) * target, color="#404040", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.5)
            line.set_label(f"target, {score.show_target(target)}")
            handles.append(line)
        _frame(axes, curves, scale, score)
        axes.set_xlabel(f"{clock}, {unit}")
        axes.set_title(title, loc="left")
        heading = f"{score.name} at the end"
        heading += "" if seeds == 1 else f",\nmean of {seeds} seeds; bands:\nleast to largest"
        figure.legend(
            handles=handles, loc="outside right upper", frameon=False, handlelength=2.6, title=heading, title_fontsize=7.0,
            alignment="left", labelspacing=0.6,
        )  # fmt: skip


def _unit(score: Score) -> float:
    """Shares are drawn in percent."""
    return 100.0 if score.share else 1.0


def _line(axes: Axes, curve: Curve, scale: float, number: int, score: Score) -> Any:
    """One algorithm; `number` moves its markers, so that those of different lines do not meet."""
    style = look(curve.algorithm)
    kept = _thinned(curve.seconds)
    times = [curve.seconds[k] / scale for k in kept]
    mean, low, high = ([_unit(score) * values[k] for k in kept] for values in (curve.mean, curve.low, curve.high))
    shown = _spaced(len(times), number)
    axes.fill_between(times, low, high, color=style.colour, alpha=0.15, linewidth=0, zorder=2)
    (line,) = axes.plot(
        times, mean, color=style.colour, linestyle=style.line, marker=style.marker or None, markevery=shown,
        label=f"{style.name}, {score.show(curve.mean[-1])}", zorder=3,
    )  # fmt: skip
    return line


def _thinned(seconds: Sequence[float]) -> list[int]:
    """Indices of the points to draw: not the beginning, which a logarithm has no place for, nor any that would lie on the one before."""
    kept: list[int] = []
    for k, time in enumerate(seconds):
        if time > 0 and (not kept or time >= CLOSEST * seconds[kept[-1]]):
            kept.append(k)
    if kept and kept[-1] < len(seconds) - 1:
        kept[-1] = len(seconds) - 1  # the end is always there
    return kept


def _spaced(points: int, number: int) -> list[int]:
    """Indices about equally far apart in the logarithm of time, moved on for each `number`; the last one always."""
    ratio = points ** (1 / MARKERS)
    places = {round(ratio ** (k + (3 * number % 8) / 8)) - 1 for k in range(MARKERS)}
    return sorted({place for place in places if place < points} | {points - 1})


def _frame(axes: Axes, curves: Sequence[Curve], scale: float, score: Score) -> None:
    ends = [curve.mean[-1] for curve in curves]
    best = score.best(value for curve in curves for value in (*curve.low, *curve.high))
    if score.share:
        low, high = max(0.0, 100 * score.worst(ends) - SHOWN_BELOW), min(100.0, 100 * best + 1.0)
    else:
        shown = SHOWN_SHARE * (score.worst(curve.mean[0] for curve in curves) - best)
        low, high = sorted((score.worst(ends) + shown, best - 0.05 * shown))
    axes.set_ylim(low, high)
    first = _entry(curves, low, high, score) / scale
    last = 1.06 * max(curve.seconds[-1] for curve in curves) / scale
    if last > LOGARITHMIC * first:
        axes.set_xscale("log")
        plain_ticks(axes, "x", [tick for tick in _TICKS if first <= tick <= last])
    axes.set_xlim(first, last)
    axes.set_ylabel(f"{'held-out ' if score.held_out else ''}{score.name}{', %' if score.share else ''}")
    axes.grid(visible=True)


def _entry(curves: Sequence[Curve], low: float, high: float, score: Score) -> float:
    """Seconds at which the first line comes into the picture, which shows scores from `low` to `high` as drawn; not 0."""
    times = [
        seconds
        for curve in curves
        for seconds, *ends in zip(curve.seconds[1:], curve.low[1:], curve.high[1:], strict=True)
        if seconds > 0 and low <= _unit(score) * score.best(ends) <= high
    ]
    return min(times)
