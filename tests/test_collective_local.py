"""The collective with ranks as threads: freshness by forced lateness, records, failures, and what is refused."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from stopwatch import Stopwatch

from wagma import GroupAllreduce
from wagma.core.digest import digest
from wagma.core.schedule import Schedule
from wagma.errors import CollectiveTimeout, InputError, PeerFailed, ProtocolError
from wagma.real.collective import AverageOutcome
from wagma.real.kernel import Engine
from wagma.real.limited import agree, broadcast
from wagma.real.local import LocalCommunicator, run_local

pytest.importorskip("wagma._native", reason="the native kernel is not built")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("ranks", "group_size"), [(4, 2), (3, 2), (5, 3), (1, 1)])
def test_sync_makes_all_models_the_mean(ranks: int, group_size: int, dtype: Any) -> None:
    def program(comm: LocalCommunicator) -> np.ndarray:
        model = np.arange(100, dtype=dtype) + 10 * comm.rank
        with GroupAllreduce(comm, model, group_size, 1) as collective:
            assert collective.average() == AverageOutcome(0, True, 0, ranks, True)
        return model

    for model in run_local(ranks, program):
        assert model.dtype == dtype
        np.testing.assert_array_equal(model, np.arange(100, dtype=dtype) + dtype(10 * (ranks - 1) / 2))


def test_late_rank_merges_the_newest_sum_in_every_iteration_that_it_missed() -> None:
    """Rank 1 comes when rank 0 has averaged 4 times, and rank 0 goes on when rank 1 has caught up."""
    ahead, caught_up = threading.Event(), threading.Event()

    def program(comm: LocalCommunicator) -> list[tuple[bool, int | None, float]]:
        seen = []
        model = np.full(8, 1.0)
        with GroupAllreduce(comm, model, 2, "never", timeout_s=20.0) as collective:
            if comm.rank == 1:
                assert ahead.wait(20.0)
            for _ in range(4):
                model[:] = 10.0 * comm.rank + 1.0
                outcome = collective.average()
                seen.append((outcome.fresh, outcome.merged_version, float(model[0])))
            (caught_up if comm.rank else ahead).set()
            assert caught_up.wait(20.0)
        return seen

    fast, late = run_local(2, program)
    # Rank 0 published 1.0 each time; rank 1's contribution was its initial model, 1.0: sums 2.0, means 1.0.
    assert fast == [(True, t, 1.0) for t in range(4)]
    # Rank 1 publishes 11.0, too late for versions 0 to 3: (2.0 + 11.0) / 3, each time with the sum of version 3.
    assert late == [(False, 3, (2.0 + 11.0) / 3)] * 4


def test_merge_once_merges_no_sum_twice() -> None:
    ahead = threading.Event()

    def program(comm: LocalCommunicator) -> list[AverageOutcome]:
        model = np.full(8, float(comm.rank))
        with GroupAllreduce(comm, model, 2, "never", merge_once=True, timeout_s=20.0) as collective:
            if comm.rank == 1:
                assert ahead.wait(20.0)
            outcomes = [collective.average() for _ in range(6)]
            ahead.set()
        return outcomes

    fast, late = run_local(2, program)
    assert [outcome.merged_version for outcome in fast] == list(range(6))
    assert late[0] == AverageOutcome(0, False, 5, 2, False)
    assert late[1:] == [AverageOutcome(t, False, None, 0, False) for t in range(1, 6)]


def test_records_keep_the_promises() -> None:
    iterations, ranks = 30, 4

    def program(comm: LocalCommunicator) -> Any:
        generator = np.random.default_rng(comm.rank)
        model = generator.random(500, np.float32)
        with GroupAllreduce(comm, model, 2, 5, record=True, digests=True) as collective:
            published = []
            for t in range(iterations):
                model += generator.random(500, np.float32)
                if (t + comm.rank) % 4 == 0:
                    time.sleep(0.002)
                published.append(digest(model))
                collective.average()
        return *collective.take_records(), published, digest(model)

    everyone = run_local(ranks, program)
    assert len({model for *_, model in everyone}) == 1  # the run ended with a sync
    schedule = Schedule(ranks, 2, 5)
    for rank, (executions, joined, published, model) in enumerate(everyone):
        assert [e["version"] for e in executions] == list(range(iterations))
        assert [i["iteration"] for i in joined] == list(range(iterations))
        assert [i["published_digest"] for i in joined] == published
        assert joined[-1]["model_digest"] == model
        assert sorted(r["sequence"] for r in (*executions, *joined)) == list(range(2 * iterations))
        assert {r["rank"] for r in (*executions, *joined)} == {rank}
        for execution, iteration in zip(executions, joined, strict=True):
            version = execution["version"]
            assert execution["group"] == list(schedule.group(rank, version))
            assert iteration["fresh"] == (execution["own_stamp"] == version)
            assert version - execution["own_stamp"] <= schedule.staleness_bound(version)
            assert execution["activated_ns"] <= execution["started_ns"] <= execution["completed_ns"]
            assert iteration["merged_digest"] == executions[iteration["merged_version"]]["sum_digest"]
            if iteration["fresh"]:
                assert execution["contribution_digest"] == iteration["published_digest"]
            for member in execution["group"]:
                assert everyone[member][0][version]["sum_digest"] == execution["sum_digest"]
    assert any(e["activator"] for executions, *_ in everyone for e in executions)


def test_records_use_pythons_monotonic_clock_and_are_handed_out_once() -> None:
    def program(comm: LocalCommunicator) -> None:
        before = time.monotonic_ns()
        with GroupAllreduce(comm, np.zeros(4), 1, 2, record=True) as collective:
            collective.average()
        _, iterations = collective.take_records()
        assert before <= iterations[0]["arrival_ns"] <= time.monotonic_ns()
        assert iterations[0]["published_digest"] is None  # digests are off
        assert collective.take_records() == ([], [])

    run_local(2, program)


def test_uneven_numbers_of_iterations_are_served() -> None:
    def program(comm: LocalCommunicator) -> int:
        with GroupAllreduce(comm, np.ones(4), 2, "never", record=True, timeout_s=20.0) as collective:
            for _ in range(5 * comm.rank):
                collective.average()
        return len(collective.take_records()[0])

    assert run_local(4, program) == [15] * 4


def test_first_error_is_raised_with_its_rank_and_peers_hear_of_it() -> None:
    heard = []

    def program(comm: LocalCommunicator) -> None:
        model = np.zeros(4)
        collective = GroupAllreduce(comm, model, 2, 2, timeout_s=20.0)  # no context manager: run_local tells the peers
        try:
            for t in range(100):
                if comm.rank == 2 and t == 7:
                    raise ValueError("bad batch")
                collective.average()
        except PeerFailed as error:
            heard.append(str(error))
            raise

    stopwatch = Stopwatch()
    with pytest.raises(ValueError, match="bad batch") as caught:
        run_local(4, program)
    assert caught.value.__notes__ == ["raised by rank 2 of 4"]
    assert stopwatch.seconds < 5.0  # whoever is not told waits for 20 s
    assert heard == 3 * ["rank 2 failed: ValueError: bad batch"]


def test_timeout_names_who_is_missing() -> None:
    def program(comm: LocalCommunicator) -> None:
        with GroupAllreduce(comm, np.zeros(4), 2, 1, timeout_s=0.3) as collective:
            if comm.rank == 1:
                time.sleep(2.0)
                return
            collective.average()

    with pytest.raises(CollectiveTimeout, match=r"rank [02]: version 0 \(sync .*lacks the part of rank 1 \(next version 1"):
        run_local(3, program)


def test_rank_that_does_not_return_is_named() -> None:
    release = threading.Event()
    with pytest.raises(CollectiveTimeout, match=r"rank 1 did not return within 0\.2 s"):
        run_local(2, lambda comm: release.wait(10.0) if comm.rank else None, timeout_s=0.2)
    release.set()


def test_close_after_a_limit_was_caught_tells_the_others() -> None:
    said = []

    def program(comm: LocalCommunicator) -> None:
        collective = GroupAllreduce(comm, np.ones(4, np.float32), 2, 1, timeout_s=1.0 if comm.rank == 0 else 20)
        if comm.rank == 1:
            assert gave_up.wait(20)
            with pytest.raises(PeerFailed, match="rank 0 failed: CollectiveTimeout"):
                collective.average()
            return
        with pytest.raises(CollectiveTimeout) as first:
            collective.average()
        with pytest.raises(CollectiveTimeout) as again:
            collective.close()
        gave_up.set()
        said.append(again.value is first.value)
        collective.close()  # nothing any more

    gave_up = threading.Event()
    run_local(2, program)
    assert said == [True]


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (np.zeros((2, 2)), "must be 1-D"),
        (np.zeros(8)[::2], "must be 1-D, C-contiguous"),
        (np.zeros(4, np.int64), "dtype int64: must be float32, float64 or float16"),
        (np.zeros(4, ">f8"), "must be float32, float64 or float16"),
        (np.zeros(0), "not empty"),
        ([0.0], "is a list: must be a numpy array"),
    ],
)
def test_wrong_buffer_on_one_rank_is_refused_on_all(buffer: Any, message: str) -> None:
    refused = []

    def program(comm: LocalCommunicator) -> None:
        try:
            GroupAllreduce(comm, buffer if comm.rank == 1 else np.zeros(4), 2, 2)
        except InputError as error:
            refused.append(str(error))

    run_local(3, program)
    assert len(set(refused)) == 1
    assert len(refused) == 3
    assert refused[0].startswith("rank 1: ")
    assert message in refused[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 5}, 'group_size = 5: must be "sqrt" or a whole number from 1 to the number of ranks, 2'),
        ({"group_size": "root"}, "group_size = 'root'"),
        ({"sync_period": 0}, "sync_period = 0"),
        ({"sync_period": "ever"}, "sync_period = 'ever'"),
        ({"timeout_s": 0.0}, "timeout_s = 0.0"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_local(2, lambda comm: GroupAllreduce(comm, np.zeros(4), **arguments))


def test_broadcast_copies_the_roots_array() -> None:
    def program(comm: LocalCommunicator) -> list[float]:
        model = np.full(3, float(comm.rank))
        broadcast(comm, model, 5.0, "test")
        return model.tolist()

    assert run_local(3, program) == [[0.0] * 3] * 3


def test_engines_that_differ_are_refused_on_all_ranks() -> None:
    refused = []

    def program(comm: LocalCommunicator) -> None:
        try:
            agree(comm, lambda: f"merge_once={comm.rank == 2}", 5.0)
        except InputError as error:
            refused.append(str(error))

    run_local(3, program)
    assert len(refused) == 3
    assert all("rank 2 has merge_once=True; rank 0 has merge_once=False" in text for text in refused)


def test_engine_refuses_another_array_and_another_order() -> None:
    def program(comm: LocalCommunicator) -> None:
        model = np.zeros(4)
        kernel = Engine(comm, Schedule(1, 1, 2), model)
        with pytest.raises(InputError, match="5 elements of float64: the engine was made for 4 of float64"):
            kernel.arrive(0, np.zeros(5))
        with pytest.raises(InputError, match="the engine was made for 4 of float64"):
            kernel.arrive(0, np.zeros(4, np.float32))
        with pytest.raises(ProtocolError, match=r"arrive\(3\) is not allowed: the next version is 0"):
            kernel.arrive(3, model)
        with pytest.raises(ProtocolError, match="merge without a result"):
            kernel.merge(model, 0, 1)
        kernel.arrive(0, model)
        model.flags.writeable = False
        with pytest.raises(InputError, match="read-only"):
            kernel.copy_result(model)
        kernel.copy_result(np.zeros(4))
        kernel.close()
        kernel.close()  # again: nothing
        with pytest.raises(ProtocolError, match="closed"):
            kernel.arrive(1, model)

    run_local(1, program)
