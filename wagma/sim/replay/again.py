"""A recorded simulation, held against the same simulation made again: there the network model decides, and decides the same once more."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from wagma.errors import InputError
from wagma.sim.replay.compare import Comparison, Difference, Record, check_starts, exchange_key, named
from wagma.sim.replay.run import Replayed
from wagma.trace import ExchangeRecord, Iteration, Trace

#: Of the header: all but what the simulation is made from.
OF_HEADER = (
    "world", "engine", "value", "clock", "digests", "begin", "score", "score_name", "score_direction", "own_score",
)  # fmt: skip
OF_START = ("started_ns", "host", "initial_digest", "final_digest", "environment")


def check_simulated(trace: Trace) -> None:
    """Raise InputError unless the recording of a simulation has something to compare."""
    if trace.header.digests == "off":
        raise InputError(
            f'{trace.source}: digests = "off": must be "content" or "symbolic", or there are no weights to compare'
        )
    check_starts(trace)


def compare_simulated(recorded: Trace, again: Trace) -> Replayed:
    """Every field of every record, times included. Raises Difference at the first one, by the virtual clock, that is not the same."""
    comparison = Comparison()
    # From before final digests were recorded: iterations have all models.
    older = all(start.final_digest is None for start in recorded.starts)
    for start, other in zip(sorted(recorded.starts, key=lambda start: start.rank), again.starts, strict=True):
        for name in OF_START:
            if not (older and name == "final_digest"):
                comparison.value(start.rank, name, getattr(start, name), getattr(other, name))
    old, new = _records(recorded), _records(again)
    for key in sorted(old.keys() | new.keys(), key=lambda key: (_at(old.get(key) or new[key]), key)):
        if key not in old or key not in new:
            what = "recorded, and the simulation made again has no such record" if key in old else "no record of it"
            raise Difference(f"{named(old.get(key) or new[key])}: {what}")
        comparison.check(old[key], new[key], (field.name for field in fields(old[key])))
    for name in OF_HEADER:
        comparison.value(None, name, getattr(recorded.header, name), getattr(again.header, name))
    comparison.value(None, "evaluations", recorded.evaluations, again.evaluations)
    ranks = range(recorded.scenario.ranks)
    weights = [start.final_digest or "" for start in again.starts]
    return Replayed(again, [comparison.digests.get(rank, 0) for rank in ranks], weights)


def _records(trace: Trace) -> dict[tuple[Any, ...], Record]:
    found: dict[tuple[Any, ...], Record] = {}
    every: list[Record] = [*trace.iterations, *trace.executions, *trace.exchanges]
    for record in every:
        number = record.iteration if isinstance(record, Iteration) else record.version
        own = exchange_key(record) if isinstance(record, ExchangeRecord) else ()
        if found.setdefault((type(record).__name__, record.rank, number, *own), record) is not record:
            raise Difference(f"{named(record)}: recorded twice")
    return found


def _at(record: Record) -> int:
    return record.return_ns if isinstance(record, Iteration) else record.completed_ns
