"""Each checker of exchanges fires, alone, on a trace in which its promise is broken, and on runs with defects planted in them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from points import scenario_table

from wagma.core.symbols import paired, weighted_sum
from wagma.errors import InputError
from wagma.scenario import read
from wagma.sim.driver import simulate
from wagma.sim.gossip import Gossip
from wagma.sim.numerics import Nothing, Numerics, Symbols
from wagma.testing import assert_promises
from wagma.trace import ExchangeRecord, Iteration, Trace, load_trace
from wagma.validate import PROMISES, report, validate

RANKS, ITERATIONS = 5, 12
OTHER = "0123456789abcdef"  # a digest that no trace has
STRAGGLERS = [{"kind": "independent", "probability": 0.3, "delay_s": 7e-6}]
NETWORK = {"latency_ns": 100, "overhead_ns": 10, "gap_ns": 50, "gap_per_byte_ns": 1.0}
GOSSIP = ["d_psgd", "sgp", "ad_psgd", "swarm_sgd"]


def run(algorithm: str, numerics: Numerics | None = None, **changes: Any) -> Trace:
    settings = {"imbalance": STRAGGLERS, "network": NETWORK, "algorithms": {"sgp": {"out_neighbours": 2}}, **changes}
    scenario = read(scenario_table(RANKS, ITERATIONS, **settings), "exchanges")
    return simulate(scenario, algorithm, numerics or Symbols(RANKS))


@functools.cache
def base(algorithm: str) -> Trace:
    trace = run(algorithm)
    for record in [*trace.iterations, *trace.exchanges]:
        record.sequence *= 10  # room for mutations that move a record
    return trace


class Case:
    """A copy of a passing trace, with what mutations look for."""

    def __init__(self, algorithm: str) -> None:
        self.trace = copy.deepcopy(base(algorithm))
        self.iteration = {(a.rank, a.iteration): a for a in self.trace.iterations}

    def pick(self, wanted: Callable[[ExchangeRecord], bool]) -> ExchangeRecord:
        """The first exchange, none of the first iterations, that is `wanted`."""
        return next(x for x in self.trace.exchanges if x.version > 3 and wanted(x))

    def role(self, role: str) -> ExchangeRecord:
        return self.pick(lambda x: x.role == role)

    def partner(self, x: ExchangeRecord) -> ExchangeRecord:
        """The other side of a pair."""
        return next(
            y for y in self.trace.exchanges
            if y.version == x.version and y.rank == x.sources[0] and y.sources == [x.rank] and y.role != x.role
        )  # fmt: skip

    def own(self, x: ExchangeRecord) -> Iteration:
        return self.iteration[x.rank, x.version]

    def receivers(self, x: ExchangeRecord) -> list[ExchangeRecord]:
        """The records of those to whom an exchange with neighbours sent."""
        return [y for y in self.trace.exchanges if y.version == x.version and y.rank in x.to and x.rank in y.sources]

    def last(self) -> ExchangeRecord:
        """One that was asked for, and after which its rank took part in no other."""
        return next(
            x for x in self.trace.exchanges
            if x.role == "active" and all(y.sequence <= x.sequence for y in self.trace.exchanges if y.rank == x.rank)
        )  # fmt: skip

    def result(self, x: ExchangeRecord, digest: str) -> None:
        """Let an average have given another model, also where an iteration ends with it."""
        for a in self.trace.iterations:
            if a.rank == x.rank and a.model_digest == x.result_digest:
                a.model_digest = digest
        x.result_digest = digest

    def receive(self, x: ExchangeRecord, source: int, digest: str) -> None:
        """Let a rank have received something else, and added that up."""
        x.received_digests[x.sources.index(source)] = digest
        x.result_digest = weighted_sum(x.received_digests, x.shares)


Mutation = Callable[[Case], object]
MUTATIONS: list[tuple[int, str, Mutation]] = []


def breaks(promise: int, *algorithms: str) -> Callable[[Mutation], Mutation]:
    def add(mutation: Mutation) -> Mutation:
        MUTATIONS.extend((promise, algorithm, mutation) for algorithm in algorithms)
        return mutation

    return add


SYNCHRONOUS = ("d_psgd", "sgp")
PAIRS = ("ad_psgd", "swarm_sgd")

# -- 1: exactly once, in order ---------------------------------------------------------------------------------------------


@breaks(1, *SYNCHRONOUS)
def exchange_removed(case: Case) -> None:
    case.trace.exchanges.remove(case.role("neighbours"))


@breaks(1, *SYNCHRONOUS)
def exchanged_twice(case: Case) -> None:
    again = copy.deepcopy(case.role("neighbours"))
    again.sequence += 1
    case.trace.exchanges.append(again)


@breaks(1, *SYNCHRONOUS)
def exchange_outside_of_the_run(case: Case) -> None:
    last = max((x for x in case.trace.exchanges if x.rank == 2), key=lambda x: x.sequence)
    extra = copy.deepcopy(last)
    extra.version = extra.iteration = ITERATIONS
    extra.stamps = [ITERATIONS] * len(extra.stamps)
    extra.sequence, extra.started_ns, extra.completed_ns = 10**6, 10**9, 10**9
    case.trace.exchanges.append(extra)


@breaks(1, *PAIRS)
def active_side_removed(case: Case) -> None:
    removed = max((x for x in case.trace.exchanges if x.role == "active"), key=lambda x: (x.completed_ns, x.sequence))
    case.trace.exchanges.remove(removed)


@breaks(1, *PAIRS)
def passive_side_twice(case: Case) -> None:
    again = copy.deepcopy(case.role("passive"))
    again.sequence += 1
    again.own_digest = again.sent_digest = again.received_digests[0] = again.result_digest = OTHER
    case.trace.exchanges.append(again)
    case.trace.header.digests = "off"  # what a second averaging made of the model is not the point here


@breaks(1, *PAIRS)
def asked_again_before_the_answer(case: Case) -> None:
    first, second = [x for x in case.trace.exchanges if x.role == "active" and x.rank == 0][4:6]
    second.started_ns = first.completed_ns - 1
    case.trace.header.clock = "monotonic"  # nor is when its message should have come
    case.partner(second).stamps = [first.iteration]


@breaks(1, "d_psgd")
def two_records_at_one_place(case: Case) -> None:
    x = case.pick(lambda x: x.role != "passive" and x.rank == 1)
    case.own(x).sequence = x.sequence


@breaks(1, *SYNCHRONOUS)
def unknown_rank(case: Case) -> None:
    stranger = copy.deepcopy(case.role("neighbours"))
    stranger.rank = RANKS
    case.trace.exchanges.append(stranger)


# -- 2: agreement ----------------------------------------------------------------------------------------------------------


@breaks(2, *SYNCHRONOUS)
def sent_to_one_that_did_not_ask(case: Case) -> None:
    x = case.role("neighbours")
    x.to[0] = next(rank for rank in range(RANKS) if rank not in (x.rank, *x.to))
    case.trace.header.clock = "monotonic"  # when that one's message came is not known now


@breaks(2, *SYNCHRONOUS)
def received_from_one_that_did_not_send(case: Case) -> None:
    x = case.role("neighbours")
    other = next(rank for rank in range(RANKS) if rank not in (x.rank, *x.sources))
    sent = next(y for y in case.trace.exchanges if (y.rank, y.version) == (other, x.version)).sent_digest
    assert sent is not None
    case.receive(x, x.sources[0], sent)
    x.sources[0] = other
    case.trace.header.clock = "monotonic"


@breaks(2, *SYNCHRONOUS)
def itself_among_its_sources(case: Case) -> None:
    x = case.role("neighbours")
    case.receive(x, x.sources[0], x.sent_digest or "")
    x.sources[0] = x.rank
    case.trace.header.clock = "monotonic"


@breaks(2, *SYNCHRONOUS)
def a_source_left_out_of_the_sum(case: Case) -> None:
    x = case.role("neighbours")
    x.result_digest = weighted_sum(x.received_digests[:-1], x.shares[:-1])


@breaks(2, *SYNCHRONOUS)
def another_weight_than_came(case: Case) -> None:
    x = case.role("neighbours")
    x.shares[0] = x.shares[0] / 2


@breaks(2, *SYNCHRONOUS)
def a_weight_too_many(case: Case) -> None:
    case.role("neighbours").shares.append(1)


@breaks(2, *PAIRS)
def a_pair_of_three(case: Case) -> None:
    x = case.role("active")
    x.to = [next(rank for rank in range(RANKS) if rank not in (x.rank, *x.to))]


@breaks(2, *PAIRS)
def half_of_another_difference(case: Case) -> None:
    case.result(case.last(), OTHER)


# -- 3: wholeness ----------------------------------------------------------------------------------------------------------


@breaks(3, *SYNCHRONOUS)
def received_what_was_not_sent(case: Case) -> None:
    x = case.role("neighbours")
    case.receive(x, x.sources[0], OTHER)


@breaks(3, *SYNCHRONOUS)
def received_the_model_of_an_earlier_iteration(case: Case) -> None:
    x = case.role("neighbours")
    before = next(y for y in case.trace.exchanges if (y.rank, y.version) == (x.sources[1], x.version - 1))
    case.receive(x, x.sources[1], before.sent_digest or "")


@breaks(3, *SYNCHRONOUS)
def sent_what_was_not_published(case: Case) -> None:
    x = case.role("neighbours")
    x.sent_digest = OTHER
    for y in case.receivers(x):
        case.receive(y, x.rank, OTHER)


@breaks(3, *SYNCHRONOUS, *PAIRS)
def sent_nothing_known(case: Case) -> None:
    x = case.pick(lambda x: x.role != "passive")
    x.sent_digest = None


@breaks(3, *SYNCHRONOUS, *PAIRS)
def received_nothing_known(case: Case) -> None:
    case.pick(lambda x: x.role != "passive").received_digests = []


@breaks(3, "swarm_sgd", "ad_psgd")
def averaged_into_a_torn_model(case: Case) -> None:
    x = case.pick(lambda x: x.role == "active" and x.own_digest == x.sent_digest)
    x.own_digest = OTHER
    x.result_digest = paired(OTHER, x.received_digests[0], x.sent_digest or "")


@breaks(3, "swarm_sgd")
def the_average_is_not_the_model(case: Case) -> None:
    x = case.pick(lambda x: x.role == "active" and case.own(x).model_digest == x.result_digest)
    case.own(x).model_digest = OTHER


@breaks(3, *PAIRS)
def answered_with_another_model(case: Case) -> None:
    x = case.last()
    x.received_digests = [OTHER]
    case.result(x, paired(x.own_digest or "", OTHER, x.sent_digest or ""))


# -- 5: bounded staleness --------------------------------------------------------------------------------------------------


@breaks(5, *SYNCHRONOUS)
def older_than_its_iteration(case: Case) -> None:
    case.role("neighbours").stamps[0] -= 1


@breaks(5, *SYNCHRONOUS)
def newer_than_its_iteration(case: Case) -> None:
    case.role("neighbours").stamps[1] += 1


@breaks(5, *SYNCHRONOUS)
def exchanged_in_another_iteration(case: Case) -> None:
    case.role("neighbours").iteration += 1


@breaks(5, *PAIRS)
def a_stamp_that_the_answer_does_not_have(case: Case) -> None:
    case.role("active").stamps[0] -= 1


@breaks(5, *PAIRS)
def a_stamp_from_the_future_of_its_rank(case: Case) -> None:
    case.role("passive").stamps[0] += 3


@breaks(5, *PAIRS)
def answered_from_an_iteration_not_begun(case: Case) -> None:
    x = case.role("passive")
    x.iteration += 3
    case.partner(x).stamps[0] += 3


# -- 7: progress -----------------------------------------------------------------------------------------------------------


@breaks(7, *SYNCHRONOUS)
def completed_before_it_began(case: Case) -> None:
    x = case.role("neighbours")
    x.completed_ns = x.started_ns - 1


@breaks(7, *SYNCHRONOUS)
def completed_before_its_models_came(case: Case) -> None:
    x = case.pick(lambda x: x.completed_ns > x.started_ns + 1000)
    x.completed_ns = x.started_ns + 900


@breaks(7, "d_psgd")
def waited_for_a_rank_that_is_no_neighbour(case: Case) -> None:
    """As if there had been a global clock."""

    def last(x: ExchangeRecord) -> ExchangeRecord:
        return max((y for y in case.trace.exchanges if y.version == x.version), key=lambda y: y.started_ns)

    def unhindered(x: ExchangeRecord) -> bool:
        following = [y.started_ns for y in case.trace.exchanges if (y.rank, y.version) == (x.rank, x.version + 1)]
        return x.completed_ns < last(x).started_ns <= min(following, default=last(x).started_ns)

    x = case.pick(unhindered)
    assert last(x).rank not in (x.rank, *x.sources)
    x.completed_ns = case.own(x).return_ns = last(x).started_ns


@breaks(7, "swarm_sgd")
def waited_for_the_partner(case: Case) -> None:
    """The partner answers when it has computed, not when it is asked."""
    x = max((x for x in case.trace.exchanges if x.role == "passive"), key=lambda x: x.sequence)
    x.completed_ns = x.started_ns + 1


@breaks(7, *PAIRS)
def the_answer_came_late(case: Case) -> None:
    x = max((x for x in case.trace.exchanges if x.role == "active"), key=lambda x: (x.completed_ns, x.sequence))
    x.completed_ns += 1
    if case.own(x).return_ns == x.completed_ns - 1:
        case.own(x).return_ns += 1


@breaks(7, "d_psgd")
def exchanged_outside_of_its_wait(case: Case) -> None:
    x = case.role("neighbours")
    case.own(x).return_ns = x.completed_ns - 1


# -- 8: determinism --------------------------------------------------------------------------------------------------------


@breaks(8, "d_psgd")
def another_sum_of_equal_models(case: Case) -> None:
    """In the first iteration all ranks send the initial model."""
    case.trace.header.digests = "content"  # which cannot be recomputed, but compared
    next(x for x in case.trace.exchanges if x.version == 0 and x.rank == 3).result_digest = OTHER


@pytest.mark.parametrize("algorithm", GOSSIP)
def test_what_is_mutated_passes(algorithm: str) -> None:
    assert_promises(base(algorithm))
    assert base(algorithm).exchanges


@pytest.mark.parametrize(
    ("promise", "algorithm", "mutation"), MUTATIONS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_broken_promise_is_reported_alone(promise: int, algorithm: str, mutation: Mutation) -> None:
    case = Case(algorithm)
    mutation(case)
    violations = validate(case.trace)
    assert {v.promise for v in violations} == {promise}, [v.message for v in violations]
    for v in violations:
        assert v.name == PROMISES[promise]
        assert "\n" not in v.message
        assert v.message.startswith(f"rank {v.rank}")
        assert v.version is None or f"version {v.version}" in v.message
        assert "expected" in v.message


@pytest.mark.parametrize("algorithm", GOSSIP)
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ExchangeRecord)])
def test_no_record_confuses_the_checkers(algorithm: str, field: str) -> None:
    """Whatever a file says that passes its reader: violations, never an exception."""
    values: dict[type, list[Any]] = {
        int: [-7, 3, 10**12],
        str: ["passive", "neighbours", OTHER],
        list: [[], [1], [99, 99, -1], [0] * 7],
        type(None): [OTHER],
    }
    for number in (0, 17, 40):
        kind = type(getattr(base(algorithm).exchanges[number], field))
        for value in values[kind]:
            if field == "received_digests":
                value = [OTHER for _ in value]
            if field == "role" and value == OTHER:
                continue  # the reader refuses that
            case = Case(algorithm)
            setattr(case.trace.exchanges[number], field, value)
            report([case.trace], validate(case.trace))


def test_every_promise_of_exchanges_has_mutations() -> None:
    assert {promise for promise, _, _ in MUTATIONS} == {1, 2, 3, 5, 7, 8}


# -- defects in a run --------------------------------------------------------------------------------------------------------


def broken(trace: Trace) -> set[int]:
    return {v.promise for v in validate(trace)}


def test_a_sum_that_forgets_a_source_is_seen() -> None:
    class Forgetful(Symbols):
        def weighted_sum(self, contributions: Sequence[str], weights: Sequence[float]) -> str | None:
            return weighted_sum(contributions[:1], weights[:1])

    assert broken(run("d_psgd", Forgetful(RANKS))) == {2}


def test_an_average_of_a_newer_model_than_was_sent_is_seen() -> None:
    """The mean would not be preserved: half of the difference to the model as it is now, not to the one that was sent."""

    class Hasty(Symbols):
        def average_pair(self, rank: int, theirs: str, sent: str) -> None:
            super().average_pair(rank, theirs, self._values["model"][rank])  # type: ignore[index]

    assert broken(run("swarm_sgd", Hasty(RANKS))) == {2}


def test_a_partner_that_keeps_others_waiting_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers a while after it is asked, as if it had to finish something first."""
    serve = Gossip._serve

    def later(self: Gossip, partner: int, pending: Any) -> None:
        self._network.call(500, serve, self, partner, pending)

    monkeypatch.setattr(Gossip, "_serve", later)
    assert broken(run("ad_psgd")) == {7}


