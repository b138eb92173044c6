"""Who was late, who computed slowest, who was waited for: sums over each rank's records, and what they say in words.

The same sums are taken on a rank while it trains (`wagma.real.seeing.monitor`), and from a trace of either world (`summary_of`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.core.schedule import Schedule
from wagma.text import bounded, number, percent, seconds, table
from wagma.trace import ExchangeRecord, Execution, Iteration, Trace

Array = npt.NDArray[np.float64]
NANOSECONDS = 1e9

#: Of each rank the newest so many waits at syncs are kept: 512 KiB.
SYNCS_KEPT = 1 << 16
#: A rank is called slow if an iteration of its own takes so much longer than that of the median rank.
SLOW = 1.1
#: A rank is called waited for if that took the others at least this share of all ranks' time.
WAITED_FOR = 0.01
#: Ranks in the summary's table; of more the slowest are shown.
ROWS = 16


@dataclass(slots=True)
class Facts:
    """What one rank has done so far, in sums; times in ns.

    computed_ns: all that is neither waiting nor an injected delay. joined, late: arrivals at versions that are no syncs of a grouped
    schedule. contributions, stale, stalest: their number, the sum and the largest of their staleness, as in `wagma.results`. loss and
    samples: sums of what the program has logged. sync_waits: of the newest of all `syncs`, how long the rank waited.
    ended_ns: when its last iteration ended, or its first one began, by its own clock; None: not known.
    """

    iterations: int = 0
    skipped: int = 0
    computed_ns: int = 0
    delayed_ns: int = 0
    waited_ns: int = 0
    joined: int = 0
    late: int = 0
    contributions: int = 0
    stale: int = 0
    stalest: int = 0
    syncs: int = 0
    losses: int = 0
    loss: float = 0.0
    samples: float = 0.0
    sync_waits: deque[int] = field(default_factory=lambda: deque(maxlen=SYNCS_KEPT))
    ended_ns: int | None = None

    def add(
        self,
        schedule: Schedule,
        executions: Iterable[Execution],
        iterations: Iterable[Iteration],
        exchanges: Iterable[ExchangeRecord],
    ) -> None:
        """Count further records of this rank."""
        for a in iterations:
            self.iterations += 1
            self.skipped += a.skipped
            self.computed_ns += a.computed_ns
            self.delayed_ns += a.delayed_ns
            waited = self._waited(a)
            self.waited_ns += waited
            if a.fresh is None:
                continue
            sync = schedule.is_sync(a.iteration)
            if sync:
                self.syncs += 1
                self.sync_waits.append(waited)
            if not (sync and schedule.grouped):
                self.joined += 1
                self.late += not a.fresh
        for e in executions:
            if not (schedule.grouped and schedule.is_sync(e.version)):
                self._contributed(e.staleness)
        for x in exchanges:
            for stamp in x.stamps:
                self._contributed(max(0, x.iteration - stamp))

    def _waited(self, a: Iteration) -> int:
        """How long it did nothing else: where a simulated rank communicates during back-propagation, it arrives before it has computed."""
        computed = a.arrival_ns if self.ended_ns is None else self.ended_ns + a.computed_ns + a.delayed_ns
        self.ended_ns = a.return_ns
        return max(0, a.return_ns - max(a.arrival_ns, computed))

    def _contributed(self, staleness: int | None) -> None:
        if staleness is not None:
            self.contributions += 1
            self.stale += staleness
            self.stalest = max(self.stalest, staleness)

    def row(self) -> Array:
        """The sums in the order of COLUMNS, float64."""
        return np.array([getattr(self, name) for name in COLUMNS], np.float64)


COLUMNS = tuple(name for name in Facts.__dataclass_fields__ if name not in ("sync_waits", "ended_ns"))
_INDEX = {name: index for index, name in enumerate(COLUMNS)}


class Figures:
    """What all ranks' sums say. rows: shape (ranks, len(COLUMNS)), `Facts.row` of each; or the difference of two such."""

    def __init__(self, rows: Array) -> None:
        self.rows = rows

    def of(self, name: str) -> Array:
        """One sum, by rank."""
        column: Array = self.rows[:, _INDEX[name]]
        return column

    def since(self, earlier: Figures | None) -> Figures:
        """The figures of what came after `earlier`; the largest staleness stays that of the whole run."""
        if earlier is None:
            return self
        rows = self.rows - earlier.rows
        rows[:, _INDEX["stalest"]] = self.of("stalest")
        return Figures(rows)

    @property
    def own_s(self) -> Array:
        """Seconds that each rank's own part of an iteration takes, injected delays included; NaN where it had none."""
        return _ratio(self.of("computed_ns") + self.of("delayed_ns"), self.of("iterations") * NANOSECONDS)

    @property
    def late_share(self) -> Array:
        """Late arrivals of all of its arrivals at group versions; NaN where it had none."""
        return _ratio(self.of("late"), self.of("joined"))

    @property
    def latest(self) -> int:
        """The rank with the largest share of late arrivals; of several, the one that takes longest for its own part."""
        share = np.nan_to_num(self.late_share, nan=-1.0)
        return int(np.lexsort((np.nan_to_num(self.own_s, nan=-1.0), share))[-1])

    @property
    def fresh(self) -> float | None:
        """Arrivals that were in time, of all arrivals at group versions; None without any."""
        joined = float(self.of("joined").sum())
        return 1 - float(self.of("late").sum()) / joined if joined else None

    @property
    def waiting(self) -> float | None:
        """The share of all ranks' time that they waited; None if no time has passed."""
        waited = float(self.of("waited_ns").sum())
        total = waited + float((self.of("computed_ns") + self.of("delayed_ns")).sum())
        return waited / total if total else None

    @property
    def staleness_mean(self) -> float | None:
        """Mean staleness of contributions; None without any."""
        contributions = float(self.of("contributions").sum())
        return float(self.of("stale").sum()) / contributions if contributions else None

    @property
    def loss(self) -> float | None:
        """Mean of the losses that were logged; None if none was."""
        losses = float(self.of("losses").sum())
        return float(self.of("loss").sum()) / losses if losses else None

    def rate(self, name: str) -> float:
        """Samples or iterations per second of all ranks, each by its own time; of whom nothing is known, as of the others on average."""
        spent = (self.of("computed_ns") + self.of("delayed_ns") + self.of("waited_ns")) / NANOSECONDS
        rates = _ratio(self.of(name), spent)
        return float(np.nanmean(rates)) * len(rates) if np.isfinite(rates).any() else 0.0

    @property
    def slowdown(self) -> Array:
        """own_s over that of the median rank."""
        own = self.own_s
        slowdown: Array = own / float(np.nanmedian(own)) if np.isfinite(own).any() else own
        return slowdown


