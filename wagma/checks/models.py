"""What becomes of each rank's model: its part of promise 3 where symbols tell how values were made, and wagma knows the algorithm.

From one iteration to the next a rank's gradient, its update, what it publishes and what it makes of the result are computed again, from
what is on record of the iteration before. Algorithms that others register may do things in another order: they are left out here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

from wagma.checks import graphs
from wagma.checks.evidence import Run, Violation, asked
from wagma.core.averaging import merge_rule, shares
from wagma.core.symbols import added, merged, paired, symbol, weighted_sum
from wagma.trace import ExchangeRecord, Iteration

#: (what an iteration publishes, None if nothing; the model that it may end with). More than one only where the record of the exchange
#: contradicts those of its senders, which promises 2 and 3 report.
_Made = tuple[str | None, set[str]]


def wholeness(run: Run) -> Iterator[Violation]:
    """Promise 3: a model is changed by the algorithm's gradients, updates and averages, in its order, and by nothing else."""
    if run.trace.header.digests != "symbolic" or run.built_in is None:
        return
    incomplete = _incomplete(run) if run.pairs_only else set()
    for rank in range(run.ranks):
        if not run.pairs_only:
            yield from _check_iterations(run, rank, _STEPS[run.built_in])
        elif rank not in incomplete:
            yield from _check_pairs(run, rank)


def _check_iterations(run: Run, rank: int, step: Callable[[Run, Iteration, str], _Made | None]) -> Iterator[Violation]:
    model = run.initial.get(rank)
    for number, a in enumerate(run.iterations[rank]):
        made = None if model is None or a.iteration != number else step(run, a, model)
        if made is None or a.skipped or a.model_digest is None:
            return  # what is missing is reported as missing
        published, models = made
        if published is not None and a.published_digest != published:
            text = f"published {a.published_digest}, expected {published}, made from its model and its gradient"
            yield run.violation(3, rank, a.iteration, text)
        if a.model_digest not in models:
            text = f"model {a.model_digest}, expected {min(models)}, made from its model, gradient and what it merged"
            yield run.violation(3, rank, a.iteration, text)
        model = a.model_digest


def _gradient(model: str, a: Iteration) -> str:
    return symbol("gradient", model, a.rank, a.iteration)


def _updated(model: str, gradient: str) -> str:
    return symbol("update", model, gradient)


def _alone(_: Run, a: Iteration, model: str) -> _Made | None:
    """ideal: no averages."""
    return None, {_updated(model, _gradient(model, a))}


def _synchronous(_: Run, a: Iteration, model: str) -> _Made | None:
    """allreduce_sgd: the mean of all gradients, then the update with it."""
    gradient = _gradient(model, a)
    return None if a.merged_digest is None else (gradient, {_updated(model, a.merged_digest)})


def _local(run: Run, a: Iteration, model: str) -> _Made | None:
    """local_sgd: the update, then now and then the mean of all models."""
    own = _updated(model, _gradient(model, a))
    if not run.schedule.is_sync(a.iteration):
        return None, {own}
    return None if a.merged_digest is None else (own, {a.merged_digest})


def _grouped(run: Run, a: Iteration, model: str) -> _Made | None:
    """wagma_sgd: the update, then the mean of all models, or the averaging rule of the core for fresh and late ranks."""
    own = _updated(model, _gradient(model, a))
    if a.fresh is None or (a.merged_digest is None) != (a.merged_version is None):
        return None
    if a.merged_digest is None or a.merged_version is None:
        return own, {own}  # late, and nothing that it had not merged
    if run.schedule.is_sync(a.iteration):
        return own, {a.merged_digest}
    length = len(run.schedule.group(a.rank, a.merged_version))
    return own, {merged(a.merged_digest, own, *merge_rule(int(a.fresh), length))}


def _eager(run: Run, a: Iteration, model: str) -> _Made | None:
    """eager_sgd: the gradient and what it took back; a sum of gradients over all ranks, then the update, or a sync of models."""
    gradient, before = _gradient(model, a), run.iteration.get((a.rank, a.iteration - 1))
    if a.merged_digest is None:
        return None
    if a.retracted_ns is not None and before is not None and not run.schedule.is_sync(before.iteration):
        if before.published_digest is None:
            return None
        gradient = added(before.published_digest, gradient)
    if run.schedule.is_sync(a.iteration):
        return _updated(model, gradient), {a.merged_digest}
    return gradient, {_updated(model, merged(a.merged_digest, "", 0, run.ranks))}


def _ring(run: Run, a: Iteration, model: str) -> _Made | None:
    """d_psgd: the mean of the own and the neighbours' models, then the update with the gradient of the model before."""
    totals = _totals(run, a)
    if totals is None:
        return None
    count = len(graphs.neighbours(run, a.rank, a.iteration)[1])
    gradient = _gradient(model, a)
    return model, {_updated(merged(total, model, 1, 1 + count), gradient) for total in totals}


def _pushed(run: Run, a: Iteration, model: str) -> _Made | None:
    """sgp: the update, then what was kept of it and the shares that came.

    Every rank of this graph receives as many shares as it sends: push-sum's weight is 1 before and after, exactly.
    """
    totals = _totals(run, a)
    if totals is None:
        return None
    own = _updated(model, _gradient(model, a))
    count = len(graphs.neighbours(run, a.rank, a.iteration)[1])
    given, kept = shares(count)
    return own, {merged(total, own, kept, kept + sum([given] * count)) for total in totals}


