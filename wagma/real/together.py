"""Several handles that end at once: the way for programs with more than one, whose ranks take different numbers of iterations.

A rank that waits in the `close` of one handle for the others keeps those waiting who need it in a sync of another one. Nothing in a
program says at the first close that the second one follows, so the program has to: `together` closes all of them at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from wagma.errors import InputError, PeerFailed
from wagma.real.exits import is_orderly


class Handle(Protocol):
    """What takes part in collectives until it is closed: a `DistributedOptimizer` or a `GroupAllreduce`."""

    def close(self) -> None:
        """Until all ranks have closed."""

    def serve(self) -> None:
        """The part of `close` that waits for the others."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """After an error: tell the others, and wait for nobody."""


@contextmanager
def together(*handles: Handle) -> Iterator[None]:
    """`with wagma.together(generator, critic):` all of them end with the block, and serve the other ranks until all have closed each.

    In place of a `with` of each: optimizers that `wagma.distribute` has returned, and `GroupAllreduce`s. Ranks may leave the block after
    different numbers of iterations of any of them. After an error all are given up, and the other ranks raise PeerFailed.

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
        for one in handles:
            one.__exit__(type(error), error, error.__traceback__)
        raise
    _close(handles)
    if ended is not None:
        raise ended


def _serve(handles: tuple[Handle, ...]) -> None:
    """A thread for each. They share nothing: each handle has communicators, buffers and threads of its own."""
    errors: list[BaseException] = []  # appended to by the threads, read after they were joined

    def serve(one: Handle) -> None:
        try:
            one.serve()
        except BaseException as error:  # raised again below
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(one,), name="wagma-together", daemon=True) for one in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, PeerFailed)), errors[0])


def _close(handles: tuple[Handle, ...]) -> None:
    """What is left has collectives on the program's communicators: one after the other, in the same order on all ranks."""
    for one in handles:
        one.close()
