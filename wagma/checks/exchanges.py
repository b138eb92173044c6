"""The promises for what ranks send each other without a collective: exchanges with neighbours, and averaging in pairs.

Each function is the part that `wagma.validate` adds to the promise of its number. A missing record is the business of promise 1 alone,
here too; who lacks a partner's record says nothing of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import fields
from itertools import groupby, pairwise

from wagma.checks import graphs
from wagma.checks.evidence import Run, Violation, asked
from wagma.checks.times import whole_ns
from wagma.core.symbols import paired, symbol, weighted_sum
from wagma.timing.network import Network
from wagma.trace import ExchangeRecord, Trace

_Outcome = tuple[int, int, tuple[Hashable, ...], str]


def exactly_once(run: Run) -> Iterator[Violation]:
    """Promise 1: one exchange with neighbours in every iteration, in order; both sides of every pair, each once."""
    for rank, records in run.exchanges.items():
        for role in ("neighbours", "active"):
            for before, after in pairwise([x for x in records if x.role == role]):
                if after.version <= before.version:
                    text = f"exchanged next after version {before.version}, expected each version once, in order"
                    yield run.violation(1, rank, after.version, text)
                elif after.started_ns < before.completed_ns:
                    text = f"started at {after.started_ns} ns, expected not before the end of the one before, {before.completed_ns} ns"
                    yield run.violation(1, rank, after.version, text)
    for rank in range(run.ranks if run.neighbourly else 0):
        done = {x.version for x in run.exchanges[rank] if x.role == "neighbours"}
        for version in sorted({a.iteration for a in run.iterations[rank]} ^ done):
            expected = "one in every iteration" if version not in done else "none outside of the rank's iterations"
            yield run.violation(
                1, rank, version, f"{'an' if version in done else 'no'} exchange with neighbours, expected {expected}"
            )
    yield from _check_pairs(run)
    yield from graphs.exactly_once(run)


def _check_pairs(run: Run) -> Iterator[Violation]:
    counts = Counter((x.role, *asked(x)) for records in run.exchanges.values() for x in records if x.role != "neighbours")
    for (role, asker, version), count in sorted(counts.items()):
        other = "active" if role == "passive" else "passive"
        if count > 1:
            yield run.violation(1, asker, version, f"{count} {role} sides of its pair, expected one")
        if (other, asker, version) not in counts:
            yield run.violation(1, asker, version, f"no {other} side of its pair, expected one")


def agreement(run: Run) -> Iterator[Violation]:
    """Promise 2: whoever sends is expected, and nobody else; sums and averages are made from what came, with its weights."""
    for x in _all(run):
        if (text := _peers_defect(run, x)) is not None:
            yield run.violation(2, x.rank, x.version, text)
            continue
        yield from graphs.agreement(run, x)
        for peer in x.to if x.role == "neighbours" else x.to[:1]:
            other = _other_side(run, x, peer)
            if other is not None and x.rank not in other.sources:
                yield run.violation(2, x.rank, x.version, f"sent to rank {peer}, expected one that has it among its sources")
        for peer in x.sources:
            other = _other_side(run, x, peer)
            if other is not None and x.rank not in other.to:
                yield run.violation(2, x.rank, x.version, f"received from rank {peer}, expected one that sends to it")
        wanted = _recomputed(run, x)
        if wanted is not None and x.result_digest not in (wanted, None):
            yield run.violation(2, x.rank, x.version, f"result {x.result_digest}, expected {wanted} of what it received")


def _all(run: Run) -> Iterator[ExchangeRecord]:
    return (x for records in run.exchanges.values() for x in records)


def _peers_defect(run: Run, x: ExchangeRecord) -> str | None:
    """What is wrong with the ranks that a record names."""
    for name, peers in (("to", x.to), ("sources", x.sources)):
        if len(set(peers)) < len(peers) or not set(peers) <= set(range(run.ranks)) - {x.rank}:
            return f"{name} = {peers}, expected distinct ranks from 0 to {run.ranks - 1} other than itself"
    if len(x.stamps) != len(x.sources) or len(x.shares) != (len(x.sources) if x.role == "neighbours" else 0):
        return f"{len(x.stamps)} stamps and {len(x.shares)} shares for the sources {x.sources}, expected one for each"
    if x.role != "neighbours" and not (len(x.to) == 1 and x.to == x.sources):
        return f"to = {x.to}, sources = {x.sources}, expected the one partner of a pair"
    return None


def _other_side(run: Run, x: ExchangeRecord, peer: int) -> ExchangeRecord | None:
    """The peer's record of the same exchange."""
    match x.role:
        case "neighbours":
            return run.exchange.get(("neighbours", peer, x.version))
        case "active":
            other = run.exchange.get(("passive", x.rank, x.version))
        case _:
            other = run.exchange.get(("active", peer, x.version))
    return other