def _ratio(above: Array, below: Array) -> Array:
    ratio: Array = np.divide(above, below, out=np.full(above.shape, math.nan), where=below > 0)
    return ratio


def _most(values: Array) -> int:
    """The rank with the largest value; NaN is none."""
    return int(np.nanargmax(np.where(np.isnan(values), -1.0, values)))


def line(iteration: int, run: Figures, lately: Figures, bound: int | None) -> str:
    """How the run goes, in one line. iteration: rank 0's; run: since its beginning; lately: since a while ago."""
    parts = [f"iteration {iteration}"]
    if (loss := lately.loss) is not None:
        parts.append(f"loss {loss:.4g}")
    what = "samples" if run.of("samples").any() else "iterations"
    parts.append(f"{number(lately.rate(what))} {what}/s")
    if run.of("contributions").any():
        parts.append(f"staleness {bounded(run.of('stalest').max(), bound)}")
    if lately.fresh is not None:
        parts.append(f"fresh {percent(lately.fresh)}")
    if lately.of("late").any():
        rank = lately.latest
        parts.append(f"late most: rank {rank} ({percent(lately.late_share[rank])})")
    elif np.nanmax(lately.slowdown, initial=0.0) >= SLOW:
        slowdown = lately.slowdown
        parts.append(f"slowest: rank {_most(slowdown)} ({number(slowdown[_most(slowdown)])} times the median)")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Blame:
    """Whom the others waited for at syncs, by rank: how often it came last, and ns that the others waited longer than it in all."""

    last: npt.NDArray[np.int64]
    cost_ns: Array
    syncs: int

    @classmethod
    def of(cls, waits: Sequence[Sequence[int]], counts: Sequence[int]) -> Blame:
        """From each rank's newest waits, counts[rank] of all. Who waits least at a sync is who came last: no clocks are compared.

        Only syncs that all ranks remember count, but for those that a rank, having ended, has not joined.
        """
        ranks = len(waits)
        begin, end = max(count - len(own) for own, count in zip(waits, counts, strict=True)), max(counts)
        joined = np.full((ranks, max(0, end - begin)), math.nan)
        for rank, (own, count) in enumerate(zip(waits, counts, strict=True)):
            known = np.array(own, np.float64)[max(0, begin - (count - len(own))) :]
            joined[rank, : known.size] = known
        joined = joined[:, np.isfinite(joined).sum(axis=0) >= 2]
        last, cost = np.zeros(ranks, np.int64), np.zeros(ranks)
        if joined.size:
            who = np.nanargmin(joined, axis=0)
            np.add.at(last, who, 1)
            np.add.at(cost, who, np.nansum(joined - np.nanmin(joined, axis=0), axis=0))
        return cls(last, cost, joined.shape[1])


