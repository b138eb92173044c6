"""The record of a run, one schema for both worlds, as JSON Lines: a header, then each rank's records in causal order.

Causal order is the per-rank `sequence`; clocks are secondary, since those of different hosts have offsets. All times are integer
nanoseconds of the header's clock. docs/trace.md describes each field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.scenario import Scenario, read
from wagma.scores import ACCURACY, DIRECTIONS, Score
from wagma.seals import Seals, sealed

SCHEMA = 1
#: What a rank is in an exchange.
ROLES = ("neighbours", "active", "passive")
#: What a header may say.
_ALLOWED = {"world": ("sim", "real"), "value": ("model", "gradient"), "digests": ("content", "symbolic", "off")}


@dataclass(slots=True)
class Execution:
    """One execution of one version at one rank, whether the rank had arrived or not.

    activator: the rank's own arrival activated the version. own_stamp: for which iteration the contribution was published
    (-1: the initial model). oldest_stamp: where gradients accumulate, that of the oldest in the sum, own_stamp being the newest; both -1:
    the null contribution. None: contributions do not accumulate. Digests are None when they are off. read_ns: when the last peer had
    read the contribution, which the next version waits for; None: not after completion.
    """

    rank: int
    sequence: int
    version: int
    group: list[int]
    activator: bool
    activated_ns: int
    started_ns: int
    completed_ns: int
    own_stamp: int
    contribution_digest: str | None = None
    sum_digest: str | None = None
    read_ns: int | None = None
    oldest_stamp: int | None = None

    @property
    def staleness(self) -> int | None:
        """Version - stamp, that of the oldest gradient where they accumulate; None of the null contribution."""
        if self.oldest_stamp is None:
            return self.version - self.own_stamp
        return None if self.own_stamp < 0 else self.version - self.oldest_stamp


@dataclass(slots=True)
class Iteration:
    """One iteration of one rank's application.

    computed_ns: time spent in the gradient and the update; delayed_ns: injected delay. merged_version None: nothing was merged.
    work: what the gradient was of, in the scenario's unit; None: `work.per_rank`.
    retracted_ns: when it took back gradients that no version had taken; None: there were none.
    fresh None: the iteration had no collective (then arrival is return). merged_digest is that of the sum as it was merged.
    updated_sequence: the place of its update in the rank's causal order, where others average with the model (pairs); None: they do not.
    """

    rank: int
    sequence: int
    iteration: int
    arrival_ns: int
    return_ns: int
    fresh: bool | None
    merged_version: int | None
    skipped: bool = False
    computed_ns: int = 0
    delayed_ns: int = 0
    published_digest: str | None = None
    merged_digest: str | None = None
    model_digest: str | None = None
    retracted_ns: int | None = None
    work: float | None = None
    updated_sequence: int | None = None


@dataclass(slots=True)
class Evaluation:
    """The score of the mean of all ranks' models as each one stood after so many iterations of its own (0: before the first)."""

    iteration: int
    score: float


@dataclass(slots=True)
class ExchangeRecord:
    """Models that a rank sent to others and got from others without a collective: with its neighbours, or in a pair.

    role: neighbours (a synchronous exchange), active (the rank asked its partner for an average) or passive (it was asked).
    version: the iteration that the exchange belongs to, of a pair that of the active rank, so that (active rank, version) names it.
    iteration: the one that the rank itself had begun by the end, -1 before the first. stamps: the same of each source when it sent; so
    staleness is max(0, iteration - stamp). shares: the weight with which each source's value came (neighbours only). own_digest: the
    model that the received one was averaged into (pairs only). result_digest: the weighted sum, or the model that the average gave.
    sent_sequence: of `active`, the place in the rank's causal order at which it read the model that it sent.
    """

    rank: int
    sequence: int
    role: str
    version: int
    iteration: int
    to: list[int]
    sources: list[int]
    stamps: list[int]
    shares: list[float]
    started_ns: int
    completed_ns: int
    sent_digest: str | None = None
    received_digests: list[str] = field(default_factory=list)
    own_digest: str | None = None
    result_digest: str | None = None
    sent_sequence: int | None = None


