"""The promises for what ranks send each other without a collective: exchanges with neighbours, and averaging in pairs.

Each function is the part that `wagma.validate` adds to the promise of its number. A missing record is the business of promise 1 alone,
here too; who lacks a partner's record says nothing of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import pairwise

from wagma.checks.evidence import Run, Violation, asked
from wagma.core.symbols import paired, weighted_sum
from wagma.timing.network import Network
from wagma.trace import ExchangeRecord

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
    for x in _all(run):
        if x.role == "neighbours":
            for peer, stamp in zip(x.sources, x.stamps, strict=False):
                if not stamp == x.version == x.iteration:
                    text = f"a model of iteration {stamp} from rank {peer} in iteration {x.iteration}, expected {x.version}"
                    yield run.violation(5, x.rank, x.version, text)
            continue
        if (defect := _begun_defect(run, x.rank, x.iteration, x.completed_ns)) is not None:
            yield run.violation(5, x.rank, x.version, f"in {defect}")
        other = _other_side(run, x, x.sources[0]) if x.sources and x.stamps else None
        if other is None:
            continue
        if x.role == "active" and x.stamps[0] != other.iteration:
            text = f"stamp {x.stamps[0]}, expected {other.iteration}, the iteration of rank {other.rank} when it answered"
            yield run.violation(5, x.rank, x.version, text)
        elif x.role == "passive" and (defect := _begun_defect(run, other.rank, x.stamps[0], other.started_ns)) is not None:
            yield run.violation(5, x.rank, x.version, f"a stamp of rank {other.rank} in {defect}")


def _begun_defect(run: Run, rank: int, iteration: int, at_ns: int) -> str | None:
    """What is wrong with the claim that `rank` had begun `iteration`, and no later one, at a time of its own clock."""
    ends = [a.return_ns for a in run.iterations[rank]]
    if [a.iteration for a in run.iterations[rank]] != list(range(len(ends))):
        return None  # promise 1 has it
    last = len(ends) - 1
    first, latest = min(bisect_left(ends, at_ns), last), min(bisect_right(ends, at_ns), last)
    if first <= iteration <= latest:
        return None
    return f"iteration {iteration} at {at_ns} ns, expected {first if first == latest else f'{first} to {latest}'}"


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
    if run.trace.header.clock == "virtual" and not run.execution and _is_plain(run.trace.scenario.network):
        yield from _check_waits(run)


def _is_plain(network: Network) -> bool:
    """Whether messages cost what LogGP says, and nothing on top but overlap and reductions."""
    base = Network()
    plain = {name: getattr(base, name) for name in _PLAIN}
    return replace(network, **plain) == base


_PLAIN = (
    "latency_ns", "overhead_ns", "gap_ns", "gap_per_byte_ns", "activation_ns", "group_allreduce", "allreduce", "overlap",
    "reduce_ns_per_byte",
)  # fmt: skip


def _check_waits(run: Run) -> Iterator[Violation]:
    """On one clock: when the messages of each exchange must have come, from when they were sent and the senders' interfaces."""
    network = run.trace.scenario.network
    came, whole = _arrivals(run), _whole(run) if network.overlap else {}
    flight, _ = _message_ns(run)
    overhead, adding = round(network.overhead_ns), network.adding_ns(run.trace.scenario.model_bytes)
    for x in _all(run):
        times = [came.get((peer, x.rank, _SENT_BY[x.role], x.version)) for peer in x.sources]
        known = [at for at in times if at is not None]
        if len(known) < len(times):
            continue
        begun = [x.started_ns] if x.role != "passive" else []  # whoever is asked begins when it is asked
        earliest = max([*begun, *known], default=x.started_ns)
        own = [came.get((x.rank, peer, x.role, x.version)) for peer in x.to if x.role == "neighbours"]
        # A sender's own part of a message may last longer than what it waits for.
        latest = max([earliest, *(at - flight + overhead for at in own if at is not None)])
        if x.role == "neighbours":
            latest = max([latest, *(whole.get((peer, x.version), 0) for peer in x.sources)]) + len(x.sources) * adding
        if x.completed_ns > latest:
            text = f"waited until {x.completed_ns} ns, expected {latest} ns, when the models of ranks {x.sources} had come"
            yield run.violation(7, x.rank, x.version, text)
        elif x.completed_ns < earliest:
            text = (
                f"completed at {x.completed_ns} ns, expected not before the models of ranks {x.sources} came, at {earliest} ns"
            )
            yield run.violation(7, x.rank, x.version, text)


def _whole(run: Run) -> dict[tuple[int, int], int]:
    """By rank and iteration, when a value that travels while it is computed is whole: with a global clock, those of all ranks."""
    ends: dict[tuple[int, int], int] = {}
    latest: defaultdict[int, int] = defaultdict(int)
    for start in run.trace.starts:
        began = start.started_ns
        for a in run.iterations[start.rank]:
            ends[start.rank, a.iteration] = end = began + a.computed_ns + a.delayed_ns
            latest[a.iteration] = max(latest[a.iteration], end)
            began = a.return_ns
    if run.trace.scenario.algorithm_settings(run.trace.header.algorithm).global_clock:
        return {key: latest[key[1]] for key in ends}
    return ends


#: Role of a receiver -> of the one whose model it gets.
_SENT_BY = {"neighbours": "neighbours", "active": "passive", "passive": "active"}


def _message_ns(run: Run) -> tuple[int, int]:
    """(from send to received, time that the sender's interface is taken) of a model."""
    scenario = run.trace.scenario
    return scenario.network.durations(scenario.model_bytes)


def _arrivals(run: Run) -> dict[tuple[int, int, str, int], int]:
    """When each model reached its receiver, by (sender, receiver, role of the sender, version)."""
    flight, taken = _message_ns(run)
    came: dict[tuple[int, int, str, int], int] = {}
    for rank, records in run.exchanges.items():
        # At equal times a rank's own step precedes what the network brings.
        free = 0
        known = (x for x in records if run.exchange[x.role, *asked(x)] is x)  # of duplicates the first
        for x in sorted(known, key=lambda x: (x.started_ns, x.role == "passive", x.sequence)):
            for to in x.to:
                leave = max(x.started_ns, free)
                free = leave + taken
                came[rank, to, x.role, x.version] = leave + flight
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