def _totals(run: Run, a: Iteration) -> set[str | None] | None:
    """The weighted sum of what neighbours sent: as the rank has it on record, and as its senders have. None if one has no record."""
    _, sources, share = graphs.neighbours(run, a.rank, a.iteration)
    x = run.exchange.get(("neighbours", a.rank, a.iteration))
    sent = [run.exchange.get(("neighbours", peer, a.iteration)) for peer in sources]
    digests = [y.sent_digest for y in sent if y is not None and y.sent_digest is not None]
    if x is None or len(digests) < len(sources):
        return None
    return {x.result_digest, weighted_sum(digests, [share] * len(digests))}


_STEPS: dict[str, Callable[[Run, Iteration, str], _Made | None]] = {
    "ideal": _alone,
    "allreduce_sgd": _synchronous,
    "local_sgd": _local,
    "wagma_sgd": _grouped,
    "eager_sgd": _eager,
    "d_psgd": _ring,
    "sgp": _pushed,
}


# -- pairs -----------------------------------------------------------------------------------------------------------------


def _incomplete(run: Run) -> set[int]:
    """The ranks of which a side of some pair is missing: their history has gaps."""
    ranks = set()
    for records in run.exchanges.values():
        for x in records:
            other = ("active" if x.role == "passive" else "passive", *asked(x))
            if other not in run.exchange:
                ranks |= set(x.sources)
    for rank, versions in graphs.unasked(run).items():
        ranks |= {rank, *(peer for v in versions if (peer := graphs.partner(run, rank, v)) is not None)}
    return ranks


#: From when a rank may have had which models, and how many updates had come by then.
_State = tuple[int, set[str], int]


def _check_pairs(run: Run, rank: int) -> Iterator[Violation]:
    """One update in each iteration, when its compute has ended, with the gradient of the model that it began with; averages anywhere."""
    if (initial := run.initial.get(rank)) is None:
        return
    models: set[str] = {initial}
    states: list[_State] = [(run.started_ns.get(rank, 0), models, 0)]
    records, done = run.exchanges[rank], 0
    for number, a in enumerate(run.iterations[rank]):
        until = done
        while until < len(records) and records[until].sequence < a.sequence:
            until += 1
        if a.iteration != number or a.model_digest is None or a.skipped:
            return
        between = records[done:until]
        ways = [way for place in _places(a, between) if (way := _history(run, a, models, between, place)) is not None]
        models = {model for way in ways for model in way[-1][1]}
        if a.model_digest not in models:
            text = f"model {a.model_digest}, expected {min(models, default='another one')}, made by one update and its averages"
            yield run.violation(3, rank, a.iteration, text)
            return
        states += [state for way in ways for state in way]
        models, done = {a.model_digest}, until
    for x in records[done:]:
        models = _averaged(x)
        states.append((x.completed_ns, models, len(run.iterations[rank])))
    yield from _check_asked(run, rank, sorted(states, key=lambda state: state[0]))


def _places(a: Iteration, between: list[ExchangeRecord]) -> range:
    """After how many of an iteration's averages the update may have come: at equal times, before or after."""
    return range(sum(x.completed_ns < a.arrival_ns for x in between), sum(x.completed_ns <= a.arrival_ns for x in between) + 1)


def _history(run: Run, a: Iteration, models: set[str], between: list[ExchangeRecord], place: int) -> list[_State] | None:
    """The models that a rank has in an iteration if its update comes after `place` of its averages; None if the records do not fit.

    A rank that was held before it computed had its gradient from a model of later on; how long that took is among its delays.
    """
    bases = set(models)
    states: list[_State] = []
    computing = a.arrival_ns + run.early_ns(a) - a.computed_ns
    for number, x in enumerate([*between, None]):
        if number == place:
            models = {_updated(model, _gradient(base, a)) for model in models for base in bases}
            states.append((a.arrival_ns, models, a.iteration + 1))
        if x is None:
            break
        if x.own_digest is not None and x.own_digest not in models:
            return None
        models = _averaged(x)
        states.append((x.completed_ns, models, a.iteration + (number >= place)))
        if number < place and a.delayed_ns and x.completed_ns <= computing:
            bases |= models
    return states


def _averaged(x: ExchangeRecord) -> set[str]:
    """What an average gave: as it is on record, and as what went into it says."""
    known = {x.result_digest}
    if x.own_digest is not None and x.sent_digest is not None and len(x.received_digests) == 1:
        known.add(paired(x.own_digest, x.received_digests[0], x.sent_digest))
    return {model for model in known if model is not None}


def _check_asked(run: Run, rank: int, states: list[_State]) -> Iterator[Violation]:
    """Who asks for an average sends the model that it has then; with local steps, the one that it has just updated."""
    answered = run.started_ns.get(rank, 0)
    times = [since for since, _, _ in states]
    for x in (x for x in run.exchanges[rank] if x.role == "active"):
        answered, after = x.completed_ns, answered
        if x.sent_digest is None or x.started_ns < after:
            continue  # promises 3 and 1 have it
        earlier = bisect_left(times, x.started_ns)
        first = bisect_left(times, times[earlier - 1]) if earlier else 0
        held = states[first : bisect_right(times, x.started_ns)]
        had = [models for _, models, updates in held if _may_ask(run, x, updates)]
        if not any(x.sent_digest in models for models in had):
            expected = min((model for models in had for model in models), default="another one")
            text = f"sent {x.sent_digest}, expected {expected}, its model"
            yield run.violation(3, rank, x.version, text)


def _may_ask(run: Run, x: ExchangeRecord, updates: int) -> bool:
    return run.built_in != "swarm_sgd" or updates == x.version + 1
