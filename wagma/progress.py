"""The progress line, the only one: on standard error, only on a terminal, only for what takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

SHOW_AFTER_S = 2.0
REDRAW_S = 0.1


class Progress:
    """A context manager; call it with (done, total) as the work goes on. It erases its line at the end.

    quiet: show nothing at all. stream: standard error unless given.
    """

    def __init__(self, label: str, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._enabled = not quiet and self._stream.isatty()
        self._began = self._drawn = time.monotonic()
        self._shown = False
        self._first: tuple[float, int] | None = None  # when the first part was done, and how many were by then

    def __enter__(self) -> Self:
        self._began = self._drawn = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` equal parts are done."""
        if not self._enabled:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if now - self._began < SHOW_AFTER_S or now - self._drawn < REDRAW_S:
            return
        self._drawn, self._shown = now, True
        self._stream.write(f"\r{self._line(done, total, now)}\033[K")
        self._stream.flush()

    def _line(self, done: int, total: int, now: float) -> str:
        """Percentage and time left. What came before the first part (starting ranks) says nothing of the pace."""
        assert self._first is not None
        began, before = self._first
        percentage = f"{self._label}: {100 * done / total:.0f} %"
        if done <= before or now - began < REDRAW_S:
            return percentage
        left = (now - began) * (total - done) / (done - before)
        return f"{percentage}, {left:.0f} s left" if left < 100 else f"{percentage}, {left / 60:.0f} min left"
