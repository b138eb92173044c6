"""How a process ends whose rank still answers others.

A progress thread that still makes MPI calls when MPI finalizes hangs or crashes the job. So whatever answers for the rank is closed
(or, after an uncaught exception, aborted) by an exit handler, which runs before mpi4py finalizes MPI.
"""

from __future__ import annotations

import atexit
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from wagma.errors import WagmaError

#: A peer's failure is raised this much later than it is heard of, so that the rank that failed prints its error first.
ORIGIN_FIRST_S = 0.25
#: After a failure a process stays this long, so that its peers can say what they saw before the job is taken down.
FAREWELL_S = 2.0


@dataclass(slots=True)
class _ExitState:
    registered: bool = False
    created: int = 0
    failed_at: float | None = None
    by_exit: SystemExit | None = None  # the last call of sys.exit


class Served(Protocol):
    """What answers for its rank until it is closed, at exit at the latest: an engine, or `wagma.real.gossip.exchange.Gossip`."""

    error: WagmaError | None

    def close(self) -> None:
        """Serve the others until all have closed."""

    def abort(self, message: str) -> None:
        """Tell them that this rank gives up."""


# By creation, which is collective: at exit all ranks close theirs in the same order. A set's order would make one rank wait in one
# engine for a peer that waits in another.
_open: dict[int, Served] = {}
_exit = _ExitState()


def serve_until_exit(served: Served) -> int:
    """Have the exit handler close it (or abort it, after an error); a number for `forget`.

    A strong reference: what the program has dropped still answers for its rank until the process exits.
    """
    number = _exit.created
    _open[number] = served
    _exit.created += 1
    _watch_exit()
    return number


def forget(number: int) -> None:
    """It has ended."""
    _open.pop(number, None)


def note_failure(wait: bool) -> None:
    """This process has to do with a failure: `wait` for the rank where it began to say so, and do not exit at once."""
    if wait:
        time.sleep(ORIGIN_FIRST_S)
    _exit.failed_at = time.monotonic()


def is_orderly(error: BaseException | None) -> bool:
    """Whether a program that ends with `error` ends well: nothing raised, or an exit with status 0."""
    return error is None or (isinstance(error, SystemExit) and not error.code)


def _watch_exit() -> None:
    """Have `_end_all` called at exit, and let it know of sys.exit: Python tells an exit handler of no SystemExit."""
    if _exit.registered:
        return
    _exit.registered = True
    atexit.register(_end_all)
    exit_before = sys.exit

    def exit_and_note(status: Any = None) -> NoReturn:
        _exit.by_exit = SystemExit(status)
        exit_before(status)

    sys.exit = exit_and_note


def _end_all() -> None:
    """At exit, before MPI finalizes: stop every progress thread."""
    uncaught: BaseException | None = getattr(sys, "last_value", None) or _exit.by_exit
    orderly = is_orderly(uncaught)
    waiting = [served.begin_close for served in _open.values() if orderly and hasattr(served, "begin_close")]
    for begin_close in waiting:  # before this rank waits anywhere else: see wagma.real.wrapper.mean.EndingEngine
        begin_close()
    for served in list(_open.values()):
        if orderly and served.error is not None:
            orderly, uncaught = False, served.error
        try:
            if orderly:
                served.close()
            else:
                served.abort(f"{type(uncaught).__name__}: {uncaught}")
        except BaseException as error:  # Ctrl-C, too: the others still have to be stopped before MPI finalizes
            orderly, uncaught = False, uncaught or error
            print(f"wagma: at exit: {error!r}", file=sys.stderr)
            served.abort(f"{type(uncaught).__name__}: {uncaught}")
    if not orderly and _exit.failed_at is not None:
        sys.stderr.flush()
        time.sleep(max(0.0, _exit.failed_at + FAREWELL_S - time.monotonic()))
