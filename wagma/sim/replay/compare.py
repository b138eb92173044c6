"""What a replay recomputes, held against what was recorded: the first difference ends it, and is named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wagma.errors import InputError, WagmaError
from wagma.trace import ExchangeRecord, Execution, Iteration, Trace

Record = Execution | Iteration | ExchangeRecord
T = TypeVar("T", Execution, Iteration, ExchangeRecord)

#: What a decision machine says when it starts a version, and what comes of that.
AT_START = ("group", "activator", "own_stamp", "oldest_stamp", "contribution_digest")
AT_END = ("sum_digest", "sequence")
#: Of an iteration; `retracted_ns` as far as something was taken back or was not.
OF_ITERATION = (
    "published_digest", "fresh", "merged_version", "merged_digest", "model_digest", "work", "sequence", "updated_sequence", "skipped",
)  # fmt: skip
OF_EXCHANGE = (
    "to", "sources", "iteration", "stamps", "shares", "sent_digest", "received_digests", "own_digest", "result_digest", "sequence",
    "sent_sequence",
)  # fmt: skip
#: What only the clock knows: a replay takes it from the recording.
TIMES: dict[type, tuple[str, ...]] = {
    Execution: ("activated_ns", "started_ns", "completed_ns", "read_ns"),
    Iteration: ("arrival_ns", "return_ns", "computed_ns", "delayed_ns", "retracted_ns"),
    ExchangeRecord: ("started_ns", "completed_ns"),
}


class Difference(WagmaError):
    """The replay is not what was recorded: one line, rank, iteration or version, field, recorded and recomputed value."""


def named(record: Record) -> str:
    """rank 2, version 7."""
    if isinstance(record, Iteration):
        return f"rank {record.rank}, iteration {record.iteration}"
    role = f" ({record.role})" if isinstance(record, ExchangeRecord) else ""
    return f"rank {record.rank}, version {record.version}{role}"


@dataclass(slots=True)
class Comparison:
    """Counts what was compared. digests: by rank."""

    digests: dict[int, int] = field(default_factory=dict)

    def check(self, recorded: Record, recomputed: Record, fields: Iterable[str]) -> None:
        """Raise Difference unless these fields are the same."""
        for name in fields:
            old, new = getattr(recorded, name), getattr(recomputed, name)
            if old != new:
                raise Difference(f"{named(recorded)}: {name}: recorded {_text(old)}, recomputed {_text(new)}")
            if "digest" in name:
                self.count(recorded.rank, old)

    def value(self, rank: int | None, what: str, recorded: Any, recomputed: Any) -> None:
        """The same of a value that is in no record of an iteration or a version."""
        if recorded != recomputed:
            where = "" if rank is None else f"rank {rank}: "
            raise Difference(f"{where}{what}: recorded {_text(recorded)}, recomputed {_text(recomputed)}")
        if rank is not None and "digest" in what:
            self.count(rank, recorded)

    def count(self, rank: int, digest: str | list[str] | None) -> None:
        """Digests that were found equal."""
        some = len(digest) if isinstance(digest, list) else int(digest is not None)
        self.digests[rank] = self.digests.get(rank, 0) + some


def check_starts(trace: Trace) -> None:
    """Raise InputError unless each rank's beginning is on record, once, and that of no other rank."""
    found, ranks = [start.rank for start in trace.starts], trace.scenario.ranks
    for rank in range(ranks):
        if found.count(rank) != 1:
            raise InputError(f"{trace.source}: rank {rank}: {found.count(rank)} records of its beginning: must be 1")
    for rank in found:
        if not 0 <= rank < ranks:
            raise InputError(f"{trace.source}: rank {rank}: a record of its beginning: must be of ranks 0 to {ranks - 1}")


class Recorded:
    """The records of a trace by what names them."""

    def __init__(self, trace: Trace) -> None:
        self.iterations = {(a.rank, a.iteration): a for a in trace.iterations}
        self.executions = {(e.rank, e.version): e for e in trace.executions}
        self.exchanges = {exchange_key(x): x for x in trace.exchanges}

    def execution(self, e: Execution) -> Execution:
        """The record of the same execution. Raises Difference if there is none."""
        return _found(self.executions.get((e.rank, e.version)), e, "executes it")

    def iteration(self, a: Iteration) -> Iteration:
        """The record of the same iteration."""
        return _found(self.iterations.get((a.rank, a.iteration)), a, "goes through it")

    def exchange(self, x: ExchangeRecord) -> ExchangeRecord:
        """The record of the same exchange."""
        return _found(self.exchanges.get(exchange_key(x)), x, "exchanges models")


def exchange_key(x: ExchangeRecord) -> tuple[int, str, int, int]:
    """A rank may be asked by several in one version."""
    return x.rank, x.role, x.version, x.sources[0] if x.role == "passive" and x.sources else x.rank


def _found(recorded: T | None, record: T, what: str) -> T:
    if recorded is None:
        raise Difference(f"{named(record)}: no record, and the replay {what}")
    return recorded


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def take_times(recorded: Record, recomputed: Record) -> None:
    """Give a recomputed record the times that were recorded."""
    for name in TIMES[type(recorded)]:
        setattr(recomputed, name, getattr(recorded, name))