def _recomputed(run: Run, x: ExchangeRecord) -> str | None:
    """The symbol that a result must have; None where it tells nothing."""
    received = x.received_digests
    if run.trace.header.digests != "symbolic" or len(received) != len(x.sources) or not received:
        return None
    if x.role == "neighbours":
        return weighted_sum(received, x.shares)
    return None if x.own_digest is None or x.sent_digest is None else paired(x.own_digest, received[0], x.sent_digest)


def wholeness(run: Run) -> Iterator[Violation]:
    """Promise 3: what came is what its source sent; what a rank sends is its complete model as it then was."""
    if not run.digests:
        return
    for x in _all(run):
        needed = ["sent_digest", *(["own_digest"] if x.role != "neighbours" else []), *(["result_digest"] if x.sources else [])]
        for field in needed:
            if getattr(x, field) is None:
                yield run.violation(3, x.rank, x.version, f"{field} = None, expected a digest")
        if len(x.received_digests) != len(x.sources):
            text = f"{len(x.received_digests)} received digests, expected one of each of the sources {x.sources}"
            yield run.violation(3, x.rank, x.version, text)
            continue
        for peer, digest in zip(x.sources, x.received_digests, strict=True):
            other = _other_side(run, x, peer)
            if other is not None and other.sent_digest not in (digest, None):
                text = f"received {digest} from rank {peer}, expected {other.sent_digest}, which that one sent"
                yield run.violation(3, x.rank, x.version, text)
        yield from _check_sent(run, x)
    for rank in run.exchanges if run.pairs_only else ():
        yield from _check_history(run, rank)


def _check_sent(run: Run, x: ExchangeRecord) -> Iterator[Violation]:
    """What is sent is the published model of the iteration, or, by who is asked, the model as it stands."""
    wanted = x.own_digest if x.role == "passive" else None
    if x.role == "neighbours":
        a = run.iteration.get((x.rank, x.version))
        wanted = None if a is None else a.published_digest
    if wanted is not None and x.sent_digest not in (wanted, None):
        yield run.violation(3, x.rank, x.version, f"sent {x.sent_digest}, expected {wanted}, its model")


def _check_history(run: Run, rank: int) -> Iterator[Violation]:
    """From one record of a rank to the next its model stays what it is, unless an update comes between them."""
    updates = sorted(a.arrival_ns for a in run.iterations[rank])
    states = [(a.sequence, a.iteration + 1, a.model_digest, a.model_digest, a.iteration) for a in run.iterations[rank]]
    for x in run.exchanges[rank]:
        done = bisect_left(updates, x.completed_ns)
        certain = done == bisect_right(updates, x.completed_ns)
        states.append((x.sequence, done if certain else -1, x.own_digest, x.result_digest, x.version))
    known, since = run.initial.get(rank), 0  # the model as it was left, and after how many updates; -1 where nobody can tell
    for _, done, before, after, version in sorted(states, key=lambda state: state[0]):
        if known is not None and before is not None and done == since >= 0 and before != known:
            yield run.violation(3, rank, version, f"model {before}, expected {known}, as no update came since")
        known, since = after, done


def staleness(run: Run) -> Iterator[Violation]:
    """Promise 5: neighbours get models of their own iteration; of pairs, which have no bound, the stamps are what the ranks had begun."""
    begins = {rank: _begins(run, rank) for rank in range(run.ranks if run.exchange else 0)}
    for x in _all(run):
        if x.role == "neighbours":
            for peer, stamp in zip(x.sources, x.stamps, strict=False):
                if not stamp == x.version == x.iteration:
                    text = f"a model of iteration {stamp} from rank {peer} in iteration {x.iteration}, expected {x.version}"
                    yield run.violation(5, x.rank, x.version, text)
            continue
        if (defect := _begun_defect(begins[x.rank], x.iteration, x.completed_ns)) is not None:
            yield run.violation(5, x.rank, x.version, f"in {defect}")
        other = _other_side(run, x, x.sources[0]) if x.sources and x.stamps else None
        if other is None:
            continue
        if x.role == "active" and x.stamps[0] != other.iteration:
            text = f"stamp {x.stamps[0]}, expected {other.iteration}, the iteration of rank {other.rank} when it answered"
            yield run.violation(5, x.rank, x.version, text)
        elif x.role == "passive" and (defect := _begun_defect(begins[other.rank], x.stamps[0], other.started_ns)) is not None:
            yield run.violation(5, x.rank, x.version, f"a stamp of rank {other.rank} in {defect}")


