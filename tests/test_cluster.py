"""A simulated cluster in somebody else's SimPy environment runs as it does alone, to the nanosecond."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import simpy

import wagma
from wagma.errors import InputError, WagmaError
from wagma.sim.cluster import Cluster
from wagma.trace import Iteration, Trace

SECONDS = 1_000_000_000
ALGORITHMS = ("wagma_sgd", "allreduce_sgd", "local_sgd", "eager_sgd", "d_psgd", "sgp", "ad_psgd", "swarm_sgd", "ideal")


def scenario(**changes: Any) -> wagma.Scenario:
    return wagma.load_scenario("resnet50_imagenet", {"ranks": 6, "iterations": 24, **changes})


def alone(algorithm: str) -> Trace:
    [trace] = wagma.simulate(scenario(), algorithm, traces=True)
    return trace


def assert_same(trace: Trace | None, other: Trace) -> None:
    assert trace is not None
    assert trace.starts == other.starts
    assert trace.executions == other.executions
    assert trace.iterations == other.iterations
    assert trace.exchanges == other.exchanges


def ticking(env: simpy.Environment, period: float) -> Iterator[simpy.Event]:
    while True:
        yield env.timeout(period)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_durations_in_a_foreign_environment(algorithm: str) -> None:
    """At a time that is not 0, in seconds, with other things going on at the same and at odd times, and another cluster."""
    env = simpy.Environment(initial_time=987_654.321)
    env.process(ticking(env, 0.62))  # when ranks that are not delayed finish
    env.process(ticking(env, 0.0317))
    cluster = Cluster(env, scenario(), algorithm, unit_ns=SECONDS, digests=True)
    other = Cluster(env, scenario(), "wagma_sgd", unit_ns=SECONDS, digests=True)
    trace = env.run(until=cluster.done)
    assert trace is cluster.trace
    expected = alone(algorithm)
    assert_same(cluster.trace, expected)
    assert env.now - 987_654.321 == pytest.approx(cluster.now_ns / SECONDS, abs=1e-6)
    if not other.done.triggered:
        env.run(until=other.done)
    assert_same(other.trace, alone("wagma_sgd"))
    assert wagma.validate(cluster.trace) == []


def test_whole_nanoseconds_stay_whole() -> None:
    env = simpy.Environment(initial_time=10**15 + 1)
    cluster = Cluster(env, scenario(), "wagma_sgd")
    env.run(until=cluster.done)
    assert isinstance(env.now, int)
    assert env.now - (10**15 + 1) == cluster.now_ns == max(r.return_ns for r in alone("wagma_sgd").iterations)


def test_iterations_are_told_when_they_are_over() -> None:
    env = simpy.Environment(50.0)
    told: list[tuple[float, Iteration]] = []
    cluster = Cluster(
        env, scenario(), "wagma_sgd", unit_ns=SECONDS, after_iteration=lambda record: told.append((env.now, record))
    )
    env.run(until=cluster.done)
    assert len(told) == cluster.finished == 6 * 24
    for now, record in told:
        # An iteration is over when the next one begins: at once.
        assert now - 50.0 == pytest.approx(record.return_ns / SECONDS, abs=1e-9)


def test_a_pause_is_no_time_of_the_cluster() -> None:
    env = simpy.Environment()
    cluster = Cluster(env, scenario(), "wagma_sgd", unit_ns=SECONDS, digests=True)

    def outage() -> Iterator[simpy.Event]:
        yield env.timeout(3.7)
        before = cluster.now_ns
        cluster.pause()
        cluster.pause()
        yield env.timeout(100)
        assert cluster.now_ns == before == 3_700_000_000
        cluster.resume()
        cluster.resume()
        yield env.timeout(0.2)
        cluster.pause()
        yield env.timeout(11)
        cluster.resume()

    env.process(outage())
    env.run(until=cluster.done)
    assert_same(cluster.trace, alone("wagma_sgd"))
    assert env.now - 111 == pytest.approx(cluster.now_ns / SECONDS)


def test_a_rank_waits_for_an_event_of_the_environment() -> None:
    """A licence that one rank at a time may hold: ideal ranks, which otherwise need nobody, are a queue then."""
    env = simpy.Environment(7.0)
    door = simpy.Resource(env, 1)

    def enter() -> Iterator[simpy.Event]:
        with door.request() as turn:
            yield turn
            yield env.timeout(0.25)

    asked: list[tuple[int, int]] = []

    def before(rank: int, iteration: int) -> simpy.Event | None:
        asked.append((rank, iteration))
        return env.process(enter()) if iteration == 2 else None

    cluster = Cluster(env, scenario(ranks=3, iterations=4), "ideal", unit_ns=SECONDS, before_iteration=before)
    env.run(until=cluster.done)
    assert sorted(asked) == [(rank, t) for rank in range(3) for t in range(4)]
    assert cluster.trace is not None
    waited = {(r.rank, r.iteration): r.delayed_ns for r in cluster.trace.iterations}
    assert [waited[rank, 2] for rank in range(3)] == [250_000_000, 500_000_000, 750_000_000]
    assert sum(waited.values()) == 1_500_000_000
    ends = {r.rank: r.return_ns for r in cluster.trace.iterations if r.iteration == 3}
    assert ends == {rank: 4 * 620_000_000 + (rank + 1) * 250_000_000 for rank in range(3)}
    assert wagma.validate(cluster.trace) == []


def test_events_that_are_over_hold_nobody() -> None:
    env = simpy.Environment()
    over = env.event().succeed()
    env.run()
    cluster = Cluster(env, scenario(ranks=2, iterations=3), "ideal", before_iteration=lambda *_: over)
    env.run(until=cluster.done)
    assert cluster.result.makespan_ns == 3 * 620_000_000


def test_a_rank_that_is_never_let_in() -> None:
    env = simpy.Environment()
    cluster = Cluster(
        env, scenario(ranks=2, iterations=3), "ideal", before_iteration=lambda rank, _: env.event() if rank else None
    )
    env.run()  # ends, for nothing happens any more
    assert not cluster.done.triggered
    assert cluster.finished == 3
    with pytest.raises(WagmaError, match="not done yet"):
        _ = cluster.result


@pytest.mark.parametrize("early", [False, True])
def test_a_rank_whose_event_fails_ends_the_cluster(early: bool) -> None:
    """Whoever makes it fail takes care of that: nobody else would hear of the rank that waits for it."""
    env = simpy.Environment()
    event = env.event()

    def fail() -> Iterator[simpy.Event]:
        yield env.timeout(0 if early else 1500)
        event.fail(RuntimeError("power"))
        event.defused = True

    env.process(fail())
    if early:
        env.run()
    cluster = Cluster(
        env, scenario(ranks=2, iterations=3), "d_psgd", before_iteration=lambda rank, t: event if (rank, t) == (0, 1) else None
    )
    with pytest.raises(WagmaError) as failed:
        env.run(until=cluster.done)
    assert str(failed.value) == "rank 0: what before_iteration returned for iteration 1 failed: RuntimeError('power')"


def test_a_rank_whose_event_fails_during_a_pause() -> None:
    env = simpy.Environment()
    event = env.event()
    cluster = Cluster(env, scenario(ranks=1, iterations=1), "ideal", before_iteration=lambda *_: event)

    def outage() -> Iterator[simpy.Event]:
        yield env.timeout(2)
        cluster.pause()
        event.fail(RuntimeError("power"))
        event.defused = True

    env.process(outage())
    with pytest.raises(WagmaError, match=r"rank 0: .* iteration 0 failed"):
        env.run(until=cluster.done)


def test_held_and_paused() -> None:
    """A gate that opens during a pause lets its rank go on after it."""
    env = simpy.Environment()
    cluster = Cluster(
        env, scenario(ranks=1, iterations=1), "ideal", unit_ns=SECONDS, before_iteration=lambda *_: env.timeout(5)
    )  # fmt: skip

    def outage() -> Iterator[simpy.Event]:
        yield env.timeout(2)
        cluster.pause()
        yield env.timeout(10)
        cluster.resume()

    env.process(outage())
    env.run(until=cluster.done)
    assert cluster.trace is not None
    assert cluster.trace.iterations[0].delayed_ns == 2 * SECONDS
    assert env.now == pytest.approx(12.62)


@pytest.mark.parametrize("unit", [0, -1, 0.5, True, "s"])
def test_units(unit: Any) -> None:
    with pytest.raises(InputError, match="unit_ns"):
        Cluster(simpy.Environment(), scenario(), "ideal", unit_ns=unit)


def test_unknown_algorithms() -> None:
    with pytest.raises(InputError, match="sgd"):
        Cluster(simpy.Environment(), scenario(), "sgd")
