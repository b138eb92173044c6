"""Compute times that the user measured: a CSV file with the header rank,iteration,seconds, each rank and iteration once."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wagma.errors import InputError

HEADER = ["rank", "iteration", "seconds"]


def read_csv(path: Path, longest_s: float) -> npt.NDArray[np.float64]:
    """Seconds as an array [rank, iteration]. Raises InputError, naming file and line, unless every cell is there and sensible.

    The file is read each time, since it may have changed; what it says is worked out once (a sweep reads it for each of its points).
    The array is shared, and cannot be written to.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: cannot be read: neither a pipe nor a device can be read again for each run")
    try:
        return _parse(path, path.read_bytes(), longest_s)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=4)
def _parse(path: Path, content: bytes, longest_s: float) -> npt.NDArray[np.float64]:
    cells: dict[tuple[int, int], float] = {}
    for line, row in _rows(path, content):
        if len(row) != len(HEADER):
            raise InputError(f"{path}:{line}: {len(row)} fields; a row is {','.join(HEADER)}")
        place = _index(path, line, "rank", row[0]), _index(path, line, "iteration", row[1])
        if place in cells:
            raise InputError(f"{path}:{line}: rank = {place[0]}, iteration = {place[1]}: must not be there twice")
        cells[place] = _seconds(path, line, row[2], longest_s)
    if not cells:
        raise InputError(f"{path}: no times; below the header a row is {','.join(HEADER)}")
    ranks, iterations = (1 + max(place[axis] for place in cells) for axis in (0, 1))
    if len(cells) < ranks * iterations:
        # The first gap comes no later than the number of cells, however large the largest rank.
        rank, iteration = next((r, t) for r in range(ranks) for t in range(iterations) if (r, t) not in cells)
        raise InputError(
            f"{path}: rank = {rank}, iteration = {iteration}: missing; there must be every rank from 0 to {ranks - 1} in every "
            f"iteration from 0 to {iterations - 1}"
        )
    seconds = np.empty((ranks, iterations))
    for place, value in cells.items():
        seconds[place] = value
    seconds.flags.writeable = False
    return seconds


def _rows(path: Path, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row below the header; blank lines, which editors leave at the end, are skipped."""
    try:
        text = content.decode("utf-8-sig")  # spreadsheets put a byte order mark first
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        if header != HEADER:
            raise InputError(f"{path}:1: the header is {','.join(header)[:60]!r}: must be {','.join(HEADER)}")
        for row in reader:
            if row:
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: not UTF-8 text") from error
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def _index(path: Path, line: int, key: str, text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InputError(f"{path}:{line}: {key} = {text[:60]!r}: must be a whole number, at least 0")
    return int(text)


def _seconds(path: Path, line: int, text: str, longest_s: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= longest_s:
        raise InputError(
            f"{path}:{line}: seconds = {text.strip()[:60]!r}: must be a finite number, greater than 0 and at most {longest_s:g}"
        )
    return value
