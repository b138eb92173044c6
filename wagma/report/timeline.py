"""Timelines: who computes, waits, communicates and was late, drawn from traces of either world.

One panel for each trace, one row for each rank, one time axis for all. Every panel begins with the same iteration and shows as much
time as the slowest of them needs for the same number of iterations.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagma.errors import InputError, MissingDependencyError
from wagma.trace import ExchangeRecord, Execution, Iteration, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Span = tuple[int, int]  # begin and end in ns

DEFAULT_ITERATIONS = 12
WIDTH_INCHES = 10.0
DOTS_PER_INCH = 200
ROW = 0.76  # height of a row; the rest is the gap between rows
STRIP = 0.24  # height of a passive execution, at the bottom of its row
HAIR = 0.0012  # least width of an execution, as a share of the axis: a short one must still be seen


class Activity(StrEnum):
    """What fills a stretch of a row; the value is its text in the legend."""

    COMPUTING = "computing"
    DELAY = "injected delay"
    WAITING = "waiting for others"
    COMMUNICATING = "communicating"
    PASSIVE = "in the background, while computing"


# Okabe and Ito's colours, which colour-blind readers tell apart; waiting is hatched, since nothing happens then.
FACES = {
    Activity.COMPUTING: "#BFDDF0",
    Activity.DELAY: "#E69F00",
    Activity.WAITING: "#FFFFFF",
    Activity.COMMUNICATING: "#0072B2",
    Activity.PASSIVE: "#009E73",
}
HATCH = "//////"
HATCH_COLOUR = "#9A9A9A"
MARK = "#000000"


@dataclass(slots=True)
class Row:
    """What one rank did, in ns of the trace's clock."""

    spans: dict[Activity, list[Span]] = field(default_factory=lambda: defaultdict(list))
    late: list[int] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)


def rows(trace: Trace) -> dict[int, Row]:
    """Rank -> what it did from its start to its last iteration.

    The delay is taken to be the last part of an iteration's computing, as both worlds inject it. Members communicate once the
    last of them has started; an execution is passive for as long as its rank computes. So do neighbours; of a pair, whoever asks
    communicates until it has the answer, waiting or, as AD-PSGD does, while it computes.
    """
    executions: dict[int, list[Execution]] = defaultdict(list)
    for execution in trace.executions:
        executions[execution.rank].append(execution)
    iterations: dict[int, list[Iteration]] = defaultdict(list)
    for iteration in trace.iterations:
        iterations[iteration.rank].append(iteration)
    ready, exchanged = _ready(trace), _exchanges(trace)
    result = {}
    for start in trace.starts:
        row = result[start.rank] = Row()
        busy = _add_iterations(row, trace, start.started_ns, sorted(iterations[start.rank], key=lambda a: a.sequence))
        for e in executions[start.rank]:
            span = (min(ready(e), e.completed_ns), e.completed_ns)
            if e.own_stamp == e.version:
                row.spans[Activity.COMMUNICATING].append(span)
            else:
                row.spans[Activity.PASSIVE] += _common(span, busy)
                row.spans[Activity.COMMUNICATING] += _common(span, row.spans[Activity.WAITING])
        for span in exchanged[start.rank]:
            row.spans[Activity.PASSIVE] += _common(span, busy)
            row.spans[Activity.COMMUNICATING] += _common(span, row.spans[Activity.WAITING])
    return result


def _exchanges(trace: Trace) -> dict[int, list[Span]]:
    """Rank -> when it exchanged models with neighbours or a partner."""
    comparable = len({start.host for start in trace.starts}) == 1
    begun = {(x.rank, x.version): x.started_ns for x in trace.exchanges if x.role == "neighbours"}
    spans: dict[int, list[Span]] = defaultdict(list)

    def ready(x: ExchangeRecord) -> int:
        """When everybody was there whom the rank got something from."""
        if x.role != "neighbours" or not comparable:
            return x.started_ns
        return max(begun.get((rank, x.version), x.started_ns) for rank in (x.rank, *x.sources))

    for x in trace.exchanges:
        spans[x.rank].append((min(ready(x), x.completed_ns), x.completed_ns))
    return spans


