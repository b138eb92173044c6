"""Who has to exchange models with whom in the algorithms that wagma comes with, recomputed from the scenario's settings alone.

The parts that this has in promises 1 and 2. Of algorithms that others register nobody knows the graph: they are left out here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from wagma.checks.evidence import Run, Violation
from wagma.core.averaging import shares
from wagma.core.graphs import active_partner, any_partner, in_neighbours, is_active, out_neighbours, passive_partner, ring
from wagma.trace import ExchangeRecord

#: (whom a rank sends to, who sends to it in the order of adding up, the share of a model that each receiver gets).
Neighbours = tuple[tuple[int, ...], tuple[int, ...], float]


def neighbours(run: Run, rank: int, version: int) -> Neighbours:
    """A rank's neighbours in an iteration of d_psgd or sgp."""
    if run.built_in == "d_psgd":
        both = ring(run.ranks, rank)
        return both, both, 1
    to = out_neighbours(run.ranks, run.settings.out_neighbours, version, rank)
    sources = in_neighbours(run.ranks, run.settings.out_neighbours, version, rank)
    return to, sources, shares(len(to))[0]


def partner(run: Run, rank: int, version: int) -> int | None:
    """Whom a rank asks for an average in an iteration of a built-in algorithm of pairs; None: nobody."""
    draw = any_partner
    if run.built_in == "swarm_sgd":
        if (version + 1) % run.settings.local_steps:
            return None
    elif not is_active(rank) and not run.settings.all_ask:
        return None
    else:
        draw = passive_partner if is_active(rank) else active_partner
    return draw(run.ranks, rank, version, run.settings.seed)


def agreement(run: Run, x: ExchangeRecord) -> Iterator[Violation]:
    """Promise 2: an exchange is one with the peers that the algorithm has in this iteration, and models come with its weights."""
    if run.built_in is None:
        return
    if run.neighbourly and x.role == "neighbours" and (x.rank, x.version) in run.iteration:
        to, sources, share = neighbours(run, x.rank, x.version)
        if (tuple(x.to), tuple(x.sources)) != (to, sources):
            text = f"to = {x.to}, sources = {x.sources}, expected {list(to)} and {list(sources)}, its neighbours"
            yield run.violation(2, x.rank, x.version, text)
        elif x.shares != [share] * len(sources):
            yield run.violation(2, x.rank, x.version, f"shares {x.shares}, expected {share} of each source")
    elif run.pairs_only and x.role == "active" and x.sources != [wanted := partner(run, x.rank, x.version)]:
        text = f"asked rank {x.sources[0]}, expected {'nobody' if wanted is None else f'rank {wanted}'}"
        yield run.violation(2, x.rank, x.version, text)


def exactly_once(run: Run) -> Iterator[Violation]:
    """Promise 1: whoever has to ask for an average does so."""
    for rank, versions in sorted(unasked(run).items()):
        wanted = partner(run, rank, versions[0])
        yield run.violation(1, rank, versions[0], f"asked for no average, expected one with rank {wanted}")


def unasked(run: Run) -> dict[int, list[int]]:
    """By rank the versions in which it should have asked for an average and has not.

    The second activity of AD-PSGD ends with the first, whichever iteration it has come to: what is missing at the end is in order if
    the averaging before it lasted until then.
    """
    missing: defaultdict[int, list[int]] = defaultdict(list)
    for rank in range(run.ranks if run.pairs_only and run.built_in is not None else 0):
        asked = {x.version for x in run.exchanges[rank] if x.role == "active"}
        wanted = [a.iteration for a in run.iterations[rank] if partner(run, rank, a.iteration) is not None]
        absent = [version for version in wanted if version not in asked]
        if absent and not (absent == wanted[-len(absent) :] and _ended_by_then(run, rank)):
            missing[rank] = absent
    return dict(missing)


def _ended_by_then(run: Run, rank: int) -> bool:
    """Whether the last averaging of a rank's second activity lasted at least as long as its first activity."""
    if run.built_in != "ad_psgd" or run.settings.await_averaging:
        return False
    free = max((x.completed_ns for x in run.exchanges[rank] if x.role == "active"), default=run.started_ns.get(rank, 0))
    return free >= run.iterations[rank][-1].return_ns
