"""Results and traces as pandas data frames, for notebooks. `wagma.frame`.

Columns have the types of the dataclasses' fields: whole numbers stay whole where some are missing (pandas' Int64), and true or false
stays that (boolean).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from wagma.errors import InputError, MissingDependencyError
from wagma.report.rows import Row
from wagma.results import Result
from wagma.studies.sweep import Sweep
from wagma.trace import ExchangeRecord, Execution, Iteration, Trace

#: What of a trace can become a frame.
RECORDS: dict[str, type] = {"iterations": Iteration, "executions": Execution, "exchanges": ExchangeRecord}
_TYPES = {int: "Int64", bool: "boolean", float: "float64"}


def frame(
    data: Sequence[Result] | Sequence[Row] | Sequence[Trace] | Result | Sweep | Trace, records: str = "iterations"
) -> Any:
    """A pandas DataFrame with a row for each result, run of a sweep, or record of a trace.

    Args:
        data: what `wagma.simulate` or `wagma.sweep` returned, a trace, or a list of traces, which get the columns `algorithm` and
            `ranks` to tell them apart.
        records: of traces, "iterations", "executions" or "exchanges" (docs/trace.md has their fields).

    Raises:
        InputError: anything else was given.
        MissingDependencyError: pandas is not installed.
    """
    if records not in RECORDS:
        raise InputError(f"records = {records!r}: must be one of {', '.join(RECORDS)}")
    pandas = _pandas()
    if isinstance(data, Sweep):
        data = data.rows
    items: list[Any] = list(data) if isinstance(data, list | tuple) else [data]
    if all(isinstance(item, Result) for item in items):
        return _typed(pandas, Result, items)
    if all(isinstance(item, Row) for item in items):
        return _of_rows(pandas, items)
    if all(isinstance(item, Trace) for item in items):
        frames = [_of_trace(pandas, trace, records) for trace in items]
        return pandas.concat(frames, ignore_index=True)
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    raise InputError(f"frame of {kinds}: must be results, rows of a sweep, or traces, all of one kind")


def _of_trace(pandas: Any, trace: Trace, records: str) -> Any:
    found = _typed(pandas, RECORDS[records], getattr(trace, records))
    found.insert(0, "ranks", pandas.array([len(trace.starts)] * len(found), "Int64"))
    found.insert(0, "algorithm", trace.header.algorithm)
    return found


def _of_rows(pandas: Any, rows: Sequence[Row]) -> Any:
    """Varied keys as pandas takes them, figures with their types."""
    known = get_type_hints(Result) | {"seed": int}
    cells = [row.as_row() for row in rows]
    return pandas.DataFrame({name: _column(pandas, known.get(name), [row[name] for row in cells]) for name in cells[0]})


def _typed(pandas: Any, kind: type, items: Sequence[Any]) -> Any:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    return pandas.DataFrame({name: _column(pandas, hints[name], [getattr(item, name) for item in items]) for name in names})


def _column(pandas: Any, annotation: Any, values: list[Any]) -> Any:
    lists = get_origin(annotation) is list
    choices = [annotation] if lists else [c for c in get_args(annotation) or (annotation,) if c is not type(None)]
    dtype = _TYPES.get(choices[0]) if len(choices) == 1 else None
    return values if dtype is None else pandas.array(values, dtype)


def _pandas() -> Any:
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise MissingDependencyError("a data frame needs pandas: pip install pandas") from error
