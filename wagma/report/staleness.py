"""Histograms of staleness, from traces: how old were the models (or gradients) that ranks contributed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wagma.columns import Columns
from wagma.errors import InputError
from wagma.report.style import WIDTH_INCHES, legend_below, look, picture
from wagma.results import staleness_bound
from wagma.trace import Trace

MOST_RUNS = 6
#: Beyond this many different values bars would be hairs; neighbouring values then share one.
MOST_BARS = 40
_HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\")


@dataclass(frozen=True, slots=True)
class _Run:
    """What is drawn of a run. staleness: value -> how often. about: what else may tell it from another run of the same algorithm."""

    algorithm: str
    staleness: Mapping[int, int]
    bound: int | None
    about: tuple[str, str, str]


def _of(run: Trace | Columns) -> _Run:
    columns = Columns.of(run) if isinstance(run, Trace) else run
    staleness = columns.totals().staleness
    if not staleness:
        raise InputError(
            f"{getattr(run, 'source', 'run')}: {columns.algorithm} contributed nothing whose staleness could be shown"
        )
    world = "measured" if isinstance(run, Trace) and run.header.world == "real" else "simulated"
    name = Path(run.source).stem if isinstance(run, Trace) else columns.engine
    about = f"{columns.counts.size} ranks", world, name
    return _Run(columns.algorithm, staleness, staleness_bound(columns.algorithm, columns.schedule), about)


def draw_staleness(runs: Sequence[Trace | Columns], path: str | Path, width: float = WIDTH_INCHES) -> None:
    """The share of contributions by staleness, syncs excepted, bars side by side for several runs, with a line at each bound.

    Raises InputError if there are none or too many runs, or one without contributions.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise InputError(f"{len(runs)} runs: a histogram shows 1 to {MOST_RUNS}")
    shown = [_of(run) for run in runs]
    largest = max(max(run.staleness) for run in shown)
    bin_width = -(-(largest + 1) // MOST_BARS)
    bins = range(0, largest + 1, bin_width)
    names = _names(shown)
    with picture(path, width, 0.8 * width) as figure:
        axes = figure.subplots()
        thickness = 0.86 / len(shown)
        handles: list[Any] = []
        for number, run in enumerate(shown):
            total = sum(run.staleness.values())
            shares = [100 * sum(run.staleness.get(low + i, 0) for i in range(bin_width)) / total for low in bins]
            places = [x + (number - (len(shown) - 1) / 2) * thickness for x in range(len(bins))]
            same = sum(other.algorithm == run.algorithm for other in shown[:number])
            handles.append(
                axes.bar(
                    places, shares, 0.94 * thickness, color=look(run.algorithm).colour, label=names[number], edgecolor="white",
                    linewidth=0.0, hatch=_HATCHES[same],
                )
            )  # fmt: skip
        bounds = _bounds(shown, largest)
        for bound, colour in bounds.items():
            place = (bound + 1) / bin_width - 0.5
            dashes = (0, (4, 2))
            handles.append(axes.axvline(place, color=colour, linewidth=1.0, linestyle=dashes, label=f"bound: {bound}"))
        last = max([len(bins) - 1, *(bound // bin_width for bound in bounds)])
        every = -(-(last + 1) // 12)
        axes.set_xticks(range(0, last + 1, every), [_bin(i * bin_width, bin_width) for i in range(0, last + 1, every)])
        axes.tick_params(axis="x", length=0)
        axes.grid(True, axis="y")
        axes.set_xlabel("staleness, iterations")
        axes.set_ylabel("share of contributions, %")
        legend_below(figure, handles, columns=2 if max(map(len, names)) > 14 else 3)


def _bounds(runs: Sequence[_Run], largest: int) -> dict[int, str]:
    """Bound -> colour: that of the algorithm, or black if several have it. One that is far from what was seen would be all there is."""
    owners: dict[int, set[str]] = {}
    for run in runs:
        if run.bound and run.bound <= 2 * largest + 8:
            owners.setdefault(run.bound, set()).add(look(run.algorithm).colour)
    return {bound: colours.pop() if len(colours) == 1 else "#000000" for bound, colours in owners.items()}


def _names(runs: Sequence[_Run]) -> list[str]:
    """The algorithm, and what tells it from the other runs of the same one, if there are any."""
    names = []
    for run in runs:
        others = [other.about for other in runs if other.algorithm == run.algorithm]
        telling = [part for number, part in enumerate(run.about) if len({about[number] for about in others}) > 1]
        names.append(", ".join([look(run.algorithm).name, *telling[:2]]))
    return names


def _bin(low: int, width: int) -> str:
    return str(low) if width == 1 else f"{low}–{low + width - 1}"
