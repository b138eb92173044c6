"""Several handles that end at once: the way for programs with more than one, whose ranks take different numbers of iterations.

A rank that waits in the `close` of one handle for the others keeps those waiting who need it in a sync of another one. Nothing in a
program says at the first close that the second one follows, so the program has to: `together` closes all of them at the same time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Protocol

from wagma.errors import InputError
from wagma.real.exits import is_orderly


class Handle(Protocol):
    """What takes part in collectives until it is closed: a `DistributedOptimizer` or a `GroupAllreduce`."""

    def close(self) -> None:
        """Until all ranks have closed."""

    def serve(self) -> None:
        """The part of `close` that waits for the others."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """After an error: tell the others, and wait for nobody. Also while another thread serves, which then raises; again: nothing."""


@contextmanager
def together(*handles: Handle) -> Iterator[None]:
    """`with wagma.together(generator, critic):` all of them end with the block, and serve the other ranks until all have closed each.

    In place of a `with` of each: optimizers that `wagma.distribute` has returned, and `GroupAllreduce`s. Ranks may leave the block after
    different numbers of iterations of any of them. After an error of any all are given up, and the other ranks raise PeerFailed.

    Raises InputError for anything else, or the same one twice; what the `close` of any of them raises.
    """
    for place, one in enumerate(handles):
        if not callable(getattr(one, "serve", None)) or any(one is other for other in handles[:place]):
            what = "is there twice" if any(one is other for other in handles[:place]) else f"is a {type(one).__name__}"
            raise InputError(f"together: handle {place} {what}; must be different ones of wagma.distribute or GroupAllreduce")
    ended: SystemExit | None = None
    try:
        try:
            yield
        except SystemExit as error:
            if not is_orderly(error):
                raise
            ended = error
        _serve(handles)
    except BaseException as error:
        _give_up(handles, error)
        raise
    _close(handles)
    if ended is not None:
        raise ended


def _serve(handles: tuple[Handle, ...]) -> None:
    """A thread for each. They share nothing: each handle has communicators, buffers and threads of its own.

    Raises the first error of any. All are given up before the other threads are waited for: those serve ranks that may wait in the
    handle that has failed, and would do so until the limit. An abort from here is what a handle allows while another thread serves it.
    """
    # Put into by each thread once, taken from by this one. A SimpleQueue, since Ctrl-C has to end this wait, and finds no lock held in it.
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def serve(one: Handle) -> None:
        try:
            one.serve()
        except BaseException as error:  # raised again below
            ends.put(error)
        else:
            ends.put(None)

    threads: list[threading.Thread] = []  # that have started
    try:
        for one in handles:
            thread = threading.Thread(target=serve, args=(one,), name="wagma-together", daemon=True)
            thread.start()
            threads.append(thread)
        for _ in handles:
            error = ends.get()
            if error is not None:
                raise error
    except BaseException as error:
        _give_up(handles, error)
        raise
    finally:
        # After an error, too: what a thread still does it does to the model, which is the program's own again from here on.
        for thread in threads:
            thread.join()


def _give_up(handles: tuple[Handle, ...], error: BaseException) -> None:
    """Tell the other ranks, in each; again: nothing. What fails in one keeps none from being given up, and `error` is the one to report."""
    for one in handles:
        with suppress(BaseException):
            one.__exit__(type(error), error, error.__traceback__)


def _close(handles: tuple[Handle, ...]) -> None:
    """What is left has collectives on the program's communicators: one after the other, in the same order on all ranks.

    So an error of this rank alone, as of a trace that cannot be written, must not keep it from those that follow. Raises the first one.
    """
    first: Exception | None = None
    for place, one in enumerate(handles):
        try:
            one.close()
        except Exception as error:
            first = first or error
        except BaseException as error:  # Ctrl-C: wait for nobody
            _give_up(handles[place:], error)
            raise
    if first is not None:
        raise first