@dataclass(slots=True)
class RankStart:
    """Where a rank began and what became of it: its host, the digests of its first model and of its last one, when all had ended.

    environment: what the bits of its training depend on (`wagma.workloads.environment`); empty: not recorded.
    """

    rank: int
    started_ns: int
    host: str = ""
    initial_digest: str | None = None
    final_digest: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class End:
    """The last line of a file: how many came before it."""

    records: int


@dataclass(slots=True)
class Header:
    """What the records belong to. world: sim or real; value: model or gradient; digests: content, symbolic or off.

    score: of the mean of all ranks' last models; score_name, score_direction: what it is, and which way is better (`wagma.scores`).
    own_score: the mean over ranks of what each one's own last model reaches. All are None if nothing was trained, the first also if ranks
    have no model in common. begin: the first iteration on record; a run that was resumed from a checkpoint has others before it.
    """

    world: str
    engine: str
    algorithm: str
    value: str
    clock: str
    digests: str
    scenario: dict[str, Any]
    schema: int = SCHEMA
    score: float | None = None
    score_name: str | None = None
    score_direction: str | None = None
    own_score: float | None = None
    begin: int = 0

    @property
    def accuracy(self) -> float | None:
        """The score, if it is one: from 0 to 1."""
        return self.score if self.score_name == ACCURACY.name else None

    def judged_by(self, score: Score) -> None:
        """The scores of this run are of this kind."""
        self.score_name, self.score_direction = score.name, score.direction


