"""Letters that cannot be taken in, failures that only a second thread hears of, and what is recorded of gossip where nobody asked."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from real_ranks import Numbers

from wagma.errors import PeerFailed, WagmaError
from wagma.real.gossip import exchange as gossip_module
from wagma.real.gossip import letters_mpi
from wagma.real.gossip.letters import Kind, Letter, LocalPost
from wagma.real.local import LocalCommunicator, run_local
from wagma.real.seeing.monitor import Monitor
from wagma.trace import load_trace
from wagma.validate import validate


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("algorithm", "settings"), [("ad_psgd", {}), ("ad_psgd", {"await_averaging": True}), ("swarm_sgd", {})]
)
def test_a_dropped_optimizer_of_pairs_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, settings: dict[str, Any], steps: int
) -> None:
    """Its second activity waits for the next iteration, which never comes: it must not be what keeps the optimizer."""
    monkeypatch.setattr("wagma.real.gossip.ends.LOOK_S", 0.05)
    dropped: list[weakref.ref[Any]] = []

    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, algorithm, settings=settings)
        for t in range(steps):
            numbers.step(t)
        comm.allgather(None)  # nobody goes while somebody still asks
        parts = numbers.optimizer._parts
        dropped.extend(weakref.ref(one) for one in (parts.gossip, parts.driver))

    before = set(threading.enumerate())
    run_local(2, program)
    deadline = time.monotonic() + 20
    while (left := set(threading.enumerate()) - before) or any(one() is not None for one in dropped):
        assert time.monotonic() < deadline, left
        gc.collect()
        time.sleep(0.01)


@pytest.mark.parametrize("end", ["step", "close"])
def test_what_only_the_second_activity_has_heard_of_is_raised_by_the_first(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """It stops everything, so that nobody else could hear of it later; and its reason is what is said then, not that all has stopped."""
    monkeypatch.setattr("wagma.real.gossip.ends.LOOK_S", 0.05)
    gone: list[int] = []
    monkeypatch.setattr("wagma.real.gossip.letters.LocalPost.gone", lambda _: gone)
    heard = threading.Event()

    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, "ad_psgd", settings={"await_averaging": True})
        if comm.rank == 1:
            assert heard.wait(20)
            return
        numbers.step(0)
        gone.append(1)
        gossip = numbers.optimizer._parts.gossip
        deadline = time.monotonic() + 20
        while gossip is not None and not gossip.ended:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            with pytest.raises(PeerFailed, match="rank 1 failed: its process has ended without a word"):
                numbers.step(1) if end == "step" else gossip.close()
            if end == "close":
                gossip.close()  # once is enough
        finally:
            heard.set()

    run_local(2, program)


def test_a_post_that_breaks_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPI may refuse to receive: nobody waits for the limit then, on this rank or another one."""
    receive = LocalPost.receive

    def broken(post: LocalPost, limit_s: float) -> Letter | None:
        letter = receive(post, limit_s)
        if post.rank == 1 and letter is not None:
            raise OSError("MPI_ERR_OTHER")
        return letter

    monkeypatch.setattr(LocalPost, "receive", broken)
    said: dict[int, str] = {}

    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, "d_psgd", timeout_s=20.0)
        try:
            for t in range(20):
                numbers.step(t)
        except WagmaError as error:
            said[comm.rank] = str(error)

    began = time.monotonic()
    run_local(3, program)
    assert time.monotonic() - began < 10
    assert said.pop(1) == "rank 1: its letters cannot be taken in: OSError('MPI_ERR_OTHER')"
    assert said == dict.fromkeys((0, 2), "rank 1 failed: OSError: MPI_ERR_OTHER")


def test_a_value_that_is_still_coming_keeps_its_memory() -> None:
    """After a failure MPI may go on writing into it, while the program does something else."""
    post: Any = object.__new__(letters_mpi.MpiPost)
    letter = Letter(Kind.PARCEL, 1, value=np.zeros(8))
    post._leaving, post._sending, post._processes = [], threading.Lock(), {}
    post._coming = {1: deque([(letter, SimpleNamespace(Test=lambda: False))])}
    before = len(letters_mpi._given_up)
    try:
        post.close(0.01, together=False)
        assert any(letter in item for _, coming in letters_mpi._given_up[before:] for item in coming)
    finally:
        del letters_mpi._given_up[before:]


@pytest.mark.parametrize("algorithm", ["d_psgd", "ad_psgd"])
@pytest.mark.parametrize("record", [False, "times", True], ids=str)
def test_models_are_digested_only_where_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, record: bool | str
) -> None:
    """A digest reads the whole model, in pairs while the rank's own update waits."""
    digested = []
    monkeypatch.setattr(gossip_module, "digest", lambda value: digested.append(1) or "0" * 16)

    def program(comm: LocalCommunicator) -> list[Any]:
        numbers = Numbers(comm, algorithm, record=record)
        with numbers.optimizer:
            for t in range(3):
                numbers.step(t)
        return numbers.optimizer.notes().exchanges if record else []

    exchanges = [one for some in run_local(2, program) for one in some]
    assert bool(digested) == (record is True)
    assert bool(exchanges) == bool(record)
    for one in exchanges:
        told = [one.sent_digest, one.result_digest, *one.received_digests]
        assert told == (["0" * 16] * 3 if record is True else [None] * 2)


def test_an_average_before_a_rank_begins_is_recorded_as_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ranks leave distribute one after the other, and the first one asks at once: the clock of the others has not started."""
    path = tmp_path / "own.jsonl"
    asked = threading.Event()
    make = Monitor.__init__

    def slowly(monitor: Monitor, comm: LocalCommunicator, *rest: Any) -> None:
        make(monitor, comm, *rest)
        if comm.rank == 1:
            assert asked.wait(20)

    monkeypatch.setattr(Monitor, "__init__", slowly)

    def program(comm: LocalCommunicator) -> None:
        numbers = Numbers(comm, "ad_psgd", settings={"await_averaging": True}, trace=path)
        with numbers.optimizer:
            for t in range(3):
                numbers.step(t)
                asked.set()

    run_local(2, program)
    trace = load_trace(path)
    assert any(x.iteration < 0 for x in trace.exchanges), "nobody asked before the other one had begun"
    assert validate(trace) == []