def _add_iterations(row: Row, trace: Trace, begin: int, iterations: Sequence[Iteration]) -> list[Span]:
    """Fill in what the application did; returns when it was not in a collective."""
    schedule, busy = trace.schedule, []
    for a in iterations:
        computed = max(begin, a.arrival_ns - a.delayed_ns)
        stretches = {
            Activity.COMPUTING: (begin, computed),
            Activity.DELAY: (computed, a.arrival_ns),
            Activity.WAITING: (a.arrival_ns, a.return_ns),
        }
        for activity, (left, right) in stretches.items():
            if right > left:
                row.spans[activity].append((left, right))
        busy.append((begin, a.arrival_ns))
        if a.fresh is False:
            row.late.append(a.arrival_ns)
        if a.fresh is not None and schedule.is_sync(a.iteration):
            row.syncs.append(a.return_ns)
        begin = a.return_ns
    return busy


def _ready(trace: Trace) -> Callable[[Execution], int]:
    """When the last member of an execution's group had started; across hosts, whose clocks differ, when the rank itself had."""
    if len({start.host for start in trace.starts}) > 1:
        return lambda e: e.started_ns
    latest: dict[tuple[int, int], int] = defaultdict(int)
    for e in trace.executions:
        key = (e.version, min(e.group))
        latest[key] = max(latest[key], e.started_ns)
    return lambda e: latest[e.version, min(e.group)]


