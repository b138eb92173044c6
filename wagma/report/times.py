"""Compute times of a run as the CSV file that `[compute] kind = "trace"` of a scenario reads."""

from __future__ import annotations

from pathlib import Path

from wagma.errors import InputError
from wagma.trace import Trace


def write_times(trace: Trace, path: str | Path) -> None:
    """Write rank,iteration,seconds of every iteration, without injected delays. Raises InputError if the file cannot be written."""
    lines = ["rank,iteration,seconds"]
    # At least a nanosecond: a clock may not have moved at all.
    lines += [f"{r.rank},{r.iteration - trace.header.begin},{max(1, r.computed_ns) / 1e9:.9f}" for r in trace.iterations]
    try:
        Path(path).write_text("\n".join(lines) + "\n", encoding="ascii")
    except OSError as error:
        raise InputError(f"--times {path}: cannot be written: {error.strerror}") from error
