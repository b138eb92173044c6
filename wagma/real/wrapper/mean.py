"""Means over all ranks of what is not the model of an iteration: optimizer state, buffers, the model that is evaluated.

An engine of its own, whose every version is a sync, and not a collective of MPI: ranks that have ended still answer in it. Tensors go
through it in pieces of at most CHUNK numbers, as float64. So the mean of equal values is that value to the bit, whatever their
number (a constant in a buffer stays what it is), and the memory does not grow with the model.

A closed rank goes on contributing, in each sync, the result of the one before. Everybody knows that result, and the first cell of each
version says how many ranks have closed: so their part is taken out again. That needs finite numbers; callers leave out others.
"""

from __future__ import annotations

import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wagma.core.schedule import Schedule
from wagma.errors import CollectiveTimeout, WagmaError
from wagma.real.kernel import Engine
from wagma.real.node import Transport

Array = npt.NDArray[np.float64]

CHUNK = 1 << 18
#: Over MPI: this engine is idle nearly always, and a rank that waits in it looks all the time anyway.
IDLE_NAP_S = 0.02
_PIECES = 4  # of 16 bits: two check sums
_HEAD = 2 * _PIECES  # these numbers and their squares


@dataclass(frozen=True, slots=True)
class Present:
    """Who takes part in a meeting.

    iterations: rank -> the iteration it is in; closed ranks are missing. alike: whether all of them brought the same of each text.
    """

    iterations: dict[int, int]
    alike: tuple[bool, bool]


class EndingEngine(Engine):
    """An engine that can begin to close while its rank still waits elsewhere.

    A rank that has ended waits in the close of one engine for peers that may wait in another one for it: so both have to close at once.
    The thread that does it is there from the beginning, since Python starts none any more in an exit handler.
    """

    def __init__(self, *positional: Any, **options: Any) -> None:
        super().__init__(*positional, **options)
        # Each is set once, by the rank's own thread, and read by the closing one. `begin`: go; without it there would be no telling the
        # thread. `last`: nothing else keeps the rank any more, so a limit that is reached from now on is an error; without it a run
        # whose ranks are busy for longer than the limit between two meetings would fail when one of them ends.
        self._begin, self._last = threading.Event(), threading.Event()
        self._failure: BaseException | None = None  # written before the thread ends, read after it was joined
        # It must not keep an engine that the program has dropped, whose threads then end with it.
        self._thread = threading.Thread(target=_close_when_told, args=(weakref.ref(self), self._begin), daemon=True)
        # At exit it is closed or aborted by `wagma.real.exits`, and not by this.
        weakref.finalize(self, self._begin.set).atexit = False
        self._thread.start()

    def begin_close(self) -> None:
        """This rank comes to no further version; returns at once."""
        # After an error it still stands in a version, and is aborted: closing would be refused as a defect of wagma.
        if self.error is None:
            self._begin.set()

    def close(self) -> None:
        """Until all have closed. Raises as Engine.close does."""
        self._last.set()
        self._begin.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def abort(self, message: str) -> None:
        """As Engine.abort; the closing thread ends by it."""
        super().abort(message)
        self._begin.set()

    def close_now(self) -> None:
        """What the closing thread does."""
        while not self.ended:
            last = self._last.is_set()
            try:
                super().close()
            except CollectiveTimeout as error:
                if last:
                    self._failure = error
                    return
            except BaseException as error:  # raised again in `close`
                self._failure = error
                return


def _close_when_told(engine: weakref.ref[EndingEngine], begin: threading.Event) -> None:
    begin.wait()
    found = engine()
    if found is not None:
        found.close_now()


