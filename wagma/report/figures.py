"""What plots are drawn from: the rows of a sweep's table, or of `wagma simulate --json`, as plain cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wagma.errors import InputError
from wagma.report.rows import FIGURES, FIXED, Cells, read_rows

#: Columns that are no settings of a run.
NOT_SETTINGS = frozenset((*FIXED, *FIGURES, "scenario"))


def load_figures(paths: Iterable[str | Path]) -> list[Cells]:
    """The rows of all files: .csv, .parquet, and the JSON of results. Raises InputError if a file is none of these."""
    rows: list[Cells] = []
    for path in paths:
        found = _from_json(path) if Path(path).suffix.lower() == ".json" else read_rows(path)
        for name in ("algorithm", "ranks", "throughput"):
            if not found or name not in found[0]:
                raise InputError(f"{path}: no column {name!r}; must be what `wagma sweep` or `wagma simulate --json` wrote")
        for row in found:
            if not all(isinstance(row[name], int | float) and row[name] > 0 for name in ("ranks", "throughput")):
                raise InputError(f"{path}: ranks = {row['ranks']}, throughput = {row['throughput']}: must be numbers above 0")
        rows += found
    return rows


def _from_json(path: str | Path) -> list[Cells]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        return [_flat(document["scenario"], result) for result in document["results"]]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the JSON of results; must be what `wagma simulate --json` wrote") from error


def _flat(scenario: str, result: Mapping[str, Any]) -> Cells:
    """A result of `--json` under the names of a table's columns."""
    cells: Cells = {"scenario": scenario}
    for key, value in result.items():
        match key:
            case "throughput":
                cells["throughput"], cells["unit"] = value["value"], value["unit"].removesuffix("/s")
            case "iteration_s":
                cells |= {f"iteration_{name}_s": figure for name, figure in value.items()}
            case "staleness":
                cells |= {f"staleness_{name}": figure for name, figure in value.items()}
            case "accuracy":
                if "score" not in result:  # of results from before there were other scores
                    cells |= _score(None if value is None else {"value": value, "name": "accuracy", "direction": "up"})
            case "score":
                cells |= _score(value)
            case _:
                cells[key] = value
    return cells


def _score(score: Mapping[str, Any] | None) -> Cells:
    known = score or {}
    names = {"score": "value", "score_name": "name", "score_direction": "direction", "own_score": "own"}
    return {column: known.get(key) for column, key in names.items()}


def settings_of(rows: Sequence[Cells]) -> list[str]:
    """The varied keys that are columns of any of the rows."""
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in NOT_SETTINGS]


def select(rows: Sequence[Cells], where: Mapping[str, Any], algorithms: Sequence[str] | None) -> list[Cells]:
    """The rows with these values, of these algorithms. Raises InputError if there are none, naming what there is."""
    for key, value in where.items():
        there = list(dict.fromkeys(row.get(key) for row in rows))
        if value not in there:
            raise InputError(f"--where {key}={value}: no such row; there are {_list(there)}" if any(key in r for r in rows)
                             else f"--where {key}: no such column; there are {_list(rows[0])}")  # fmt: skip
        rows = [row for row in rows if row.get(key) == value]
    if algorithms is not None:
        there = list(dict.fromkeys(row["algorithm"] for row in rows))
        for name in algorithms:
            if name not in there:
                raise InputError(f"--algorithms {name}: no such row; there are {_list(there)}")
        rows = [row for row in rows if row["algorithm"] in algorithms]
    return list(rows)


def samples(rows: Sequence[Cells], key: Callable[[Cells], Any]) -> dict[Any, dict[Any, float]]:
    """key(row) -> seed -> throughput. Raises InputError if rows of one key and seed differ, for then a setting does."""
    found: dict[Any, dict[Any, float]] = {}
    for row in rows:
        seeds = found.setdefault(key(row), {})
        seed = row.get("seed")
        if seeds.setdefault(seed, row["throughput"]) != row["throughput"]:
            keys = [name for name in settings_of(rows) if len({str(r.get(name)) for r in rows}) > 1]
            why = f"choose with --where {keys[0]}={row.get(keys[0])}" if keys else "give them one at a time"
            raise InputError(f"{row['algorithm']} on {row['ranks']} ranks has rows of different throughput: {why}")
    return found


def unit_of(rows: Sequence[Cells]) -> str:
    """The unit of throughput, "images/s". Raises InputError if there are several."""
    units = list(dict.fromkeys(str(row.get("unit") or "work") for row in rows))
    if len(units) > 1:
        raise InputError(f"units {_list(units)}: rows of one plot must have the same unit of work")
    return f"{units[0]}/s"


def _list(values: Iterable[Any]) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
