"""What a simulation on the fast engine costs, against the number of ranks: time of an iteration, and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from wagma.report.style import in_order, legend_below, look, picture, plain_ticks

#: (algorithm, ranks, seconds of an iteration, peak memory of the process in bytes)
Point = tuple[str, int, float, int]
HEIGHT_INCHES = 2.6
WIDTH_INCHES = 6.0


def plot_cost(points: Sequence[Point], path: str | Path) -> None:
    """Draw the curves into a file. Raises InputError and MissingDependencyError."""
    with picture(path, WIDTH_INCHES, HEIGHT_INCHES) as figure:
        time, memory = figure.subplots(1, 2)
        handles = []
        for name in in_order([point[0] for point in points]):
            mine = sorted(point for point in points if point[0] == name)
            ranks, style = [point[1] for point in mine], look(name)
            drawn = {"color": style.colour, "marker": style.marker, "linestyle": style.line, "label": style.name}
            handles += time.plot(ranks, [1e3 * point[2] for point in mine], **drawn)
            memory.plot(ranks, [point[3] / 2**20 for point in mine], **drawn)
        places = sorted({point[1] for point in points})
        for axes, label in ((time, "an iteration of all ranks, ms"), (memory, "peak memory, MiB")):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            plain_ticks(axes, "x", places[::-2][::-1])  # every other one, the largest among them
            plain_ticks(axes, "y")
            axes.set_xlabel("ranks")
            axes.set_ylabel(label)
            axes.grid(visible=True)
        largest = max(point[3] for point in points) / 2**20
        memory.set_ylim(10, 10 ** math.ceil(math.log10(largest)))
        legend_below(figure, handles, columns=len(handles) if len(handles) < 5 else -(-len(handles) // 2))