class Summary:
    """A run in words and figures. str() of it is what `distribute(..., progress=True)` prints at the end. through: how models travelled."""

    def __init__(self, algorithm: str, bound: int | None, facts: Sequence[Facts], through: str = "") -> None:
        self.algorithm = algorithm
        self.through = through
        self.bound = bound
        self.figures = Figures(np.array([one.row() for one in facts]))
        self.blame = Blame.of([one.sync_waits for one in facts], [one.syncs for one in facts])

    def __str__(self) -> str:
        return "\n".join([self.headline(), self.table(), *self.stragglers()])

    def headline(self) -> str:
        """What was run, and how fast."""
        run, ranks = self.figures, len(self.figures.rows)
        iterations = run.of("iterations")
        spent = (run.of("computed_ns") + run.of("delayed_ns") + run.of("waited_ns")).max() / NANOSECONDS
        parts = [
            f"{self.algorithm} on {ranks} {'rank' if ranks == 1 else 'ranks'}: {_range(iterations)} iterations in {seconds(spent)}"
        ]
        what = "samples" if run.of("samples").any() else "iterations"
        parts.append(f"{number(run.rate(what))} {what}/s")
        if run.of("contributions").any():
            parts.append(f"staleness {bounded(run.of('stalest').max(), self.bound)}")
        if run.fresh is not None:
            parts.append(f"fresh {percent(run.fresh)}")
        if run.waiting is not None:
            parts.append(f"waiting {percent(run.waiting)} of the time")
        if self.through:
            parts.append(f"through {self.through}")
        return ", ".join(parts)

    def table(self) -> str:
        """A line for each rank; of many ranks, for those whose own part of an iteration takes longest."""
        run, blame = self.figures, self.blame
        own, late, waited = run.own_s, run.late_share, _ratio(run.of("waited_ns"), run.of("iterations") * NANOSECONDS)
        ranks = list(range(len(own)))
        if len(ranks) > ROWS:
            ranks = sorted(sorted(ranks, key=lambda rank: -np.nan_to_num(own[rank]))[:ROWS])
        rows = [
            [
                str(rank),
                f"{run.of('iterations')[rank]:.0f}",
                _known(own[rank], seconds),
                _known(waited[rank], seconds),
                _known(late[rank], percent) if run.of("late").any() else "",
                f"{run.of('stalest')[rank]:.0f}" if run.of("stalest").any() else "",
                f"{blame.last[rank]} of {blame.syncs}" if blame.syncs else "",
                seconds(blame.cost_ns[rank] / NANOSECONDS) if blame.syncs else "",
            ]
            for rank in ranks
        ]
        header = ["rank", "iterations", "own part", "waiting", "late", "staleness", "last at syncs", "others waited"]
        return table(header, rows)

    def stragglers(self) -> list[str]:
        """Who was late most, who computed slowest, who was waited for longest: a sentence for each that stands out."""
        run, blame, found = self.figures, self.blame, []
        if len(run.rows) > 1 and run.of("late").any():
            share, rank = run.late_share, run.latest
            of = f"{run.of('late')[rank]:.0f} of its {run.of('joined')[rank]:.0f} arrivals, {percent(share[rank])}"
            found.append(f"late most: rank {rank} ({of}; median rank {percent(float(np.nanmedian(share)))})")
        slowdown = run.slowdown
        if np.nanmax(slowdown, initial=0.0) >= SLOW:
            rank, own = _most(slowdown), run.own_s
            median = seconds(float(np.nanmedian(own)))
            found.append(f"slowest: rank {rank} (its own part of an iteration {seconds(own[rank])}, median rank {median})")
        cost = blame.cost_ns
        spent = (run.of("computed_ns") + run.of("delayed_ns") + run.of("waited_ns")).sum()
        if cost.max(initial=0.0) > WAITED_FOR * spent:
            rank = int(cost.argmax())
            times = f"the last one at {blame.last[rank]} of {blame.syncs} syncs"
            found.append(f"waited for longest: rank {rank} ({seconds(cost[rank] / NANOSECONDS)} of the others' time, {times})")
        return found or ["no straggler: nobody late, slower than the median by a tenth, or waited for a hundredth of the time"]


def _known(value: float, show: Any) -> str:
    return "" if math.isnan(value) else str(show(float(value)))


def _range(values: Array) -> str:
    least, most = int(values.min()), int(values.max())
    return str(most) if least == most else f"{least} to {most}"


def summary_of(trace: Trace, bound: int | None) -> Summary:
    """The summary of a trace of either world. bound: of the staleness, `wagma.results.staleness_bound`."""
    facts = {start.rank: Facts(ended_ns=start.started_ns) for start in trace.starts}
    schedule = trace.schedule
    for e in trace.executions:
        facts[e.rank].add(schedule, (e,), (), ())
    for a in trace.iterations:
        facts[a.rank].add(schedule, (), (a,), ())
    for x in trace.exchanges:
        facts[x.rank].add(schedule, (), (), (x,))
    return Summary(trace.header.algorithm, bound, list(facts.values()))
