"""How all plots look: print size, colours that colour-blind readers tell apart, and how a picture becomes a file.

Sizes are those of a column of a two-column paper: 3.5 inches wide, letters of 7 and 8 points, so that nothing is scaled afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagma.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
WIDTH_INCHES = 3.5
DOTS_PER_INCH = 300
#: A picture must be this wide: between a thumbnail and a poster.
LEAST_INCHES, MOST_INCHES = 2.0, 20.0

_SETTINGS: Any = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "pdf.fonttype": 42,  # letters stay letters, which journals ask for
    "svg.hashsalt": "wagma",  # the same picture is the same file
}


@dataclass(frozen=True, slots=True)
class Look:
    """How an algorithm is drawn, the same in every plot."""

    name: str
    colour: str
    marker: str
    line: Any = "-"


#: Okabe and Ito's colours; yellow, which is too light for lines on white, is darkened, and grey is added.
LOOKS = {
    "wagma_sgd": Look("WAGMA-SGD", "#D55E00", "o"),
    "eager_sgd": Look("Eager-SGD", "#E69F00", "s"),
    "allreduce_sgd": Look("Allreduce-SGD", "#0072B2", "^"),
    "local_sgd": Look("Local SGD", "#56B4E9", "v"),
    "d_psgd": Look("D-PSGD", "#009E73", "D"),
    "ad_psgd": Look("AD-PSGD", "#CC79A7", "P"),
    "sgp": Look("SGP", "#9C8A00", "X"),
    "swarm_sgd": Look("SwarmSGD", "#7A7A7A", "*"),
    "ideal": Look("Ideal", "#000000", "", (0, (4, 2))),
}
_SPARE = (("#5E3C99", "<"), ("#A6611A", ">"), ("#018571", "h"), ("#404040", "d"))


def look(algorithm: str) -> Look:
    """The look of an algorithm; one's own ones get further colours by their names."""
    if algorithm in LOOKS:
        return LOOKS[algorithm]
    colour, marker = _SPARE[sum(algorithm.encode()) % len(_SPARE)]
    return Look(algorithm, colour, marker)


def in_order(algorithms: Sequence[str]) -> list[str]:
    """The algorithms of LOOKS in that order, then others as they come, each once."""
    found = dict.fromkeys(algorithms)
    return [name for name in LOOKS if name in found] + [name for name in found if name not in LOOKS]


def check_picture(path: str | Path) -> None:
    """Raise InputError, before any work is done, if a picture cannot be written there, MissingDependencyError without matplotlib."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"picture {str(path)!r}: must end in {', '.join(SUFFIXES)}")
    if target.is_dir():
        raise InputError(f"picture {str(path)!r}: cannot be written: a folder, not a file")
    if not target.parent.is_dir():
        raise InputError(f"picture {str(path)!r}: cannot be written: there is no folder {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InputError(f"picture {str(path)!r}: cannot be written: no permission to write there")
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("drawing needs matplotlib: pip install matplotlib") from error


@contextmanager
def picture(path: str | Path, width: float = WIDTH_INCHES, height: float | None = None) -> Iterator[Figure]:
    """A figure to draw on, which becomes a file at the end (PNG, SVG or PDF by its suffix); sizes in inches.

    Raises InputError for another suffix, a size out of range or a file that cannot be written, MissingDependencyError without
    matplotlib.
    """
    check_picture(path)
    if not LEAST_INCHES <= width <= MOST_INCHES:
        raise InputError(f"width = {width:g} inches: must be from {LEAST_INCHES:g} to {MOST_INCHES:g}")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, 0.72 * width if height is None else height), layout="constrained")
        yield figure
        # No date in the file: the same data are the same bytes.
        undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(Path(path).suffix.lower())
        try:
            figure.savefig(path, dpi=DOTS_PER_INCH, metadata=undated)
        except OSError as error:
            raise InputError(f"picture {path}: cannot be written: {error.strerror or error}") from error


def legend_below(figure: Figure, handles: Sequence[Any], columns: int = 3) -> None:
    """A legend outside the axes, where it covers nothing."""
    figure.legend(
        handles=list(handles), loc="outside lower center", ncols=columns, frameon=False, handlelength=2.2, columnspacing=1.2
    )


def plain_ticks(axes: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic axis ("x" or "y") labelled with whole numbers instead of powers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    if ticks is not None:
        axis.set_ticks(list(ticks))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