def test_a_model_that_is_handed_on_in_the_wrong_iteration_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is early finds the model of the iteration before in its place."""
    deliver = Gossip._deliver
    kept: dict[tuple[int, int], Any] = {}

    def stale(self: Gossip, rank: int, sender: int, parcel: Any) -> None:
        before = kept.get((rank, sender), parcel)
        kept[rank, sender] = copy.copy(parcel)
        parcel = copy.copy(parcel)
        parcel.value = before.value
        deliver(self, rank, sender, parcel)

    monkeypatch.setattr(Gossip, "_deliver", stale)
    assert broken(run("d_psgd")) == {3}


@pytest.mark.parametrize("algorithm", SYNCHRONOUS)
@pytest.mark.parametrize("global_clock", [False, True])
def test_waits_are_checked_with_overlap_and_reductions_too(algorithm: str, global_clock: bool) -> None:
    """To the nanosecond: an exchange that lasts for one more is seen."""
    network = {**NETWORK, "overlap": 0.7, "reduce_ns_per_byte": 0.3}
    own = {algorithm: {"global_clock": global_clock}}
    trace = run(algorithm, network=network, algorithms=own)
    assert validate(trace) == []
    last = {a.rank: a for a in trace.iterations}
    longer = [x for x in trace.exchanges if x.version == ITERATIONS - 1]
    for x in longer:
        x.completed_ns += 1
        last[x.rank].return_ns = max(last[x.rank].return_ns, x.completed_ns)
    assert {(v.promise, v.rank) for v in validate(trace)} == {(7, x.rank) for x in longer}


# -- files and reports -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", GOSSIP)
def test_traces_survive_a_file(algorithm: str, tmp_path: Path) -> None:
    trace = base(algorithm)
    trace.write(tmp_path / "trace.jsonl")
    again = load_trace(tmp_path / "trace.jsonl")
    assert again.exchanges == trace.exchanges
    assert validate(again) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("role", '"both"', "must be one of neighbours, active, passive"),
        ("stamps", "[1.5]", "must be list"),
        ("shares", '["a"]', "must be list"),
        ("peers", "[1]", "unknown field 'peers'"),
    ],
)
def test_a_bad_record_is_refused_with_its_line(field: str, value: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    base("d_psgd").write(path)
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if '"exchange"' in line)
    lines[number] = lines[number][:-1] + f',"{field}":{value}}}'
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"trace.jsonl:{number + 1}: .*{message}"):
        load_trace(path)


@pytest.mark.parametrize("algorithm", GOSSIP)
def test_report_says_what_held(algorithm: str) -> None:
    text = report([base(algorithm)], [])
    assert f"0 executions, {len(base(algorithm).exchanges)} exchanges, 60 of 60 iterations" in text
    verdicts = {line[2]: line[4:].partition("  ")[2].strip() for line in text.splitlines() if line[2:3].isdigit()}
    none = "not checked: no collective in this run"
    bound = "held" if algorithm in SYNCHRONOUS else "no bound is promised; the stamps held"
    held = dict.fromkeys("12378", "held")
    assert verdicts == {**held, "4": none, "5": bound, "6": none}


def test_report_without_digests() -> None:
    trace = run("d_psgd", Nothing())
    trace.header.digests = "off"
    assert validate(trace) == []
    assert "held by the neighbours; sums not checked: digests are off" in report([trace], [])
