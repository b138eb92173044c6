"""Time of an average against the size of the model: `wagma bench collective --plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagma.report.style import Look, legend_below, picture

WIDTH_INCHES, HEIGHT_INCHES = 3.5, 3.0
ITEM_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
#: By kernel and mode; what waits for the late rank is drawn as what does not, with a broken line.
LOOKS = {
    ("wagma", "tensor"): Look("wagma, tensor", "#D55E00", "o"),
    ("wagma", "resident"): Look("wagma, resident", "#E69F00", "s"),
    ("mpi", "tensor"): Look("MPI", "#0072B2", "^"),
    ("mpi", "resident"): Look("MPI, in place", "#56B4E9", "v"),
    ("gloo", "tensor"): Look("gloo", "#009E73", "D"),
}
LATE = (0, (3, 1.5))


def plot_collective(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw medians, with the middle half of the iterations as bars. Raises InputError and MissingDependencyError."""
    with picture(path, WIDTH_INCHES, HEIGHT_INCHES) as figure:
        axes = figure.subplots()
        handles = []
        lines = dict.fromkeys((row["kernel"], row["mode"], row["late_s"]) for row in rows)
        for kernel, mode, late_s in lines:
            own = sorted((r for r in rows if (r["kernel"], r["mode"], r["late_s"]) == (kernel, mode, late_s)), key=_size)
            middle = [row["median_s"] for row in own]
            # The median of the repetitions' medians may lie outside the quartiles of all iterations.
            below = [max(0.0, row["median_s"] - row["quartiles_s"][0]) for row in own]
            above = [max(0.0, row["quartiles_s"][1] - row["median_s"]) for row in own]
            style = LOOKS[kernel, mode]
            handles.append(
                axes.errorbar(
                    [_size(row) for row in own], middle, yerr=[below, above], color=style.colour, marker=style.marker, capsize=1.5,
                    elinewidth=0.6, linestyle=LATE if late_s else "-", label=_label(own[0], style.name),
                )
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="model (bytes)", ylabel="seconds")
        axes.grid(axis="y")
        first = rows[0]
        where = f", {first['device']}" if "device" in first else ""
        axes.set_title(f"{first['ranks']} ranks, groups of {first['group_size']}, {first['dtype']}{where}")
        legend_below(figure, handles, columns=2)


def _label(row: Mapping[str, Any], name: str) -> str:
    staged = ", staged" if "device" in row and row["kernel"] == "mpi" else ""
    return name + staged + (f", {row['late_s']:g} s late" if row["late_s"] else "")


def _size(row: Mapping[str, Any]) -> int:
    return int(row["count"]) * ITEM_BYTES[row["dtype"]]
