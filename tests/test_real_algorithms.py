"""Algorithms without collectives, and those of gradients, on real ranks: nothing is lost, nobody hangs, and every end is told."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")
pytest.importorskip("sklearn")

from real_ranks import Numbers, total, train_locally  # noqa: E402  after the checks that they can be imported

from wagma.errors import CollectiveTimeout, InputError, PeerFailed  # noqa: E402
from wagma.real.gossip import letters_mpi  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402
from wagma.real.wrapper.distribute import distribute  # noqa: E402
from wagma.scenario import load  # noqa: E402
from wagma.validate import validate  # noqa: E402

GOSSIP = ("d_psgd", "sgp", "ad_psgd", "swarm_sgd")
#: Also where a rank waits for another one in a barrier, or for its own second activity, and where both sides of pairs ask.
VARIANTS = (
    ("d_psgd", {}), ("d_psgd", {"global_clock": True}), ("sgp", {"out_neighbours": 2}), ("sgp", {"global_clock": True}),
    ("ad_psgd", {}), ("ad_psgd", {"all_ask": True, "await_averaging": True}), ("swarm_sgd", {"local_steps": 2}),
)  # fmt: skip


def lateness(rank: int, iteration: int) -> float:
    return 0.006 if (3 * rank + iteration) % 4 == 0 else 0.0


# -- what must not be lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "settings"), VARIANTS, ids=str)
@pytest.mark.parametrize("counts", [(12, 12, 12, 12), (3, 11, 0, 7), (9, 2, 5)], ids=str)
def test_the_mean_of_all_models_moves_by_updates_alone(algorithm: str, settings: dict[str, Any], counts: Sequence[int]) -> None:
    """Also where ranks end after different numbers of iterations: whatever others send to one that has closed is not lost."""

    def program(comm: LocalCommunicator) -> tuple[float, int]:
        numbers = Numbers(comm, algorithm, settings=settings, record=True)
        with numbers.optimizer:
            for t in range(counts[comm.rank]):
                time.sleep(lateness(comm.rank, t) / 3)
                numbers.step(t)
        return numbers.value, len(numbers.optimizer.notes().exchanges)

    models, exchanges = zip(*run_local(len(counts), program), strict=True)
    assert sum(models) == pytest.approx(total(counts), rel=1e-12)
    assert sum(exchanges) > 0
    if len(set(counts)) == 1:  # else some have averaged while others had hardly begun
        assert max(models) - min(models) < total([0] * 3 + [12]) - total([12])


@pytest.mark.parametrize("algorithm", [*GOSSIP, "eager_sgd"])
@pytest.mark.parametrize("counts", [None, (3, 10, 0, 6)], ids=["even", "uneven"])
def test_every_promise_holds_with_late_ranks(algorithm: str, counts: Sequence[int] | None) -> None:
    scenario = load("digits", {"iterations": 10, "imbalance": [], "algorithm.sync_period": 4})
    trace = train_locally(scenario, algorithm, lateness, counts)
    assert validate(trace) == []
    done = [sum(a.iteration >= 0 for a in trace.iterations if a.rank == rank) for rank in range(4)]
    if counts is None:
        assert done == [10] * 4
    elif algorithm in ("d_psgd", "sgp"):  # who has closed goes on without updates, so that the others have their neighbours
        assert done == [10] * 4
        skipped = [sum(a.skipped for a in trace.iterations if a.rank == rank) for rank in range(4)]
        assert skipped == [10 - count for count in counts]
    else:
        assert done == list(counts)
    if algorithm == "eager_sgd":
        retracted = [a for a in trace.iterations if a.retracted_ns is not None]
        assert retracted, "no late gradient: the run was too tame to show anything"
        assert any(e.own_stamp < 0 for e in trace.executions), "no null contribution"
    else:
        roles = {x.role for x in trace.exchanges}
        assert roles == ({"neighbours"} if algorithm in ("d_psgd", "sgp") else {"active", "passive"})


def test_a_gradient_is_that_of_the_model_as_it_was_when_it_began() -> None:
    """While a rank computes its partner averages with the original; the parameters stay what they are until the step."""
    asked = threading.Event()

    def program(comm: LocalCommunicator) -> float:
        numbers = Numbers(comm, "ad_psgd", settings={"await_averaging": True})
        with numbers.optimizer:
            if comm.rank == 0:  # it asks at once, and again in iteration 1
                numbers.step(0)
                numbers.step(1)
                asked.set()
                return numbers.value
            assert asked.wait(20)
            assert numbers.value == 0.0  # twice averaged, and not to be seen
            numbers.step(0)
            return numbers.value

    run_local(2, program)


def test_settings_reach_the_algorithm() -> None:
    def program(comm: LocalCommunicator) -> Any:
        numbers = Numbers(comm, "sgp", settings={"out_neighbours": 2}, record=True)
        with numbers.optimizer:
            numbers.step(0)
        return numbers.optimizer.notes().exchanges

    for rank, records in enumerate(run_local(4, program)):
        assert [record.to for record in records] == [[(rank + 1) % 4, (rank + 2) % 4]]


@pytest.mark.parametrize(
    ("algorithm", "options", "complaint"),
    [
        ("sgp", {"settings": {"out_neighbours": 0}}, "settings: out_neighbours = 0: must be a whole number, at least 1"),
        ("sgp", {"settings": {"local_steps": 2}}, "settings: local_steps = 2: unknown key; allowed: out_neighbours, global_clock"),
        ("d_psgd", {"resident": True}, "resident = True: d_psgd averages no models in collectives; must be False, or the algorithm"),
        ("eager_sgd", {"resident": True}, "resident = True: eager_sgd averages no models"),
        ("eager_sgd", {"settings": {"initiators": 5}}, "initiators = 5: must be .* from 1 to the number of ranks, 2"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(algorithm: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        run_local(2, lambda comm: Numbers(comm, algorithm, **options))
    assert "\n" not in str(caught.value)


# -- how it ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "settings"), [*VARIANTS, ("eager_sgd", {})], ids=str)
def test_an_error_on_one_rank_ends_the_others(algorithm: str, settings: dict[str, Any]) -> None:
    said: list[str] = []

    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, algorithm, settings=settings)
        try:
            with numbers.optimizer:
                for t in range(200):
                    if comm.rank == 1 and t == 3:
                        raise ValueError("bad batch")
                    time.sleep(0.005)
                    numbers.step(t)
        except PeerFailed as error:
            said.append(str(error))
            with pytest.raises(PeerFailed):  # and again
                numbers.step(200)
            raise

    began = time.monotonic()
    with pytest.raises(ValueError, match="bad batch"):
        run_local(3, program)
    assert said == ["rank 1 failed: ValueError: bad batch"] * 2
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("algorithm", "settings", "complaint"),
    [
        ("d_psgd", {}, "rank [02]: the exchange of iteration 0 lacks the model of rank 1 after 0.3 s"),
        ("sgp", {}, "rank [02]: the exchange of iteration 0 lacks the model of rank 1 after 0.3 s"),
        ("d_psgd", {"global_clock": True}, "rank [02]: the barrier of iteration 0 lacks rank 1 after 0.3 s"),
    ],
)
def test_a_limit_says_what_was_waited_for(algorithm: str, settings: dict[str, Any], complaint: str) -> None:
    done = threading.Event()

    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, algorithm, settings=settings, timeout_s=0.3 if comm.rank != 1 else 20.0)
        if comm.rank == 1:
            assert done.wait(20)
            return
        try:
            numbers.step(0)
        except PeerFailed:  # the first one to give up says why
            return
        except CollectiveTimeout:
            done.set()
            raise

    with pytest.raises(CollectiveTimeout, match=complaint):
        run_local(3, program)


def test_closing_has_a_limit_that_counts_from_the_last_sign_of_life() -> None:
    """Rank 0 serves for longer than its limit, since rank 1 goes on; then rank 1 stays away."""
    gave_up = threading.Event()

    def program(comm: LocalCommunicator) -> float:
        numbers = Numbers(comm, "d_psgd", timeout_s=0.6 if comm.rank == 0 else 20.0)
        if comm.rank == 0:
            began = time.monotonic()
            with pytest.raises(CollectiveTimeout, match=r"rank 0: has closed, .* while rank 1 has not closed, after 0\.6 s"):
                numbers.optimizer.close()
            gave_up.set()
            numbers.optimizer.close()  # once more, and the other one has closed
            return time.monotonic() - began
        for t in range(6):
            time.sleep(0.2)
            numbers.step(t)
        assert gave_up.wait(20)
        numbers.optimizer.close()
        return 0.0

    assert run_local(2, program)[0] > 1.2 + 0.6


def test_the_watchdog_says_what_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, "d_psgd", watchdog_s=0.1)
        with numbers.optimizer:
            time.sleep(1.5 * comm.rank)
            numbers.step(0)

    run_local(2, program)
    said = r"wagma: rank 0 of 2 \(threads\): the exchange of iteration 0 lacks the model of rank 1 after [\d.]+ s"
    assert re.search(said, capfd.readouterr().err)


def test_a_process_that_has_ended_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By who waits for it, after a moment in which its last letters could come."""
    monkeypatch.setattr("wagma.real.gossip.ends.LOOK_S", 0.1)
    gone: list[int] = []
    monkeypatch.setattr("wagma.real.gossip.letters.LocalPost.gone", lambda _: gone)
    said = threading.Event()

    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, "d_psgd")
        if comm.rank == 1:
            gone.append(1)
            assert said.wait(20)
            return
        try:
            numbers.step(0)
        finally:
            said.set()

    with pytest.raises(PeerFailed, match="rank 1 failed: its process has ended without a word"):
        run_local(3, program)


