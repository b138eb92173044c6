"""Draw results: throughput, speedup, staleness, heatmap or timeline, into a PNG, SVG or PDF.

throughput, speedup and heatmap read what `wagma sweep --out` and `wagma simulate --json` wrote; staleness and timeline read traces
(--trace). Sizes fit a column of a paper; --width makes them larger.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from wagma.commands.options import parse_settings
from wagma.errors import InputError
from wagma.report import timeline
from wagma.report.figures import load_figures, select
from wagma.report.heatmap import draw_heatmap
from wagma.report.paper import published
from wagma.report.rows import Cells
from wagma.report.staleness import draw_staleness
from wagma.report.style import LEAST_INCHES, MOST_INCHES, WIDTH_INCHES, check_picture
from wagma.report.throughput import Points, draw_speedup, draw_throughput
from wagma.scenario import load, packaged
from wagma.trace import load_trace


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    results = {
        "throughput": "throughput against ranks, a line for each algorithm, beside the paper's points with --paper",
        "speedup": "bars of throughput over a baseline's",
        "heatmap": "a figure against two settings of a sweep",
    }
    for kind, summary in results.items():
        own = _add(kinds, kind, summary, "RESULTS", "a table of `wagma sweep` or the JSON of `wagma simulate --json`")
        own.add_argument("--algorithms", metavar="A,B", help="only these")
        own.add_argument(
            "--where", action="append", default=[], metavar="COLUMN=VALUE", help="only rows with this value; several times"
        )
        if kind == "throughput":
            own.add_argument("--paper", action="store_true", help="and what the paper published of a scenario of this name")
        if kind == "speedup":
            own.add_argument(
                "--over", metavar="ALGORITHM", default="allreduce_sgd", help="the baseline (default: allreduce_sgd)"
            )
        if kind == "heatmap":
            own.add_argument("--x", metavar="COLUMN", help="default: the setting that varies first")
            own.add_argument("--y", metavar="COLUMN", help="default: the one that varies next")
            own.add_argument("--value", metavar="COLUMN", default="throughput", help="what is shown (default: throughput)")
    _add(kinds, "staleness", "a histogram of the staleness of contributions", "TRACE", "a file that --trace wrote")
    own = _add(kinds, "timeline", "who computes, waits and communicates when", "TRACE", "a file that --trace wrote")
    own.add_argument("--first", type=_whole, default=0, metavar="N", help="the iteration to begin with (default: 0)")
    own.add_argument(
        "--count", type=_whole, default=timeline.DEFAULT_ITERATIONS, metavar="N",
        help=f"how many iterations (default: {timeline.DEFAULT_ITERATIONS})",
    )  # fmt: skip


def _add(kinds: Any, kind: str, summary: str, metavar: str, what: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(kind, help=summary, description=f"Draw {summary}.")
    parser.add_argument("files", nargs="+", metavar=metavar, help=f"{what}; several are drawn together")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the picture: .png, .svg or .pdf")
    width = timeline.WIDTH_INCHES if kind == "timeline" else WIDTH_INCHES
    if kind != "timeline":
        parser.add_argument("--width", type=_width, default=width, metavar="INCHES", help=f"(default: {width:g})")
    return parser


def run(options: argparse.Namespace) -> int:
    """Draw one picture."""
    check_picture(options.output)
    _DRAW[options.kind](options)
    return 0


def _rows(options: argparse.Namespace) -> list[Cells]:
    where = parse_settings(options.where, "--where")
    algorithms = None if options.algorithms is None else [name.strip() for name in options.algorithms.split(",")]
    return select(load_figures(options.files), where, algorithms)


def _throughput(options: argparse.Namespace) -> None:
    rows = _rows(options)
    draw_throughput(rows, options.output, _published(rows) if options.paper else None, options.width)


def _published(rows: list[Cells]) -> Points:
    """The paper's points of the experiment that the rows have the name of. Raises InputError if it has none."""
    names = list(dict.fromkeys(str(row.get("scenario")) for row in rows))
    points = published(load(names[0])).points if len(names) == 1 and names[0] in packaged() else {}
    if not points:
        raise InputError(f"--paper: the paper has no throughput for {', '.join(names)}")
    return points


def _speedup(options: argparse.Namespace) -> None:
    rows = _rows(options)
    draw_speedup(rows, options.output, options.over, options.width)


def _heatmap(options: argparse.Namespace) -> None:
    draw_heatmap(_rows(options), options.output, options.x, options.y, options.value, options.width)


def _staleness(options: argparse.Namespace) -> None:
    draw_staleness([load_trace(file) for file in options.files], options.output, options.width)


def _timeline(options: argparse.Namespace) -> None:
    timeline.draw([load_trace(file) for file in options.files], options.output, options.first, options.count)


_DRAW: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "throughput": _throughput,
    "speedup": _speedup,
    "heatmap": _heatmap,
    "staleness": _staleness,
    "timeline": _timeline,
}


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 0")
    return int(text)


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not LEAST_INCHES <= width <= MOST_INCHES:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from {LEAST_INCHES:g} to {MOST_INCHES:g}")
    return width
