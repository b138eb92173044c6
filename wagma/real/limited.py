"""Calls of set-up and end that give up: mpi4py's own wait for the last rank for ever, torch's for the device.

`comm` is an mpi4py communicator or a `wagma.real.local.LocalCommunicator`, whose calls have limits of their own.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.errors import CollectiveTimeout, InputError, WagmaError

LONGEST_TIMEOUT_S = 1e7
_POLL_S = 0.001
TEXT_BYTES = 500  # of a text that is told to all
_REFUSED = "error: "

#: Requests that were given up, with their buffers: MPI writes into them when the late rank comes after all.
_given_up: list[tuple[Any, ...]] = []


def ended_within(limit_s: float, call: Callable[[], object]) -> bool:
    """Whether `call`, which cannot be told to give up, ended within `limit_s` seconds; raises what it raised.

    It runs on a thread of its own, so that Ctrl-C reaches the caller meanwhile. A call that has not ended is left behind there: the
    interpreter does not wait for it, and what it raises later nobody hears.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # raised again below, on the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, name="wagma limited", daemon=True)
    thread.start()
    thread.join(limit_s)  # orders `raised` behind what the thread did, if it has ended
    if thread.is_alive():
        return False
    if raised:
        raise raised[0]
    return True


def is_local(comm: Any) -> bool:
    """Whether the ranks are threads of this process."""
    return hasattr(comm, "make_transport")


def barrier(comm: Any, timeout_s: float, what: str) -> None:
    """Until every rank is here. Raises CollectiveTimeout, naming `what` they should have come to."""
    if is_local(comm):
        comm.allgather(None, timeout_s)
    else:
        _wait(comm, comm.Ibarrier(), timeout_s, what)


def duplicate(comm: Any, timeout_s: float) -> Any:
    """A communicator of the same ranks, of one's own. Collective. Raises CollectiveTimeout if a rank does not come."""
    copy, request = comm.Idup()
    _wait(comm, request, timeout_s, "duplicate it", copy)
    return copy


def broadcast(comm: Any, array: npt.NDArray[Any], timeout_s: float, what: str) -> None:
    """Rank 0's array into everyone's. Raises CollectiveTimeout."""
    if is_local(comm):
        array[...] = comm.allgather(array.copy() if comm.rank == 0 else None, timeout_s)[0]
        return
    # Not into the caller's array: after a timeout MPI may still write.
    copy = array.copy()
    _wait(comm, comm.Ibcast(copy, 0), timeout_s, what, copy)
    array[...] = copy


def gather(comm: Any, value: Any, timeout_s: float, what: str) -> list[Any] | None:
    """Every rank's value on rank 0, None elsewhere. Raises CollectiveTimeout if a rank does not come."""
    if is_local(comm):
        everyone: list[Any] = comm.allgather(value, timeout_s)
        return everyone if comm.rank == 0 else None
    barrier(comm, timeout_s, what)  # once all are here, the rest is data
    gathered: list[Any] | None = comm.gather(value, 0)
    return gathered


def agree(comm: Any, describe: Callable[[], str], timeout_s: float) -> None:
    """Collective: go on only if `describe` gives the same text on all ranks.

    What describe refuses (WagmaError) on one rank is raised on every rank, so that none is left waiting for the one that
    gave up. Raises InputError, naming the rank at fault; CollectiveTimeout if a rank does not come.
    """
    if not hasattr(comm, "size") or not hasattr(comm, "rank"):
        raise InputError(f"comm is a {type(comm).__name__}: must be an mpi4py communicator")
    refused: WagmaError | None = None
    try:
        if not _is_limit(timeout_s):
            raise InputError(f"timeout_s = {timeout_s!r}: must be above 0 and at most {LONGEST_TIMEOUT_S:g}")
        text = describe()
    except WagmaError as error:
        refused, text = error, f"{_REFUSED}{error}"
    # From here on the same decision on every rank, from the same texts.
    texts = gather_text(comm, text, timeout_s if _is_limit(timeout_s) else 1.0)
    for rank, text in enumerate(texts):
        if text.startswith(_REFUSED):
            kind = InputError if refused is None else type(refused)
            raise kind(f"rank {rank}: {text.removeprefix(_REFUSED)}")
    usual = Counter(texts).most_common(1)[0][0]  # the first of the most common ones
    for rank, text in enumerate(texts):
        if text != usual:
            raise InputError(f"rank {rank} has {text}; rank {texts.index(usual)} has {usual}: all ranks need the same")


def _is_limit(timeout_s: object) -> bool:
    return isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool) and 0 < timeout_s <= LONGEST_TIMEOUT_S


def check_watchdog(watchdog_s: object) -> None:
    """Raise InputError unless it is 0 (never) or a time."""
    if not isinstance(watchdog_s, int | float) or not 0 <= watchdog_s <= LONGEST_TIMEOUT_S:
        raise InputError(f"watchdog_s = {watchdog_s!r}: must be from 0 (never) to {LONGEST_TIMEOUT_S:g}")


def gather_text(comm: Any, text: str, timeout_s: float) -> list[str]:
    """Every rank's text, by rank; a long one is cut (`_cut`). Raises CollectiveTimeout if a rank does not come."""
    if is_local(comm):
        texts: list[str] = comm.allgather(text, timeout_s)
        return texts
    own = np.zeros(TEXT_BYTES, np.uint8)
    raw = np.frombuffer(_cut(text), np.uint8)
    own[: raw.size] = raw
    everyone = np.zeros((comm.size, TEXT_BYTES), np.uint8)
    _wait(comm, comm.Iallgather(own, everyone), timeout_s, "create the collective", own, everyone)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in everyone]


def _cut(text: str) -> bytes:
    """At most TEXT_BYTES of it; with a check sum in place of the rest, since texts that differ at their ends only must not look alike."""
    raw = text.encode(errors="backslashreplace")
    return raw if len(raw) <= TEXT_BYTES else raw[: TEXT_BYTES - 12] + f"... {zlib.crc32(raw):08x}".encode()


def _wait(comm: Any, request: Any, timeout_s: float, what: str, *buffers: Any) -> None:
    deadline = time.monotonic() + timeout_s
    done = False
    try:
        while not (done := request.Test()):
            if time.monotonic() > deadline:
                raise CollectiveTimeout(
                    f"rank {comm.rank}: not all {comm.size} ranks of the communicator came to {what} within {timeout_s:g} s"
                )
            time.sleep(_POLL_S)
    finally:
        if not done:  # Ctrl-C, too
            _given_up.append((request, *buffers))