#: When each iteration of a rank began, at the earliest and at the latest.
_Begins = tuple[list[int], list[int]]


def _begins(run: Run, rank: int) -> _Begins | None:
    """An iteration begins when the one before returns, unless the rank is held first, which counts as delay; None: some are missing.

    A real rank's own loop decides which one is the last: it has begun a further one until it closes.
    """
    iterations = run.iterations[rank]
    if not iterations or [a.iteration for a in iterations] != list(range(len(iterations))):
        return None
    earliest = [run.started_ns.get(rank, 0), *(a.return_ns for a in iterations[:-1])]
    held = [a.arrival_ns - a.computed_ns if a.delayed_ns else began for a, began in zip(iterations, earliest, strict=True)]
    latest = list(map(max, earliest, held))
    further = [iterations[-1].return_ns] if run.trace.header.world == "real" else []
    return earliest + further, latest + further


def _begun_defect(begins: _Begins | None, iteration: int, at_ns: int) -> str | None:
    """What is wrong with the claim that a rank had begun `iteration`, and no later one, at a time of its own clock."""
    if begins is None:
        return None  # promise 1 has it
    earliest, latest = begins
    first, last = bisect_left(latest, at_ns) - 1, bisect_right(earliest, at_ns) - 1
    if first <= iteration <= last:
        return None
    return f"iteration {iteration} at {at_ns} ns, expected {first if first == last else f'{first} to {last}'}"


def progress(run: Run) -> Iterator[Violation]:
    """Promise 7: a rank waits for its sources alone, and no longer than their messages take; whoever is asked answers at once."""
    for x in _all(run):
        if x.completed_ns < x.started_ns:
            text = f"completed at {x.completed_ns} ns, expected not before its start at {x.started_ns} ns"
            yield run.violation(7, x.rank, x.version, text)
        elif x.role == "passive" and x.completed_ns != x.started_ns:
            text = f"answered at {x.completed_ns} ns, expected when it was asked, at {x.started_ns} ns"
            yield run.violation(7, x.rank, x.version, text)
        a = run.iteration.get((x.rank, x.version))
        if x.role == "neighbours" and a is not None and not a.arrival_ns <= x.started_ns <= x.completed_ns <= a.return_ns:
            text = f"exchanged from {x.started_ns} to {x.completed_ns} ns, expected within its wait, {a.arrival_ns} to {a.return_ns} ns"
            yield run.violation(7, x.rank, x.version, text)
    if run.exchange and not run.execution and not_recomputed(run.trace) is None:
        yield from _check_waits(run)


def not_recomputed(trace: Trace) -> str | None:
    """Why the waits of a trace's exchanges are not recomputed; None: they are."""
    if trace.header.clock != "virtual":
        return "times of several clocks"
    network, base = trace.scenario.network, Network()
    names = [field.name for field in fields(Network) if field.name not in _PLAIN]
    changed = [f"network.{name}" for name in names if getattr(network, name) != getattr(base, name)]
    return ", ".join(changed) or None


#: With these, messages cost what LogGP says, and nothing comes on top but overlap and reductions.
_PLAIN = (
    "latency_ns", "overhead_ns", "gap_ns", "gap_per_byte_ns", "activation_ns", "group_allreduce", "allreduce", "overlap",
    "reduce_ns_per_byte",
)  # fmt: skip


