"""How ranks that gossip wait, fail and end; what they exchange is in `wagma.real.gossip.exchange`.

Ranks may end after different numbers of iterations. One that has closed goes on exchanging as long as others do, in further iterations
without an update, so that every exchange has both of its sides: none hangs, and no part of any model is lost. Pairs need no iterations:
a closed rank answers. A rank is done when all have closed and it has come to the last exchange of any of them. Where an algorithm has
collectives, too, these count as exchanges: an engine that answered for a closed rank by itself would leave the exchanges without it.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wagma.core.protocol import NONE
from wagma.errors import CollectiveTimeout, PeerFailed, WagmaError
from wagma.real.exits import forget, note_failure, serve_until_exit
from wagma.real.gossip.letters import Kind, Letter, Post, failure, message_of

OVER = 1 << 62  # beyond every iteration
LOOK_S = 1.0  # so often a rank that waits looks for ended processes, and the receiving thread whether anybody needs it
FAREWELL_S = 0.5  # limit for telling others of a failure


@dataclass(slots=True)
class Pace:
    """How far a rank's program has come. An object of its own: `wagma.real.gossip.second` waits with nothing else of the rank in hand."""

    iteration: int = NONE  # the one that it has begun
    over: bool = False  # it has ended


class Correspondence:
    """One rank's letters, and the thread that takes them in: `start` it when they can be answered, `close` or `abort` at the end.

    `changed` protects everything that letters change or that is waited for, here and in what inherits this. Its lock is never held while
    something is waited for. Letters are sent without it, but for those whose place among others matters (`join`, `take`).
    """

    def __init__(self, post: Post, timeout_s: float, watchdog_s: float, separate: bool) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.rank = post.rank
        self.size = post.size
        self.ended = False
        self.error: WagmaError | None = None  # why the last call failed, if this has not ended
        self.iterate: Callable[[], None] | None = None  # of the driver: one more iteration, without an update
        self.second: threading.Thread | None = None  # of the driver: the second activity's
        self.post = post
        self._timeout_s = timeout_s
        self._watchdog_s = watchdog_s
        # ---- what `changed` protects
        self.pace = Pace()
        self.averaged = OVER  # the last iteration that its second activity has done with; OVER: it has none, or all of them
        self._joined = dict.fromkeys(range(self.size), NONE)  # to which iteration's exchanges a rank has come; see `join`
        self._closed: set[int] = set()
        self._done: set[int] = set()
        self._failure: WagmaError | None = None
        self._unheard: WagmaError | None = None  # what ended the second activity, until the first one has raised it
        self._last_sign = time.monotonic()
        # ---- end of what `changed` protects
        self._announced = False
        self._stopped = threading.Event()
        target = weakref.ref(self), post, self._stopped
        self._thread = threading.Thread(target=_receive, args=target, name=f"wagma-letters-{self.rank}", daemon=True)
        self._number = serve_until_exit(self) if separate else None
        if not separate:  # ranks as threads may drop theirs, and nobody answers for them then
            dropped = failure(self.rank, self.rank, "its optimizer was dropped without being closed")
            self._finalizer = weakref.finalize(self, post.send, self._others, dropped)
            self._finalizer.atexit = False

    @property
    def iteration(self) -> int:
        """The one that the rank has begun."""
        return self.pace.iteration

    @property
    def over(self) -> bool:
        """Whether its program has ended."""
        return self.pace.over

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def start(self) -> None:
        """From now on letters are answered."""
        self._thread.start()

    def begin(self, iteration: int) -> None:
        """The rank's first activity begins an iteration."""
        with self.changed:
            self.pace.iteration = iteration
            self._tell(self._closed)
            self.changed.notify_all()

    def join(self, iteration: int) -> None:
        """The rank comes to an exchange, a barrier or a collective: those that have closed have to come, too.

        In one step with looking who has closed: one that closes in between would be told neither here nor when its letter comes.
        """
        with self.changed:
            self._joined[self.rank] = iteration
            self._tell(self._closed)

    def _tell(self, ranks: Iterable[int]) -> None:
        """Also a sign of life, for those who wait for this rank to close."""
        if not self.over:
            self.post.send(ranks, Letter(Kind.JOINED, self.rank, self._joined[self.rank]))

    # -- the second activity -----------------------------------------------------------------------------------------------

    def has_averaged(self, iteration: int = OVER) -> None:
        """The second activity has done with `iteration`, or with all of them."""
        with self.changed:
            self.averaged = iteration
            self.changed.notify_all()

    def await_averaging(self, iteration: int) -> None:
        """Of the first activity: until the second one has done with `iteration`."""
        self.wait(lambda: self.averaged >= iteration, lambda: f"iteration {iteration} lacks the average of the second activity")

    def fail(self, error: BaseException) -> None:
        """The second activity has failed: the first one raises that when it waits next."""
        with self.changed:
            if self._failure is None:
                own = (
                    error if isinstance(error, WagmaError) else WagmaError(f"rank {self.rank}: its second activity: {error!r}")
                )
                self._failure = self._unheard = own
            self.averaged = OVER
            self.changed.notify_all()

    # -- letters -----------------------------------------------------------------------------------------------------------

    def take(self, letter: Letter) -> None:
        """Of the receiving thread: what a letter brings."""
        with self.changed:
            self._last_sign = time.monotonic()
            match letter.kind:
                case Kind.JOINED:
                    self._joined[letter.sender] = letter.version
                case Kind.CLOSED:
                    self._joined[letter.sender] = letter.version
                    self._closed.add(letter.sender)
                    self._tell([letter.sender])
                case Kind.DONE:
                    self._done.add(letter.sender)
                case Kind.FAILED:
                    self._failure = self._failure or PeerFailed(f"rank {letter.version} failed: {message_of(letter)}")
                case _:
                    self.take_content(letter)
            self.changed.notify_all()

    def take_content(self, letter: Letter) -> None:
        """The same of what is no business of this class. Under the lock."""
        raise NotImplementedError

    def break_down(self, error: BaseException) -> None:
        """The receiving thread cannot go on: nor can this rank, and the others hear of it."""
        self.fail(WagmaError(f"rank {self.rank}: its letters cannot be taken in: {error!r}"))
        self.post.send(self._others, failure(self.rank, self.rank, f"{type(error).__name__}: {error}"))

    def wait(
        self, ready: Callable[[], bool], what: Callable[[], str], limit_s: float | None = None, by_signs: bool = False
    ) -> None:
        """Until `ready`, which is asked under the lock. by_signs: the limit counts from the last letter, whatever that was.

        Raises CollectiveTimeout, which says `what` was waited for; PeerFailed.
        """
        limit_s = self._timeout_s if limit_s is None else limit_s
        began = said = looked = time.monotonic()
        quantum = min(LOOK_S, self._watchdog_s or LOOK_S)
        suspects: set[int] = set()
        with self._noting_failure(), self.changed:
            while not ready():
                self.post.wake()
                self._raise_failure()
                now = time.monotonic()
                since = max(began, self._last_sign) if by_signs else began
                if now - since > limit_s:
                    raise CollectiveTimeout(f"rank {self.rank}: {what()} after {limit_s:g} s")
                if 0 < self._watchdog_s <= now - max(said, since):
                    said = now
                    where = f"rank {self.rank} of {self.size} ({self.post.name})"
                    print(f"wagma: {where}: {what()} after {now - began:.3g} s", file=sys.stderr, flush=True)
                if now - looked > LOOK_S:
                    looked, suspects = now, self._look_for_ended(suspects)
                self.changed.wait(min(quantum, max(0.0, since + limit_s - now) + 0.001))

    def look_for_ended(self, suspects: set[int]) -> set[int]:
        """Ranks whose processes have ended. Raises PeerFailed if one of the `suspects`, whom the look before found, is still among them.

        Twice, a moment apart: the first time the last letters of one that ended in order may still be on their way.
        """
        with self._noting_failure(), self.changed:
            return self._look_for_ended(suspects)

    def _look_for_ended(self, suspects: set[int]) -> set[int]:
        gone = set(self.post.gone()) - self._done
        if certain := sorted(gone & suspects):
            told = failure(self.rank, certain[0], "its process has ended without a word")
            self.post.send(set(self._others) - gone, told)
            raise PeerFailed(f"rank {certain[0]} failed: {message_of(told)}")
        return gone

    def check(self) -> None:
        """Raise what has been heard of meanwhile: PeerFailed, or what ended the second activity."""
        with self._noting_failure(), self.changed:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            if threading.current_thread() is not self.second:
                self._unheard = None
            raise self._failure

    # -- the end -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Serve the others until all have closed; again: nothing. Raises CollectiveTimeout if nothing comes any more, PeerFailed."""
        with self.changed:
            if self.ended:
                unheard, self._unheard = self._unheard, None
                if unheard is not None:  # of the second activity, which has ended everything
                    raise unheard
                return
            self.pace.over = True
            self.changed.notify_all()
        self.wait(lambda: self.averaged == OVER, lambda: "the second activity has not ended")
        self.check()  # what it was ended by: nothing below may have to wait, and see it
        if not self._announced:  # else a close that ran into its limit is tried again
            self._announced = True
            self.post.send(self._others, Letter(Kind.CLOSED, self.rank, self._joined[self.rank]))
        with self._noting_failure():
            self._go_on()
        self.post.send(self._others, Letter(Kind.DONE, self.rank))
        self.wait(lambda: len(self._done) == self.size - 1, lambda: self._closing(self._done), by_signs=True)
        self._stop(self._timeout_s, together=True)
        self.check_done()

    def _go_on(self) -> None:
        """Until all have closed: take part in every exchange that somebody comes to."""
        others = self._others

        def behind() -> bool:
            last = max((self._joined[rank] for rank in others), default=NONE)
            return NONE < last >= self.iteration

        while True:
            self.wait(lambda: behind() or len(self._closed) == len(others), lambda: self._closing(self._closed), by_signs=True)
            with self.changed:
                if not behind():
                    return
            assert self.iterate is not None
            self.iterate()

    def _closing(self, over: set[int]) -> str:
        left = listed(set(self._others) - over)
        return f"has closed, and heard nothing from anybody, while {left} {'have' if ',' in left else 'has'} not closed,"

    def check_done(self) -> None:
        """Raise WagmaError if something was sent here that nobody took."""

    def abort(self, message: str) -> None:
        """Tell the others, who raise PeerFailed, and stop without waiting for them; again or after close: nothing."""
        if self.ended:
            return
        self.post.send(self._others, failure(self.rank, self.rank, message))
        self._failed(WagmaError(f"rank {self.rank}: the optimizer is closed"), wait=False)

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except PeerFailed as error:
            self._failed(error, wait=True)
            raise
        except WagmaError as error:
            self.error = error
            raise

    def _failed(self, why: WagmaError, wait: bool) -> None:
        with self.changed:  # both activities may come here at once, and one of them has to stop everything
            if self.ended:
                return
            self.ended = True
            self._failure = self._failure or why
            if threading.current_thread() is self.second:
                self._unheard = self._failure
        self._stop(FAREWELL_S, together=False)
        if self._number is not None:
            note_failure(wait)

    def _stop(self, limit_s: float, together: bool) -> None:
        self.ended = True
        with self.changed:
            self.pace.over = True  # the second activity, too
            self._failure = self._failure or WagmaError(f"rank {self.rank}: the optimizer is closed")
            self.changed.notify_all()
        self._stopped.set()
        self.post.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self.post.close(limit_s, together)
        if self._number is None:
            self._finalizer.detach()
        else:
            forget(self._number)


def _receive(reference: weakref.ref[Correspondence], post: Post, stopped: threading.Event) -> None:
    """The thread: it holds what it works for only while there is work, so that what is dropped goes."""
    while not stopped.is_set():
        letter, problem = None, None
        try:
            letter = post.receive(LOOK_S)
        except BaseException as error:  # of MPI: without a word of it all ranks would wait until their limits
            problem = error
        correspondence = reference()
        if correspondence is None:
            return
        try:
            if problem is not None:
                raise problem
            if letter is not None:
                correspondence.take(letter)
        except BaseException as error:
            correspondence.break_down(error)
            return
        del correspondence


def listed(ranks: Iterable[int]) -> str:
    """In words: rank 2; ranks 0, 1."""
    numbers = sorted(ranks)
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
