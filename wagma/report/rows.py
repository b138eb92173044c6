"""The one tidy table of a sweep: a row for each run, a column for each varied key and each figure; CSV, or Parquet with pyarrow.

A file is written beside its name and then renamed, so that whoever reads it never sees half of it. `wall_s`, what a run took here, is
no column: with it no two sweeps would be equal.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wagma.errors import InputError, MissingDependencyError
from wagma.results import Result

FORMATS = (".csv", ".parquet")
#: What every run has, before its figures.
FIXED = ("ranks", "seed", "algorithm")
FIGURES = tuple(field.name for field in fields(Result) if field.name not in (*FIXED, "wall_s"))

Cells = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One run of a sweep. settings: the varied keys, dotted, and their values in this run."""

    scenario: str
    settings: Mapping[str, Any]
    seed: int
    result: Result

    def as_row(self) -> Cells:
        """Column -> value."""
        figures = asdict(self.result)
        fixed = {"ranks": self.result.ranks, "seed": self.seed, "algorithm": self.result.algorithm}
        return {"scenario": self.scenario, **self.settings, **fixed, **{name: figures[name] for name in FIGURES}}


def file_format(path: str | Path) -> str:
    """ ".csv" or ".parquet", by the suffix. Raises InputError for another one, MissingDependencyError without pyarrow."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"table {str(path)!r}: must end in {' or '.join(FORMATS)}")
    if suffix == ".parquet":
        _pyarrow()
    return suffix


def write_rows(path: str | Path, rows: Sequence[Cells]) -> None:
    """Write rows, all with the same columns. Raises InputError if the file cannot be written."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    data = _csv_bytes(rows) if file_format(path) == ".csv" else _parquet_bytes(rows)
    try:
        beside.write_bytes(data)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"table {path}: cannot be written: {error.strerror}") from error


def read_rows(path: str | Path) -> list[Cells]:
    """The rows of such a file, CSV cells as numbers, true, false and None where they are. Raises InputError if it is none."""
    try:
        if file_format(path) == ".parquet":
            return _read_parquet(path)
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"table {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not lines:
        raise InputError(f"table {path}: empty; it must begin with a line of column names")
    header, *body = lines
    for number, line in enumerate(body, 2):
        if len(line) != len(header):
            raise InputError(f"table {path}:{number}: {len(line)} cells; must be {len(header)}, as in the first line")
    return [{name: _value(cell) for name, cell in zip(header, line, strict=True)} for line in body]


def _csv_bytes(rows: Sequence[Cells]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _value(cell: str) -> Any:
    if not cell:
        return None
    if cell in ("true", "false"):
        return cell == "true"
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def _parquet_bytes(rows: Sequence[Cells]) -> bytes:
    arrow = _pyarrow()
    parquet = importlib.import_module("pyarrow.parquet")
    columns = {name: _uniform([row[name] for row in rows]) for name in rows[0]}
    sink = io.BytesIO()
    parquet.write_table(arrow.table(columns), sink)
    return sink.getvalue()


def _uniform(values: list[Any]) -> list[Any]:
    """One type for a column: numbers stay numbers; what is mixed ("sqrt", 4) becomes text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    if len(kinds) <= 1 and not kinds & {dict, list}:
        return values
    return [None if value is None else _cell(value) for value in values]


def _read_parquet(path: str | Path) -> list[Cells]:
    arrow = _pyarrow()
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        rows: list[Cells] = parquet.read_table(str(path)).to_pylist()
    except arrow.ArrowException as error:
        raise InputError(f"table {path}: not Parquet: {error}") from error
    return rows


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingDependencyError("a Parquet file needs pyarrow: pip install pyarrow; a .csv file needs nothing") from error


def column(rows: Iterable[Cells], name: str) -> list[Any]:
    """The different values of a column: numbers first, in order, then text as it comes."""
    values = list(dict.fromkeys(row[name] for row in rows))
    numbers = [value for value in values if isinstance(value, int | float)]
    return sorted(numbers) + [value for value in values if not isinstance(value, int | float)]
