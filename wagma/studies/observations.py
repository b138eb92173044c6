"""Throughputs that somebody measured: a CSV file with the columns workload, ranks, algorithm, throughput, and if known read_error, unit.

workload is the name of the scenario; rows of other workloads are not looked at, and further columns neither. throughput is in the
scenario's unit of work per second, read_error (0 if absent) how far off it can be.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wagma.algorithms import ALGORITHMS
from wagma.errors import InputError
from wagma.scenario import Scenario

REQUIRED = ("workload", "ranks", "algorithm", "throughput")
OPTIONAL = ("read_error", "unit")
MOST_RANKS = 1 << 24


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured throughput and how far off it can be, in units of work per second, of all ranks together."""

    ranks: int
    algorithm: str
    throughput: float
    read_error: float = 0.0


def read_observations(path: str | Path, scenario: Scenario, name: str | None = None) -> list[Observation]:
    """The rows of `path` whose workload is the scenario. Raises InputError, naming file and line, for the first row that is not good.

    name: what the user calls the file, if that is not its path.
    """
    unit = f"{scenario.work_unit}/s"
    found: dict[tuple[int, str], Observation] = {}
    others: dict[str, None] = {}
    for line, row in _rows(path):
        if row["workload"] != scenario.name:
            others[row["workload"]] = None
            continue
        where = f"{path}:{line}"
        observation = Observation(
            _ranks(where, row["ranks"]),
            _algorithm(where, row["algorithm"]),
            _number(where, "throughput", row["throughput"], positive=True),
            _number(where, "read_error", row.get("read_error") or "0", positive=False),
        )
        if row.get("unit", unit) != unit:
            raise InputError(f"{where}: unit = {row['unit']!r}: must be {unit!r}, the unit of scenario {scenario.name}")
        key = observation.ranks, observation.algorithm
        if key in found:
            raise InputError(f"{where}: {key[1]} on {key[0]} ranks: must not be there twice")
        found[key] = observation
    if not found:
        has = f"it has {', '.join(others)}" if others else "it has no rows"
        raise InputError(f"{name or path}: no row whose workload is {scenario.name!r}, the name of the scenario; {has}")
    return list(found.values())


def _rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column name of every row below the header; blank lines are skipped."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark first
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in REQUIRED if name not in header]
            if missing:
                raise InputError(
                    f"{path}:1: no column {', '.join(missing)}; must have {','.join(REQUIRED)}, and may have {','.join(OPTIONAL)}"
                )
            if len(set(header)) < len(header):
                raise InputError(f"{path}:1: a column is there twice: {','.join(header)[:80]}")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(f"{path}:{reader.line_num}: {len(row)} fields, the header has {len(header)}")
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: not UTF-8 text") from error
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def _ranks(where: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_RANKS):
        raise InputError(f"{where}: ranks = {text[:60]!r}: must be a whole number from 1 to {MOST_RANKS}")
    return int(text)


def _algorithm(where: str, text: str) -> str:
    if text not in ALGORITHMS:
        raise InputError(f"{where}: algorithm = {text[:60]!r}: unknown; allowed: {', '.join(ALGORITHMS)}")
    return text


def _number(where: str, name: str, text: str, positive: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        allowed = "greater than 0" if positive else "at least 0"
        raise InputError(f"{where}: {name} = {text[:60]!r}: must be a finite number, {allowed}")
    return value