def _check_waits(run: Run) -> Iterator[Violation]:
    """On one clock: when the messages of each exchange must have come, from when they were sent and the senders' interfaces."""
    network = run.trace.scenario.network
    # What d_psgd sends is the model from before the compute.
    came, whole = _arrivals(run), whole_ns(run) if network.overlap and run.built_in != "d_psgd" else {}
    made = {key: _is_made(run, x) for key, x in run.exchange.items()} if network.overlap else {}
    flight, _ = _message_ns(run)
    overhead, adding = round(network.overhead_ns), network.adding_ns(run.trace.scenario.model_bytes)
    for x in _all(run):
        times = [came.get((peer, x.rank, _SENT_BY[x.role], x.version)) for peer in x.sources]
        known = [at for at in times if at is not None]
        if len(known) < len(times):
            continue
        begun = [x.started_ns] if x.role != "passive" else []  # whoever is asked begins when it is asked
        earliest = max([*begun, *(first for first, _ in known)], default=x.started_ns)
        own = [came.get((x.rank, peer, x.role, x.version)) for peer in x.to if x.role == "neighbours"]
        # A sender's own part of a message may last longer than what it waits for.
        busy = [at[1] - flight + overhead for at in own if at is not None]
        latest = max([*begun, *(last for _, last in known), *busy], default=x.started_ns)
        if x.role == "neighbours":
            ends = [(whole.get((peer, x.version), 0), made.get((x.role, peer, x.version))) for peer in x.sources]
            adding_up = len(x.sources) * adding
            latest = max([latest, *(end for end, new in ends if new is not False)]) + adding_up
            earliest = max([earliest, *(end for end, new in ends if new)]) + adding_up
        if x.completed_ns > latest:
            text = f"waited until {x.completed_ns} ns, expected {latest} ns, when the models of ranks {x.sources} had come"
            yield run.violation(7, x.rank, x.version, text)
        elif x.completed_ns < earliest:
            text = (
                f"completed at {x.completed_ns} ns, expected not before the models of ranks {x.sources} came, at {earliest} ns"
            )
            yield run.violation(7, x.rank, x.version, text)


def _is_made(run: Run, x: ExchangeRecord) -> bool | None:
    """Whether what was sent has the update of its iteration in it; False: it is the model from before; None: nobody can tell."""
    before = run.initial.get(x.rank)
    if (previous := run.iteration.get((x.rank, x.version - 1))) is not None:
        before = previous.model_digest
    if run.trace.header.digests != "symbolic" or None in (before, x.sent_digest):
        return None
    if x.sent_digest == before:
        return False
    updated = symbol("update", before, symbol("gradient", before, x.rank, x.version))
    return True if x.sent_digest == updated else None


#: Role of a receiver -> of the one whose model it gets.
_SENT_BY = {"neighbours": "neighbours", "active": "passive", "passive": "active"}


def _message_ns(run: Run) -> tuple[int, int]:
    """(from send to received, time that the sender's interface is taken) of a model."""
    scenario = run.trace.scenario
    return scenario.network.durations(scenario.model_bytes)


def _arrivals(run: Run) -> dict[tuple[int, int, str, int], tuple[int, int]]:
    """When each model reached its receiver, at the earliest and at the latest, by (sender, receiver, role of the sender, version).

    Both are the same unless the sender asked and was asked in one nanosecond: in which order its messages left then is not on record,
    and either is legal.
    """
    flight, taken = _message_ns(run)
    came: dict[tuple[int, int, str, int], tuple[int, int]] = {}
    for rank, records in run.exchanges.items():
        free = 0
        known = [x for x in records if run.exchange[x.role, *asked(x)] is x]  # of duplicates the first
        for started, together in groupby(sorted(known, key=lambda x: x.started_ns), key=lambda x: x.started_ns):
            tied = list(together)  # those of one role in the order of their records
            free = max(free, started)
            for x in tied:
                before = sum(len(y.to) for y in tied if y.role == x.role and y.sequence < x.sequence)
                others = sum(len(y.to) for y in tied if y.role != x.role)
                for place, to in enumerate(x.to, before):
                    first = free + place * taken + flight
                    came[rank, to, x.role, x.version] = first, first + others * taken
            free += taken * sum(len(x.to) for x in tied)
    return came


def outcomes(run: Run) -> Iterator[_Outcome]:
    """For promise 8, every result: rank, version, what it was made from, the result."""
    for x in _all(run):
        made_from: tuple[Hashable, ...]
        if x.role == "neighbours":
            made_from = ("weighted sum", *x.received_digests, *x.shares)
        else:
            made_from = ("pair", x.own_digest, x.sent_digest, *x.received_digests)
        if x.result_digest is not None and len(x.received_digests) == len(x.sources) and None not in made_from:
            yield x.rank, x.version, made_from, x.result_digest
