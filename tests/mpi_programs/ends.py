"""The ways in which a run can end; the argument names one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from ranks import COMM, RANK, say

from wagma import CollectiveTimeout, GroupAllreduce, PeerFailed

MODEL = np.full(1000, float(RANK), np.float32)
FOREVER = 10**6

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    """Its name is what the argument has to be."""
    CASES[function.__name__] = function
    return function


def average(iterations: int, at: int = -1, then: Callable[[], object] | None = None) -> None:
    """Average under a context manager; rank 1 does `then` in iteration `at`."""
    with GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=40.0) as collective:
        go_on(collective, iterations, at, then)


def go_on(collective: GroupAllreduce, iterations: int, at: int = -1, then: Callable[[], object] | None = None) -> None:
    """The same in a collective that is there."""
    for t in range(iterations):
        if t == at and RANK == 1:
            then()
        if t == 1 and iterations == FOREVER:
            say("running")
        collective.average()
        time.sleep(0.002)


def bad_batch() -> None:
    """Rank 1's own error."""
    raise ValueError("bad batch")


@case
def error() -> None:
    """One rank's exception leaves the context manager."""
    average(FOREVER, 20, bad_batch)


@case
def error_outside() -> None:
    """No context manager: the exit handler has to tell the peers."""
    go_on(GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=40.0), FOREVER, 20, bad_batch)


@case
def leave() -> None:
    """No context manager, and no exception that Python would tell an exit handler of."""
    go_on(GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=40.0), FOREVER, 20, lambda: sys.exit("bad configuration"))


@case
def caught() -> None:
    """The program survives the failure of a peer, everywhere, and ends in order."""
    try:
        average(FOREVER, 20, bad_batch)
    except (ValueError, PeerFailed) as error:
        say(f"caught {type(error).__name__}: {error}")


@case
def kill() -> None:
    """A rank dies without a word."""
    average(FOREVER, 20, lambda: os.kill(os.getpid(), signal.SIGKILL))


@case
def interrupt() -> None:
    """Rank 1 stays away from a sync, so that the others are waiting inside the engine when the signal comes."""
    average(FOREVER, 3, lambda: time.sleep(30))


@case
def interrupt_one() -> None:
    """The signal arrives while rank 1's main thread waits inside the kernel: nobody else comes to the first sync."""
    with GroupAllreduce(COMM, MODEL, 2, 1, timeout_s=40.0) as collective:
        if RANK == 1:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            time.sleep(2.0)
        collective.average()


@case
def mismatch() -> None:
    """One rank's model is shorter."""
    GroupAllreduce(COMM, MODEL[: 999 if RANK == 2 else 1000], 2, 4)


@case
def refused() -> None:
    """One rank's model has a shape that none may have."""
    GroupAllreduce(COMM, MODEL.reshape(10, 100) if RANK == 2 else MODEL, 2, 4)


@case
def absent() -> None:
    """One rank never comes to the creation."""
    if RANK == 1:
        time.sleep(3)
    else:
        GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=0.5)


@case
def late_at_creation() -> None:
    """The others have given up when rank 1 comes: what MPI then writes must not land in memory that is used again."""
    if RANK == 1:
        time.sleep(2)
    try:
        GroupAllreduce(COMM, MODEL, 2, 4, timeout_s=0.3)
    except CollectiveTimeout:
        say("gave up")
    arrays = [np.zeros(size, np.uint8) for size in (500, 2000) for _ in range(200)]
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        COMM.Iprobe()  # lets MPI make progress
        time.sleep(0.001)
    assert not any(array.any() for array in arrays)
    say("clean")


@case
def no_close() -> None:
    """Ranks leave at different times, without a word to the collective."""
    collective = GroupAllreduce(COMM, MODEL, 2, "never", timeout_s=40.0)
    for _ in range(10 + 20 * RANK):
        collective.average()
    say(f"done {RANK}")


@case
def dropped() -> None:
    """Nothing refers to the engine any more, and the others still need this rank."""
    for _ in range(3):
        GroupAllreduce(COMM, MODEL, 2, "never", timeout_s=40.0).average()
    say("done")


@case
def timeout() -> None:
    """A rank stays away from a sync for longer than the others may wait."""
    with GroupAllreduce(COMM, MODEL, 2, 1, timeout_s=1.0) as collective:
        if RANK == 1:
            time.sleep(20)
        collective.average()


CASES[sys.argv[1]]()
