"""A recorded real run, once more in the simulator: the same bits; and a recording in which one bit was changed is found out, and where."""

from __future__ import annotations

import copy
import random
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("wagma._native")
pytest.importorskip("sklearn")

from real_ranks import train_locally  # after the checks that they can be imported

from wagma.algorithms import ALGORITHMS
from wagma.errors import WagmaError
from wagma.scenario import Scenario, load
from wagma.sim.replay.compare import TIMES, Difference
from wagma.sim.replay.run import Replayed, replay
from wagma.trace import Iteration, RankStart, Trace, load_trace
from wagma.validate import validate

SMALL = {
    "imbalance": [], "model.parameters": 2_410, "training.workload": "digits_mlp", "algorithm.sync_period": 8,
    "algorithms.ad_psgd.all_ask": True, "algorithms.swarm_sgd.local_steps": 2, "algorithms.sgp.out_neighbours": 2,
}  # fmt: skip
GROUPED = ("wagma_sgd", "eager_sgd")


def scenario(ranks: int = 4, iterations: int = 16, **changes: Any) -> Scenario:
    return load("digits", {**SMALL, "ranks": ranks, "iterations": iterations, **changes})


def recorded(algorithm: str, counts: Sequence[int] | None = None, resident: bool = False, **changes: Any) -> Trace:
    """A run on threads in which some rank is late in every iteration."""
    delay = (0.001, 0.009)
    return train_locally(scenario(**changes), algorithm, lambda rank, t: delay[t % 4 == rank], counts, resident=resident)


def check(trace: Trace) -> Replayed:
    """It is replayed, all of it, to what it says of itself."""
    assert validate(trace) == []
    replayed = replay(trace)
    again = replayed.trace
    assert replayed.weights == [start.final_digest for start in trace.starts]
    assert (again.iterations, again.executions, again.exchanges) == (trace.iterations, trace.executions, trace.exchanges)
    assert all(compared > len(trace.iterations) / len(trace.starts) for compared in replayed.compared)
    return replayed


def check_gradients(trace: Trace) -> None:
    """Each gradient is in one sum, or was taken back and is in the next."""
    syncs = trace.schedule.is_sync
    retracted = {(a.rank, a.iteration - 1) for a in trace.iterations if a.retracted_ns is not None}
    assert retracted, "no gradient came back"
    taken = Counter((e.rank, e.own_stamp) for e in trace.executions if e.own_stamp >= 0 and not syncs(e.version))
    assert set(taken.values()) == {1}
    assert taken.keys() | retracted == {(a.rank, a.iteration) for a in trace.iterations if not syncs(a.iteration)}
    assert not taken.keys() & retracted


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_real_runs_are_replayed_bit_for_bit(algorithm: str) -> None:
    trace = recorded(algorithm)
    assert len(trace.iterations) == 64
    check(trace)
    if algorithm in GROUPED:
        assert sum(a.fresh is False for a in trace.iterations) > 5, "the run was too tame to show anything"
    if algorithm == "eager_sgd":
        check_gradients(trace)


@pytest.mark.parametrize("algorithm", [*GROUPED, "d_psgd", "swarm_sgd", "ad_psgd"])
def test_ranks_that_end_at_different_times(algorithm: str) -> None:
    """Closed ranks serve passively, in syncs too, and go on exchanging without updates."""
    trace = recorded(algorithm, [3, 12, 9, 6], iterations=12)
    assert len({a.iteration for a in trace.iterations if a.rank == 0}) < 12 or algorithm == "d_psgd"
    check(trace)


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("wagma_sgd", {"algorithm.merge_once": True}),
        ("wagma_sgd", {"ranks": 3, "algorithm.group_size": 2, "algorithm.sync_period": "never"}),
        ("eager_sgd", {"algorithms.eager_sgd.initiators": "majority"}),
        ("ad_psgd", {"algorithms.ad_psgd.await_averaging": True}),
    ],
)
def test_settings_that_decide_who_waits(algorithm: str, changes: dict[str, Any]) -> None:
    check(recorded(algorithm, **changes))


def test_a_model_in_the_buffers() -> None:
    check(recorded("wagma_sgd", resident=True))


def test_clocks_of_different_hosts() -> None:
    """Between ranks only causes count."""
    for algorithm in ("wagma_sgd", "eager_sgd", "ad_psgd"):
        trace = recorded(algorithm, iterations=8)
        offsets = [0, 10**15, -3_000_000, 2_000_000]
        for start in trace.starts:
            start.started_ns += offsets[start.rank]
        for record in (*trace.iterations, *trace.executions, *trace.exchanges):
            for name in TIMES[type(record)]:
                if not name.startswith(("computed", "delayed")) and getattr(record, name) is not None:
                    setattr(record, name, getattr(record, name) + offsets[record.rank])
        check(trace)