def test_a_process_is_seen_to_end_before_its_parent_asks() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watched = letters_mpi._watch(child.pid)
    assert watched is not None
    try:
        assert not letters_mpi._can_be_read(watched)
        child.kill()
        deadline = time.monotonic() + 10
        while not letters_mpi._can_be_read(watched):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.close(watched)
        child.kill()
        child.communicate()
    assert letters_mpi._watch(2**22 + 1) is None


def test_a_dropped_optimizer_fails_its_neighbours() -> None:
    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, "d_psgd")
        if comm.rank == 1:
            dropped = weakref.ref(numbers.optimizer._parts.gossip)
            del numbers
            for _ in range(1000):  # the thread that receives may have it in hand just then
                if dropped() is None:
                    break
                gc.collect()
                time.sleep(0.01)
            return
        with numbers.optimizer:
            numbers.step(0)

    with pytest.raises(PeerFailed, match="rank 1 failed: its optimizer was dropped without being closed"):
        run_local(2, program)


def test_distribute_needs_an_optimizer_that_is_closed_once_only() -> None:
    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, "swarm_sgd")
        numbers.step(0)
        numbers.optimizer.close()
        numbers.optimizer.close()
        again = distribute(torch.optim.SGD(numbers.model.parameters(), lr=1.0), numbers.model, "ad_psgd", comm=comm)
        again.close()

    run_local(2, program)
