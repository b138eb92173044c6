"""What the world decided, rank by rank: the order of its events, from a recording.

Within a rank the clock gives the order, since each of these events was timed under the lock that makes it one step. Where two share a
nanosecond, numbers (`sequence`) and stamps tell. Between ranks only causes count, since clocks of different hosts have offsets: an event
waits until what it needs of other ranks has happened (`wagma.sim.replay.run`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from wagma.algorithms import Collectives, Specification
from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.sim.replay.compare import Difference, exchange_key, named
from wagma.trace import ExchangeRecord, Execution, Iteration, Trace

Record = Execution | Iteration | ExchangeRecord


class Kind(Enum):
    """What happens at a rank; the value is unique, and begins with the name of the field that says when."""

    BEGUN = "started_ns, of the rank"  # its first iteration, as far as others can see
    COMPUTED = "arrival_ns, of the gradient"  # which is there: it takes back what it published, updates, arrives, as its algorithm says
    ARRIVED = "arrival_ns"
    ENDED = "return_ns"  # an iteration
    ACTIVATED = "activated_ns"  # a version, by another rank
    STARTED = "started_ns"  # a version; nothing to do: the decision machine has to have started it by itself
    SUMMED = "completed_ns"
    READ = "read_ns"
    SENT = "started_ns, of the model"  # to a partner
    SERVED = "completed_ns, of the answer"  # it averaged with who asked
    AVERAGED = "completed_ns, of the average"  # it averaged with the answer


@dataclass(frozen=True, slots=True)
class Step:
    """One event. number: the iteration or the version; asker: of pairs the active rank, which names them together with the version."""

    kind: Kind
    rank: int
    number: int
    at_ns: int
    record: Record
    asker: int = NONE
    place: int = NONE  # in the rank's causal order, where the record has one
    order: int = 0  # among events of one nanosecond

    def __str__(self) -> str:
        return f"{named(self.record)}: {self.kind.value.partition(',')[0]} = {self.at_ns}"


def scripts(trace: Trace, specification: Specification) -> list[deque[Step]]:
    """The steps of each rank. Raises Difference if records are missing, double or contradict each other in order."""
    ranks = trace.scenario.ranks
    paired = specification.companion is not None or specification.collectives is Collectives.PAIRS
    iterations, executions, exchanges = _by_rank(trace.iterations), _by_rank(trace.executions), _by_rank(trace.exchanges)
    every: list[Record] = [*trace.iterations, *trace.executions, *trace.exchanges]
    for record in every:
        if not 0 <= record.rank < ranks:
            raise Difference(f"{named(record)}: expected ranks 0 to {ranks - 1}")
    _check_sides(trace.exchanges, {(a.rank, a.iteration) for a in trace.iterations})
    found = []
    for rank in range(ranks):
        own = [
            *_of_iterations(iterations[rank], paired, trace.header.begin),
            *_of_executions(executions[rank], iterations[rank], trace.schedule),
            *_of_pairs(exchanges[rank]),
        ]
        own.sort(key=lambda step: (step.at_ns, step.order, step.place))
        _check_places(own)
        if paired:
            _insert_begin(own, rank, trace)
        found.append(deque(own))
    return found


def _check_sides(exchanges: Iterable[ExchangeRecord], iterations: set[tuple[int, int]]) -> None:
    """Every exchange is on record once, and every pair with its two sides; one with neighbours is part of an iteration."""
    sides: dict[tuple[int, str, int, int], ExchangeRecord] = {}
    for x in exchanges:
        if x.role != "neighbours" and (len(x.to) != 1 or x.to != x.sources):
            raise Difference(f"{named(x)}: to = {x.to}, sources = {x.sources}: must be one partner, the same")
        if exchange_key(x) in sides:
            raise Difference(f"{named(x)}: recorded twice")
        sides[exchange_key(x)] = x
        if x.role == "neighbours" and (x.rank, x.version) not in iterations:
            raise Difference(f"rank {x.rank}, iteration {x.version}: no record of it, and one of its exchange")
    for x in sides.values():
        partner = x.sources[0] if x.role != "neighbours" else NONE
        if x.role == "active" and (partner, "passive", x.version, x.rank) not in sides:
            raise Difference(
                f"rank {partner}, version {x.version} (passive): no record of it, and one of the other side, {named(x)}"
            )
        if x.role == "passive" and (partner, "active", x.version, partner) not in sides:
            raise Difference(
                f"rank {partner}, version {x.version} (active): no record of it, and one of the other side, {named(x)}"
            )


def _by_rank(records: Iterable[Record]) -> defaultdict[int, list[Record]]:
    found: defaultdict[int, list[Record]] = defaultdict(list)
    for record in records:
        found[record.rank].append(record)
    return found


def _of_iterations(records: Sequence[Record], paired: bool, begin: int) -> Iterable[Step]:
    known = sorted((a for a in records if isinstance(a, Iteration)), key=lambda a: a.iteration)
    for expected, a in enumerate(known, begin):
        if a.iteration != expected:
            if a.iteration < expected:
                raise Difference(f"{named(a)}: recorded twice")
            raise Difference(f"rank {a.rank}, iteration {expected}: no record of it, and one of iteration {a.iteration}")
        if paired and a.updated_sequence is None:
            raise InputError(f"{named(a)}: updated_sequence = null: an older wagma did not record it; record the run again")
        computed = a.arrival_ns if a.retracted_ns is None else a.retracted_ns
        place = NONE if a.updated_sequence is None else a.updated_sequence
        order = 0 if paired else -1 if a.fresh is None else 3  # where there is no collective it arrives when it returns
        yield Step(Kind.COMPUTED, a.rank, a.iteration, computed, a, place=place, order=order)
        if a.fresh is not None:
            yield Step(Kind.ARRIVED, a.rank, a.iteration, a.arrival_ns, a, order=5)
        yield Step(Kind.ENDED, a.rank, a.iteration, a.return_ns, a, place=a.sequence)


def _of_executions(records: Sequence[Record], iterations: Sequence[Record], schedule: Schedule) -> Iterable[Step]:
    arrivals = {a.arrival_ns: a.iteration for a in iterations if isinstance(a, Iteration) and a.fresh is not None}
    known = sorted((e for e in records if isinstance(e, Execution)), key=lambda e: e.version)
    version = schedule.first
    for e in known:
        if e.version != version:
            what = "recorded twice, or none" if e.version < version else f"no record of it, and one of version {e.version}"
            raise Difference(f"rank {e.rank}, version {min(e.version, version)}: {what}")
        version = schedule.next(version)
    came = {iteration: at_ns for at_ns, iteration in arrivals.items()}
    told: dict[int, Execution] = {}  # when the rank knew of versions from others -> the last of them
    for e in known:
        if not e.activator:
            told[e.activated_ns] = e
        elif e.version not in came or e.activated_ns < came[e.version]:
            when = "which it never did" if e.version not in came else f"at {came[e.version]}"
            raise Difference(
                f"{named(e)}: activator: recorded true, and activated_ns = {e.activated_ns} is before its arrival, {when}"
            )
        # At one nanosecond with an arrival: after it if that was contributed, as the stamp tells.
        after = e.own_stamp >= arrivals.get(e.started_ns, e.own_stamp + 1)
        yield Step(Kind.STARTED, e.rank, e.version, e.started_ns, e, order=6 if after else 4)
        yield Step(Kind.SUMMED, e.rank, e.version, e.completed_ns, e, place=e.sequence)
        if e.oldest_stamp is None or e.own_stamp != NONE:  # nobody reads the null contribution
            read = e.completed_ns if e.read_ns is None else e.read_ns
            yield Step(Kind.READ, e.rank, e.version, read, e, order=1)
    for at_ns, e in told.items():
        yield Step(Kind.ACTIVATED, e.rank, e.version, at_ns, e, order=2)


def _of_pairs(records: Sequence[Record]) -> Iterable[Step]:
    for x in records:
        if not isinstance(x, ExchangeRecord) or x.role == "neighbours":
            continue
        if x.role == "passive":
            yield Step(Kind.SERVED, x.rank, x.version, x.completed_ns, x, asker=x.sources[0], place=x.sequence)
            continue
        if x.sent_sequence is None:
            raise InputError(f"{named(x)}: sent_sequence = null: an older wagma did not record it; record the run again")
        yield Step(Kind.SENT, x.rank, x.version, x.started_ns, x, asker=x.rank, place=x.sent_sequence)
        yield Step(Kind.AVERAGED, x.rank, x.version, x.completed_ns, x, asker=x.rank, place=x.sequence)


def _check_places(steps: Sequence[Step]) -> None:
    """By the clock and by their numbers a rank's events have one order."""
    numbered = [step for step in steps if step.place != NONE]
    for before, after in pairwise(numbered):
        if after.place <= before.place:
            raise Difference(f"{after}, number {after.place}: expected after number {before.place}, which is {before}")


def _insert_begin(steps: list[Step], rank: int, trace: Trace) -> None:
    """Partners that begin sooner may average with a rank that has not begun: its first gradient is of its first model all the same."""
    start = next((one for one in trace.starts if one.rank == rank), None)
    place = 0
    for step in steps:
        if step.kind is not Kind.SERVED or not isinstance(step.record, ExchangeRecord) or step.record.iteration != NONE:
            break
        place += 1
    first = steps[place].record if place < len(steps) else Iteration(rank, NONE, trace.header.begin, 0, 0, None, None)
    steps.insert(place, Step(Kind.BEGUN, rank, trace.header.begin, 0 if start is None else start.started_ns, first))