def draw(traces: Sequence[Trace], path: str | Path, first: int = 0, count: int = DEFAULT_ITERATIONS) -> None:
    """Draw `count` iterations from number `first` on, one panel for each trace, into a file (PNG, PDF or SVG by its suffix).

    Raises MissingDependencyError without matplotlib, InputError if a trace lacks these iterations or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("drawing a timeline needs matplotlib: pip install matplotlib") from error
    if not traces or count < 1:
        raise InputError("timeline: needs at least one trace and one iteration")
    windows = [_window(trace, first, count) for trace in traces]
    length = max(end - begin for begin, end in windows)
    heights = [0.35 + min(4.5, max(0.5, 0.27 * len(trace.starts))) for trace in traces]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 1.1), layout="constrained")
    panels = figure.subplots(len(traces), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    unit, scale = ("ms", 1e-6) if length < 2e9 else ("s", 1e-9)
    for axes, trace, (begin, end) in zip(panels, traces, windows, strict=True):
        _panel(axes, trace, _Axis(begin, length, scale))
        _caption(axes, trace, (end - begin) * scale, unit, first, count)
    panels[-1].set_xlabel(f"time from the beginning of iteration {first}, {unit}", fontsize=9)
    panels[-1].set_xlim(0, length * scale * 1.005)
    _legend(figure)
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH)
    except (OSError, ValueError) as error:
        raise InputError(f"timeline {path}: cannot be written: {error}") from error


@dataclass(frozen=True, slots=True)
class _Axis:
    """From ns of a trace's clock to the picture's time."""

    begin: int
    length: int
    scale: float

    def bars(self, spans: Iterable[Span], least: float = 0.0) -> list[tuple[float, float]]:
        """(begin, width) of what is in the picture, `least` as a share of it."""
        found = []
        for begin, end in spans:
            left, right = max(begin - self.begin, 0), min(end - self.begin, self.length)
            if right >= left:
                found.append((left * self.scale, max(right - left, least * self.length) * self.scale))
        return found

    def points(self, times: Iterable[int]) -> list[float]:
        """What of `times` is in the picture."""
        return [(t - self.begin) * self.scale for t in times if 0 <= t - self.begin <= self.length]


def _panel(axes: Axes, trace: Trace, axis: _Axis) -> None:
    """One trace: ranks from top to bottom."""
    found = rows(trace)
    for rank, row in found.items():
        top = rank - ROW / 2
        for activity in (Activity.COMPUTING, Activity.DELAY, Activity.WAITING):
            bars = axis.bars(row.spans[activity])
            if activity is Activity.WAITING:
                style: dict[str, Any] = {"hatch": HATCH, "edgecolor": HATCH_COLOUR, "linewidth": 0.0}
            else:
                style = {"linewidth": 0.0}
            axes.broken_barh(bars, (top, ROW), facecolor=FACES[activity], **style)
        axes.broken_barh(
            axis.bars(row.spans[Activity.COMMUNICATING], HAIR),
            (top, ROW),
            facecolor=FACES[Activity.COMMUNICATING],
            linewidth=0.0,
        )
        axes.broken_barh(
            axis.bars(row.spans[Activity.PASSIVE], HAIR),
            (top + ROW - STRIP, STRIP),
            facecolor=FACES[Activity.PASSIVE],
            linewidth=0.0,
        )
        syncs = axis.points(row.syncs)
        axes.vlines(syncs, rank - 0.5, rank + 0.5, color=MARK, linewidth=1.3)
        late = axis.points(row.late)
        axes.plot(late, [top] * len(late), marker="v", color=MARK, markersize=_marker_size(len(found)), linestyle="none")
    axes.set_ylim(len(found) - 0.4, -0.65)


def _caption(axes: Axes, trace: Trace, took: float, unit: str, first: int, count: int) -> None:
    """Title, and when the last of the iterations was done."""
    ranks = len(trace.starts)
    world = {"sim": "simulated", "real": "measured"}.get(trace.header.world, trace.header.world)
    axes.set_title(f"{trace.header.algorithm}, {world}", loc="left", fontsize=10, fontweight="bold")
    iterations = f"iterations {first} to {first + count - 1}" if count > 1 else f"iteration {first}"
    axes.set_title(f"{iterations} took all ranks {_number(took)} {unit}", loc="right", fontsize=9)
    axes.axvline(took, color=MARK, linewidth=0.9, linestyle=(0, (4, 3)))
    step = -(-ranks // 16)
    axes.set_yticks(range(0, ranks, step), [f"rank {rank}" for rank in range(0, ranks, step)], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for activity in Activity:
        if activity is Activity.WAITING:
            handles.append(Patch(facecolor=FACES[activity], edgecolor=HATCH_COLOUR, hatch=HATCH, linewidth=0.0, label=activity))
        else:
            handles.append(Patch(facecolor=FACES[activity], label=activity))
    handles += [
        Line2D([], [], color=MARK, marker="v", linestyle="none", markersize=5, label="arrived late"),
        Line2D([], [], color=MARK, marker="|", linestyle="none", markersize=10, markeredgewidth=1.3, label="sync"),
        Line2D([], [], color=MARK, linewidth=0.9, linestyle=(0, (4, 3)), label="all ranks done"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def _window(trace: Trace, first: int, count: int) -> Span:
    """From the first rank's beginning of iteration `first` to the last one's end of the count-th."""
    begins, ends = [], []
    before = {start.rank: start.started_ns for start in trace.starts}
    for a in sorted(trace.iterations, key=lambda record: (record.rank, record.sequence)):
        if a.iteration == first:
            begins.append(before[a.rank])
        if a.iteration == first + count - 1:
            ends.append(a.return_ns)
        before[a.rank] = a.return_ns
    if not begins or not ends:
        last = max((a.iteration for a in trace.iterations), default=-1)
        raise InputError(f"timeline: {trace.source} has no iterations {first} to {first + count - 1}; its last is {last}")
    return min(begins), max(ends)


def _common(span: Span, others: Sequence[Span]) -> list[Span]:
    """The parts of `span` within `others`, which are in order and do not overlap; an instant has a part of no duration."""
    begin, end = span
    found = []
    for left, right in others[max(0, bisect_right(others, begin, key=lambda other: other[0]) - 1) :]:
        if left > end or (left == end and end > begin):
            break
        if right > begin or (right == begin == end):
            found.append((max(begin, left), min(end, right)))
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _marker_size(ranks: int) -> float:
    return 4.5 if ranks <= 16 else max(1.5, 72 / ranks)