@dataclass(slots=True)
class Trace:
    """A run in memory. `source` names it in messages; `wall_s`, what the run took here, is not part of the record."""

    header: Header
    starts: list[RankStart] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    iterations: list[Iteration] = field(default_factory=list)
    source: str = "trace"
    wall_s: float = 0.0
    exchanges: list[ExchangeRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def scenario(self) -> Scenario:
        """The scenario of the header, read and checked."""
        return read(self.header.scenario, self.source)

    @property
    def schedule(self) -> Schedule:
        """The collectives that the run's algorithm joins."""
        return replace(self.scenario.schedule(self.header.algorithm), begin=self.header.begin)

    def sort(self) -> None:
        """Put the records into the order of the file: by rank, then by sequence."""
        self.starts.sort(key=lambda r: r.rank)
        self.executions.sort(key=lambda r: (r.rank, r.sequence))
        self.iterations.sort(key=lambda r: (r.rank, r.sequence))
        self.exchanges.sort(key=lambda r: (r.rank, r.sequence))

    def write(self, path: str | Path) -> None:
        """Write JSON Lines, sealed. Raises InputError if the file cannot be written."""
        try:
            with open(path, "w", encoding="utf-8") as file:
                for line in sealed(_ended(self._lines())):
                    file.write(line + "\n")
        except OSError as error:
            raise InputError(f"trace {path}: cannot be written: {error.strerror}") from error

    def _lines(self) -> Iterator[str]:
        own: list[Execution | Iteration | ExchangeRecord] = [*self.executions, *self.iterations, *self.exchanges]
        own.sort(key=lambda r: (r.rank, r.sequence))
        records: list[Record] = [self.header, *self.starts, *own, *self.evaluations]
        for record in records:
            yield _dump(_NAMES[type(record)], record)


Record = Header | RankStart | Execution | Iteration | ExchangeRecord | Evaluation | End
_KINDS: dict[str, type[Record]] = {
    "header": Header,
    "rank": RankStart,
    "execution": Execution,
    "iteration": Iteration,
    "exchange": ExchangeRecord,
    "evaluation": Evaluation,
    "end": End,
}
_NAMES: dict[type, str] = {kind: name for name, kind in _KINDS.items()}
_FIELDS = {name: get_type_hints(kind) for name, kind in _KINDS.items()}


def load_trace(path: str | Path) -> Trace:
    """Read a trace. Raises InputError naming file and line if it is not one, or not what was written."""
    return _collect(read_records(path), str(path))


def parse_trace(lines: Iterable[str], source: str) -> Trace:
    """A trace from its lines. Raises as load_trace does."""
    return _collect(_records(lines, source), source)


def _collect(records: Iterable[Record], source: str) -> Trace:
    trace: Trace | None = None
    for record in records:
        match record:
            case Header():
                trace = Trace(record, source=source)
            case RankStart() if trace is not None:
                trace.starts.append(record)
            case Execution() if trace is not None:
                trace.executions.append(record)
            case Iteration() if trace is not None:
                trace.iterations.append(record)
            case ExchangeRecord() if trace is not None:
                trace.exchanges.append(record)
            case Evaluation() if trace is not None:
                trace.evaluations.append(record)
    assert trace is not None  # or there was no header
    return trace


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of a trace one after the other, the header first, however long it is. Raises as load_trace does."""
    try:
        with open(path, "rb") as file:
            yield from _records(_decoded(file, str(path)), str(path))
    except OSError as error:
        raise InputError(f"trace {path}: cannot be read: {error.strerror}") from error


def _decoded(lines: Iterable[bytes], source: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{source}:{number}: not a trace record: not UTF-8 text") from error


def _records(lines: Iterable[str], source: str) -> Iterator[Record]:
    """The records of a trace but for the end. Raises InputError unless the first one, and no other, is a header; for what is not whole."""
    number, seals, ended = 0, Seals(source), False
    for number, with_break in enumerate(lines, 1):
        line, where = with_break.rstrip("\r\n"), f"{source}:{number}"
        record = _parse(line, where)
        if isinstance(record, Header) and number > 1:
            raise InputError(f"{where}: a second header; allowed: one, in the first line")
        if not isinstance(record, Header) and number == 1:
            raise InputError(f"{where}: the first line must be the header")
        seals.check(number, line)
        if ended:
            raise InputError(f"{where}: a line after the end; allowed: none")
        if isinstance(record, End):
            ended = True
            if record.records != number - 1:
                raise InputError(f"{where}: records = {record.records}: must be {number - 1}, as many as come before")
        else:
            yield record
    if number == 0:
        raise InputError(f"{source}: empty; a trace begins with a header")
    if seals.holds and not ended:
        raise InputError(f"{source}:{number}: the file ends here, and its last line is no end: it was cut off")


def _ended(lines: Iterable[str]) -> Iterator[str]:
    """All lines, and the last one, which says how many they are."""
    records = 0
    for line in lines:
        records += 1
        yield line
    yield _dump("end", End(records))


def _dump(kind: str, record: Record) -> str:
    values = {name: getattr(record, name) for name in _FIELDS[kind]}
    return json.dumps({"record": kind, **values}, separators=(",", ":"), allow_nan=False)


def _parse(line: str, where: str) -> Record:
    try:
        data = json.loads(line)
        data.pop("seal", None)
        name = data.pop("record")
        kind = _KINDS[name]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{where}: not a trace record; allowed: JSON with record = {', '.join(_KINDS)}") from error
    known = _FIELDS[name]
    if kind is Header and "accuracy" in data:  # of traces from before there were other scores
        data["score"] = data.pop("accuracy")
        data["score_name"], data["score_direction"] = ACCURACY.name, ACCURACY.direction
    for field_name, value in data.items():
        if field_name not in known:
            raise InputError(f"{where}: unknown field {field_name!r}; allowed: {', '.join(known)}")
        if not _fits(value, known[field_name]):
            raise InputError(f"{where}: {field_name} = {value!r}: must be {_describe(known[field_name])}")
    try:
        record = kind(**data)
    except TypeError as error:
        raise InputError(f"{where}: {str(error).split('__init__() ')[-1]}") from error
    if isinstance(record, ExchangeRecord) and record.role not in ROLES:
        raise InputError(f"{where}: role = {record.role!r}: must be one of {', '.join(ROLES)}")
    if isinstance(record, Header):
        if record.schema != SCHEMA:
            raise InputError(f"{where}: schema = {record.schema}: this wagma reads schema {SCHEMA}")
        for name, allowed in _ALLOWED.items():
            if getattr(record, name) not in allowed:
                raise InputError(f"{where}: {name} = {getattr(record, name)!r}: must be one of {', '.join(allowed)}")
        if record.score_direction not in (None, *DIRECTIONS):
            raise InputError(f"{where}: score_direction = {record.score_direction!r}: must be one of {', '.join(DIRECTIONS)}")
    return record


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(annotation) is list:
        return isinstance(value, list) and all(_fits(item, get_args(annotation)[0]) for item in value)
    if isinstance(annotation, type) and not get_args(annotation):
        return isinstance(value, annotation)
    if annotation == dict[str, Any]:
        return isinstance(value, dict)
    return any(_fits(value, choice) for choice in get_args(annotation))


def _describe(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return text.replace("typing.", "").replace("None", "null")