def test_a_clock_that_ticks_slowly() -> None:
    """Events that share a tick are told apart by numbers and stamps."""
    for algorithm in ("wagma_sgd", "eager_sgd", "ad_psgd"):
        trace = recorded(algorithm, iterations=8)
        for record in (*trace.iterations, *trace.executions, *trace.exchanges):
            for name in TIMES[type(record)]:
                if getattr(record, name) is not None:
                    setattr(record, name, getattr(record, name) // 256 * 256)
        assert difference(trace) is None


def test_a_closed_candidate_is_replayed() -> None:
    """Ranks that wait for a candidate which has closed are told, and activate by themselves."""
    check(recorded("eager_sgd", [2, 12, 12, 12], iterations=12, **{"algorithms.eager_sgd.initiators": 1}))


def test_the_replay_can_be_written_and_replayed(tmp_path: Path) -> None:
    trace = recorded("wagma_sgd", iterations=8)
    path = tmp_path / "again.jsonl"
    replay(trace).trace.write(path)
    again = load_trace(path)
    assert again.header.engine == "replay"
    assert validate(trace, again) == []
    assert replay(again).digest == replay(trace).digest


# -- one bit ---------------------------------------------------------------------------------------------------------------

#: What only the clock knows, and may be changed unseen as long as the order of a rank's events stays the same.
CLOCK = {name for names in TIMES.values() for name in names} | {"started_ns"}
#: What a record is called by: changed, it is another one, and missing where it was.
NAMES = ("rank", "version", "iteration")


def flipped(value: Any, rng: random.Random) -> Any:
    """The value with one bit changed."""
    match value:
        case bool():
            return not value
        case int():
            return value ^ 1 << rng.randrange(max(1, min(40, abs(value).bit_length() + 1)))
        case float():
            (bits,) = struct.unpack("<Q", struct.pack("<d", value))
            return struct.unpack("<d", struct.pack("<Q", bits ^ 1 << rng.randrange(52)))[0]
        case str():
            place = rng.randrange(len(value))
            return value[:place] + f"{int(value[place], 16) ^ 1 << rng.randrange(4):x}" + value[place + 1 :]
    place = rng.randrange(len(value))
    return [*value[:place], flipped(value[place], rng), *value[place + 1 :]]


def flippable(record: Any) -> list[str]:
    values = {
        field.name: getattr(record, field.name) for field in fields(record) if field.name not in ("role", "host", "environment")
    }
    return [name for name, value in values.items() if value is not None and value != [] and value != "null"]


def place(record: Any) -> str:
    if isinstance(record, RankStart):
        return f"rank {record.rank}:"
    number = f"iteration {record.iteration}" if isinstance(record, Iteration) else f"version {record.version}"
    return f"rank {record.rank}, {number}"


@pytest.fixture(scope="module")
def small() -> dict[str, Trace]:
    return {name: recorded(name, ranks=3, iterations=6) for name in (*GROUPED, "d_psgd", "ad_psgd", "swarm_sgd")}


def every_field(trace: Trace, rng: random.Random) -> list[tuple[str, int, str]]:
    """For each kind of record each of its fields, at a record of its own: (list of the trace, index, field)."""
    found = []
    for kind in ("starts", "iterations", "executions", "exchanges"):
        records = getattr(trace, kind)
        for name in sorted({name for record in records for name in flippable(record)}):
            some = [number for number, record in enumerate(records) if name in flippable(record)]
            found.append((kind, rng.choice(some), name))
    return found


def difference(trace: Trace) -> str | None:
    """What a replay finds wrong, in one line."""
    try:
        replay(trace)
    except WagmaError as error:
        return str(error)
    return None


@pytest.mark.parametrize("algorithm", [*GROUPED, "d_psgd", "ad_psgd", "swarm_sgd"])
def test_a_flipped_bit_is_found_and_located(small: dict[str, Trace], algorithm: str) -> None:
    """In every field: what was decided and computed always, a time where it changes the order."""
    rng = random.Random(algorithm)
    undetected = set()
    for kind, number, name in every_field(small[algorithm], rng):
        trace = copy.deepcopy(small[algorithm])
        record = getattr(trace, kind)[number]
        before = copy.copy(record)
        setattr(record, name, flipped(getattr(record, name), rng))
        message = difference(trace)
        if message is None:
            undetected.add(name)
        elif name in NAMES:
            assert f"rank {before.rank}" in message or f"rank {record.rank}" in message
        elif name == "skipped":  # the model is another one from there on: the first digest that shows it
            assert f"rank {before.rank}, " in message
        elif name not in CLOCK:
            assert place(before) in message
    assert undetected <= CLOCK


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_many_flipped_bits_are_found(algorithm: str) -> None:
    """A replay of another time ends with the recorded weights, or with a difference. -s shows how many were found, and where."""
    original = recorded(algorithm, ranks=3, iterations=8)
    rng = random.Random(algorithm)
    counts: Counter[str] = Counter()
    for _ in range(400):
        trace = copy.deepcopy(original)
        record = rng.choice([*trace.starts, *trace.iterations, *trace.executions, *trace.exchanges])
        before, name = copy.copy(record), rng.choice(flippable(record))
        setattr(record, name, flipped(getattr(record, name), rng))
        message = difference(trace)
        kind = "clock" if name in CLOCK else "names" if name in NAMES else "digests" if "digest" in name else "decisions"
        found = "not found" if message is None else "named" if place(before) in message else "found"
        counts[f"{kind}: {found}"] += 1
        assert message is not None or name in CLOCK
        assert found == "named" or name in (*CLOCK, *NAMES, "skipped")
    print(algorithm, dict(sorted(counts.items())))


@pytest.mark.parametrize("kind", ["iterations", "executions", "exchanges"])
@pytest.mark.parametrize("algorithm", ["wagma_sgd", "ad_psgd", "d_psgd"])
def test_a_record_that_is_missing_or_double_is_found(small: dict[str, Trace], algorithm: str, kind: str) -> None:
    records: list[Any] = getattr(small[algorithm], kind)
    for number in range(0, len(records), 5):
        for change in ([], [records[number]] * 2):
            trace = copy.deepcopy(small[algorithm])
            setattr(trace, kind, [*records[:number], *change, *records[number + 1 :]])
            with pytest.raises(WagmaError, match=f"rank {records[number].rank}"):
                replay(trace)


def test_the_order_of_two_averages_is_found_out(small: dict[str, Trace]) -> None:
    """Which of two came first at a rank: exchanged, numbers and times, the bits are others."""
    original = small["ad_psgd"]
    for one, other in zip(original.exchanges, original.exchanges[1:], strict=False):
        if one.rank == other.rank and one.role == other.role == "passive" and one.own_digest != other.own_digest:
            break
    else:
        pytest.skip("no rank was asked twice in a row")
    trace = copy.deepcopy(original)
    first, second = (next(x for x in trace.exchanges if x == wanted) for wanted in (one, other))
    for name in ("sequence", "started_ns", "completed_ns"):
        ours, theirs = getattr(first, name), getattr(second, name)
        setattr(first, name, theirs)
        setattr(second, name, ours)
    with pytest.raises(Difference, match=f"rank {one.rank}, "):
        replay(trace)


def test_a_late_rank_that_is_said_to_be_fresh_is_found_out(small: dict[str, Trace]) -> None:
    """The whole decision changed, consistently: what it merged, and what its version took. The sums are others."""
    trace = copy.deepcopy(small["wagma_sgd"])
    late = next(a for a in trace.iterations if a.fresh is False)
    late.fresh, late.merged_version = True, late.iteration
    execution = next(e for e in trace.executions if (e.rank, e.version) == (late.rank, late.iteration))
    execution.own_stamp = late.iteration
    with pytest.raises(Difference, match=f"rank {late.rank}, "):
        replay(trace)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 8),
        ("training.learning_rate", 0.06),
        ("training.batch_size", 31),
        ("algorithm.sync_period", 4),
        ("algorithm.group_size", 3),
    ],
)
def test_another_scenario_is_found_out(small: dict[str, Trace], key: str, value: Any) -> None:
    trace = copy.deepcopy(small["wagma_sgd"])
    *parts, last = key.split(".")
    table = trace.header.scenario
    for part in parts:
        table = table[part]
    assert table[last] != value
    table[last] = value
    if key == "training.batch_size":
        table = trace.header.scenario["work"]
        table["per_rank"] = value
    assert difference(trace) is not None


