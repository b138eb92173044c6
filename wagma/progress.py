"""The progress line, the only one: on standard error, and only for what takes longer than two seconds.

On a terminal it is redrawn and erased at the end; where `every_s` is given, whatever else standard error is gets a line that often.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

SHOW_AFTER_S = 2.0
REDRAW_S = 0.1


class Line:
    """One line that changes. stream: standard error unless given. every_s: None: show nothing unless it is a terminal."""

    def __init__(self, every_s: float | None = None, stream: TextIO | None = None) -> None:
        self._stream: TextIO | None = sys.stderr if stream is None else stream  # None: closed by whoever started the process
        self._terminal = self._stream is not None and self._stream.isatty()
        self._every_s = REDRAW_S if self._terminal else None if self._stream is None else every_s
        self._due = time.monotonic() + (SHOW_AFTER_S if self._terminal else every_s or 0.0)
        self._shown = False

    @property
    def enabled(self) -> bool:
        """Whether anything would ever be seen."""
        return self._every_s is not None

    def is_due(self) -> bool:
        """Whether it is time to show something."""
        return self._every_s is not None and time.monotonic() >= self._due

    def show(self, text: str) -> None:
        """Show `text`, on a terminal in the place of what was shown before."""
        self._due = time.monotonic() + (self._every_s or 0.0)
        if self._stream is None:
            return
        self._shown = self._terminal
        self._stream.write(f"\r{text}\033[K" if self._terminal else f"{text}\n")
        self._stream.flush()

    def erase(self) -> None:
        """Leave nothing on a terminal."""
        if self._shown and self._stream is not None:
            self._shown = False
            self._stream.write("\r\033[K")
            self._stream.flush()


class Progress:
    """A context manager; call it with (done, total) as the work goes on. It erases its line at the end.

    quiet: show nothing at all. stream: standard error unless given. every_s: as often a line where standard error is no terminal.
    """

    def __init__(self, label: str, quiet: bool = False, stream: TextIO | None = None, every_s: float | None = None) -> None:
        self._label = label
        self._quiet = quiet
        self._stream = stream
        self._every_s = every_s
        self._line = Line(every_s, stream)
        self._first: tuple[float, int] | None = None  # when the first part was done, and how many were by then

    def __enter__(self) -> Self:
        self._line = Line(self._every_s, self._stream)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line.erase()

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Say that `done` of `total` equal parts are done, and `text` of what they show."""
        if self._quiet or not self._line.enabled:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if self._line.is_due():
            self._line.show(", ".join(part for part in (self._pace(done, total, now), text) if part))

    def _pace(self, done: int, total: int, now: float) -> str:
        """Percentage and time left. What came before the first part (starting ranks) says nothing of the pace."""
        assert self._first is not None
        began, before = self._first
        percentage = f"{self._label}: {100 * done / total:.0f} %"
        if done <= before or now - began < REDRAW_S:
            return percentage
        left = (now - began) * (total - done) / (done - before)
        return f"{percentage}, {left:.0f} s left" if left < 100 else f"{percentage}, {left / 60:.0f} min left"
