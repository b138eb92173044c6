"""What the checkers of `wagma.validate` stand on: the promises by number, a violation, and a trace indexed for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from wagma import algorithms
from wagma.algorithms import Collectives, Specification, specification
from wagma.core.groups import Group
from wagma.trace import ExchangeRecord, Execution, Iteration, Trace

_NAMES = (
    "exactly once, in order", "agreement", "wholeness", "freshness", "bounded staleness", "consistency", "progress", "determinism",
)  # fmt: skip
#: The algorithms that wagma comes with: what these do is known, and can be recomputed.
_BUILT_IN = (
    algorithms.ad_psgd, algorithms.allreduce_sgd, algorithms.d_psgd, algorithms.eager_sgd, algorithms.ideal, algorithms.local_sgd,
    algorithms.sgp, algorithms.swarm_sgd, algorithms.wagma_sgd,
)  # fmt: skip
PROMISES: dict[int, str] = dict(enumerate(_NAMES, 1))


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that a trace breaks. The message is one line: rank, version, what was seen and what was expected."""

    promise: int
    name: str
    source: str
    rank: int | None
    version: int | None
    message: str


def asked(x: ExchangeRecord) -> tuple[int, int]:
    """(active rank, version), which names a pair; of an exchange with neighbours the rank is the own one."""
    return (x.sources[0] if x.role == "passive" and x.sources else x.rank), x.version


def is_built_in(algorithm: Specification) -> bool:
    """Whether an algorithm is one that wagma comes with, so that its steps, graph and waits are known."""
    return any(algorithm.run is known and algorithm.name == known.__name__ for known in _BUILT_IN)


class Run:
    """A trace, indexed for the checkers. Raises InputError if its header has no valid scenario or an unknown algorithm."""

    def __init__(self, trace: Trace) -> None:
        scenario = trace.scenario
        self.trace = trace
        self.schedule = trace.schedule
        self.ranks = scenario.ranks
        self.dtype = scenario.dtype
        self.merge_once = scenario.settings_of(trace.header.algorithm).merge_once
        own = specification(trace.header.algorithm)
        kind = own.collectives
        #: The algorithm's name if it is one that wagma comes with.
        self.built_in = own.name if is_built_in(own) else None
        self.settings = scenario.algorithm_settings(own.name)
        #: A pair averages models as they stand, so that it does not begin before they do.
        pairs = own.companion is not None or kind is Collectives.PAIRS
        self._overlap = 0.0 if pairs else scenario.network.overlap
        self.communicates = kind not in (Collectives.NONE, Collectives.NEIGHBOURS, Collectives.PAIRS)
        self.neighbourly = kind is Collectives.NEIGHBOURS
        self.pairs_only = kind is Collectives.PAIRS
        self.models = trace.header.value == "model"
        self.digests = trace.header.digests != "off"
        self.initial = {start.rank: start.initial_digest for start in trace.starts}
        self.started_ns = {start.rank: start.started_ns for start in trace.starts}
        #: By rank, in causal order.
        self.executions: defaultdict[int, list[Execution]] = defaultdict(list)
        self.iterations: defaultdict[int, list[Iteration]] = defaultdict(list)
        #: By rank and version, of duplicates the first.
        self.execution: dict[tuple[int, int], Execution] = {}
        self.iteration: dict[tuple[int, int], Iteration] = {}
        #: Version -> group, as its members name it -> their executions.
        self.groups: defaultdict[int, dict[Group, list[Execution]]] = defaultdict(dict)
        #: By rank, the last version at which it arrived; it closed after that one.
        self.last_arrival: defaultdict[int, int] = defaultdict(lambda: self.schedule.begin - 1)
        known = range(self.ranks)
        records: list[Execution | Iteration | ExchangeRecord] = [*trace.executions, *trace.iterations, *trace.exchanges]
        self.strangers = sorted({record.rank for record in records} - set(known))
        for a in sorted((a for a in trace.iterations if a.rank in known), key=lambda a: a.sequence):
            self.iterations[a.rank].append(a)
            self.iteration.setdefault((a.rank, a.iteration), a)
            # One beyond the scenario's end is a defect that promise 1 reports, and no number to count up to.
            if a.fresh is not None and a.iteration < scenario.iterations:
                self.last_arrival[a.rank] = max(self.last_arrival[a.rank], a.iteration)
        for e in sorted((e for e in trace.executions if e.rank in known), key=lambda e: e.sequence):
            self.executions[e.rank].append(e)
            if self.execution.setdefault((e.rank, e.version), e) is e:
                self.groups[e.version].setdefault(tuple(e.group), []).append(e)
        #: Exchanges by rank, in causal order.
        self.exchanges: defaultdict[int, list[ExchangeRecord]] = defaultdict(list)
        #: By role, rank and version, of duplicates the first; of a passive one the rank is that of the active side.
        self.exchange: dict[tuple[str, int, int], ExchangeRecord] = {}
        for x in sorted((x for x in trace.exchanges if x.rank in known), key=lambda x: x.sequence):
            self.exchanges[x.rank].append(x)
            self.exchange.setdefault((x.role, *asked(x)), x)
        #: The last version at which any rank arrived; before the first: none.
        self.last = max(self.last_arrival.values(), default=self.schedule.begin - 1)

    @property
    def complete(self) -> bool:
        """Whether all iterations of all ranks are on record."""
        wanted = list(range(self.schedule.begin, self.trace.scenario.iterations))
        return all([a.iteration for a in self.iterations[rank]] == wanted for rank in range(self.ranks))

    def early_ns(self, a: Iteration) -> int:
        """How long before the end of its compute an iteration arrives (overlap), in virtual time."""
        return round(self._overlap * a.computed_ns)

    def joins(self, iteration: int) -> bool:
        """Whether the iteration is a version of the run's collective."""
        return self.communicates and self.schedule.next(iteration - 1) == iteration

    def joined(self) -> Iterator[Iteration]:
        """All iterations in which a rank arrived at a version."""
        return (a for records in self.iterations.values() for a in records if a.fresh is not None)

    def violation(self, promise: int, rank: int, version: int | None, text: str) -> Violation:
        """A violation in this trace."""
        message = f"rank {rank}{'' if version is None else f', version {version}'}: {text}"
        return Violation(promise, PROMISES[promise], self.trace.source, rank, version, message)