class Meetings:
    """One rank's side of all means. Every method is collective among the ranks that have not closed, in the same order on each.

    numbers: how many a rank will average at once at most; more only takes more versions. Raises what an Engine does.
    """

    def __init__(self, comm: Any, numbers: int, *, transport: Transport = "auto", timeout_s: float = 300.0) -> None:
        self.rank, self.size = comm.rank, comm.size
        # No watchdog: it would complain of every rank that has ended, since nothing moves here for long.
        # Cell 0 says who is here; then the cells of `meet`, which nothing large ever goes through: closed ranks would give it back.
        self._head = 1 + comm.size + _HEAD
        self._count = max(min(numbers, CHUNK), 1)
        cells = self._head + self._count
        self._engine = EndingEngine(
            comm, Schedule(comm.size, 1, 1, grouped=False), np.zeros(cells), transport=transport,
            longest_nap_s=IDLE_NAP_S, timeout_s=timeout_s, watchdog_s=0.0,
        )  # fmt: skip
        self._version = 0
        self._own = np.zeros(cells)
        self._before = np.zeros(cells)  # the result of the version before
        self._present = comm.size  # ranks that had not closed at the last version
        self._failure: BaseException | None = None  # what ended the last version

    def meet(self, iteration: int, first: str, second: str = "") -> Present:
        """Come together: who is here, in which iteration, and whether `first` and `second` are the same texts on all ranks."""
        own = np.zeros(self.size + _HEAD)
        own[self.rank] = iteration + 1
        pieces = [piece for text in (first, second) for piece in _pieces(text)]
        own[self.size : self.size + _PIECES] = pieces
        own[self.size + _PIECES :] = np.square(np.array(pieces, np.float64))
        self._exchange(own, 1)
        numbers = np.rint(own[: self.size] * self._present).astype(int)
        means, squares = own[self.size : self.size + _PIECES], own[self.size + _PIECES :]
        # Whole numbers that differ on one rank of P have a variance of (P - 1) / P^2 at least; rounding makes 1e-5 of none.
        same = squares - means * means < 0.25 / self.size
        return Present({rank: int(n) - 1 for rank, n in enumerate(numbers) if n}, (bool(same[:2].all()), bool(same[2:].all())))

    def numbers(self, values: Sequence[float]) -> Array:
        """Sums of a few finite numbers over the ranks that are here."""
        out = np.array(values, np.float64)
        for start in range(0, out.size, self._count):
            self._exchange(out[start : start + self._count], self._head)
        out *= self._present
        return out

    def average(self, tensors: Sequence[torch.Tensor], here: Sequence[bool]) -> list[int]:
        """Each tensor becomes its mean over the ranks where `here` is true for it; rounded once, equal bits everywhere.

        tensors: of any dtype and device, the same shapes on all ranks; where `here` is false, a place to put the mean into. A tensor
        that no rank has stays as it is. Returns on how many ranks each was.
        """
        owners = [round(n) for n in self.numbers([float(one) for one in here])]
        with torch.no_grad():
            flat = [t.detach().reshape(-1) for t in tensors]  # a copy where it is not contiguous
            for parts in _chunks([t.numel() for t in flat], self._count):
                self._average_chunk(flat, here, owners, parts)
            for tensor, values in zip(tensors, flat, strict=True):
                if not tensor.is_contiguous():
                    tensor.copy_(values.view(tensor.shape))
        return owners

    def _average_chunk(
        self, flat: list[torch.Tensor], here: Sequence[bool], owners: list[int], parts: list[tuple[int, slice, slice]]
    ) -> None:
        chunk = np.zeros(parts[-1][2].stop)
        values = torch.from_numpy(chunk)
        for index, source, place in parts:
            if here[index]:
                values[place].copy_(flat[index][source])
        self._exchange(chunk, self._head)
        for index, source, place in parts:
            if owners[index]:
                if owners[index] != self._present:
                    values[place].mul_(self._present / owners[index])
                flat[index][source].copy_(values[place])

    def _exchange(self, values: Array, first: int) -> None:
        """values = their mean over the ranks that have not closed; finite numbers, in the cells from `first` on."""
        closed, raw, before = self._run(values, first)
        values[:] = raw
        if closed:
            values *= self.size
            values -= closed * before
            values /= self._present
            # What the closed ranks give back next time is taken out exactly only if it is small: bring it down to a rounding error.
            self._run(raw * (-closed / self._present), first)

    def _run(self, values: Array, first: int) -> tuple[int, Array, Array]:
        """One version: how many ranks have closed, what came out in these cells, and what had come out the last time."""
        own, before, sign = self._own, self._before, 1.0 if self._version % 2 else -1.0
        cells = slice(first, first + values.size)
        own.fill(0.0)
        # Ranks that are here say `sign`, closed ones what came out the last time, when the sign was the other one.
        own[0] = sign
        own[cells] = values
        if self._failure is not None:  # this rank still stands in the version that failed, and nobody can go on from there
            raise self._failure
        try:
            self._engine.average(self._version, own)
        except BaseException as error:
            self._failure = error
            raise
        self._version += 1
        closed = round(self.size * (1 - sign * own[0]) / (1 - sign * before[0]))
        self._present = self.size - closed
        self._own, self._before = before, own
        return closed, own[cells], before[cells]

    def begin_close(self) -> None:
        """This rank comes to no further meeting; returns at once."""
        self._engine.begin_close()

    def close(self) -> None:
        """Until all ranks have closed. Raises CollectiveTimeout, PeerFailed."""
        self._engine.close()

    def abort(self, message: str) -> None:
        """As Engine.abort."""
        self._engine.abort(message)

    @property
    def failure(self) -> BaseException | None:
        """What ended a meeting: this rank still stands in it, and can neither go on nor close."""
        return self._failure

    @property
    def error(self) -> WagmaError | None:
        """Why the last call failed."""
        return self._engine.error

    @error.setter
    def error(self, error: WagmaError | None) -> None:
        self._engine.error = error


def _pieces(text: str) -> tuple[int, int]:
    number = zlib.crc32(text.encode())
    return number & 0xFFFF, number >> 16


def _chunks(sizes: Sequence[int], longest: int) -> Iterator[list[tuple[int, slice, slice]]]:
    """Cut arrays of these sizes, one after the other, into chunks: (index, where in the array, where in the chunk)."""
    parts: list[tuple[int, slice, slice]] = []
    used = 0
    for index, size in enumerate(sizes):
        start = 0
        while start < size:
            length = min(size - start, longest - used)
            parts.append((index, slice(start, start + length), slice(used, used + length)))
            start, used = start + length, used + length
            if used == longest:
                yield parts
                parts, used = [], 0
    if parts:
        yield parts