@pytest.mark.parametrize("algorithm", ["d_psgd", "local_sgd", "ad_psgd"])
def test_what_was_cut_off_at_the_end_is_found_out(algorithm: str) -> None:
    """Of all ranks alike, so that what is left is a run: only each one's last digest tells, which therefore has to be there."""
    trace = recorded(algorithm, ranks=3, iterations=4)
    assert difference(trace) is None
    trace.iterations = [a for a in trace.iterations if a.iteration < 3]
    trace.executions = [e for e in trace.executions if e.version < 3]
    trace.exchanges = [x for x in trace.exchanges if x.version < 3]
    assert "rank " in str(difference(trace))
    for start in trace.starts:
        start.final_digest = None
    assert "rank 0: final_digest = null" in str(difference(trace))


@pytest.mark.parametrize(
    ("name", "value"),
    [("value", "gradient"), ("score", 0.5), ("own_score", 0.5), ("score_name", "bits"), ("score_direction", "down")],
)
def test_another_header_is_found_out(small: dict[str, Trace], name: str, value: Any) -> None:
    """Not judged is one thing; judged in part would leave scores that nobody compares."""
    trace = copy.deepcopy(small["wagma_sgd"])
    setattr(trace.header, name, value)
    assert difference(trace) is not None


def test_a_rank_that_there_is_not_is_refused(small: dict[str, Trace]) -> None:
    trace = copy.deepcopy(small["wagma_sgd"])
    trace.starts.append(copy.copy(trace.starts[0]))
    trace.starts[-1].rank = 9
    assert "rank 9: a record of its beginning" in str(difference(trace))


def test_updates_that_were_skipped_are_skipped_again(small: dict[str, Trace]) -> None:
    """A run whose rank skipped one is not the run in which it did not: see also `skipped` above."""
    trace = copy.deepcopy(small["d_psgd"])
    trace.iterations[-1].skipped = True
    with pytest.raises(Difference, match="model_digest"):
        replay(trace)
