"""The trace of a program's own loop: what `distribute(..., trace=FILE)` writes. Its scenario is made up from the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wagma.algorithms import Specification
from wagma.core.schedule import NEVER, Schedule
from wagma.real.seeing.recorder import Notes, assemble
from wagma.scenario import DTYPES, read

#: The scenario's name, since a loop of one's own has none.
NAME = "own_loop"


def write_trace(
    path: str | Path,
    specification: Specification,
    schedule: Schedule,
    model: tuple[int, str],
    notes: Sequence[Notes],
    digests: str,
) -> None:
    """Write the trace of all ranks' notes. model: number of parameters and dtype. Raises InputError if it cannot be written."""
    scenario = read(scenario_table(schedule, model, notes), str(path))
    assemble(scenario, specification.name, specification.value, notes, digests).write(path)


def scenario_table(schedule: Schedule, model: tuple[int, str], notes: Sequence[Notes]) -> dict[str, Any]:
    """A scenario of as many ranks and iterations, whose iterations take as long as those of the run on average.

    One unit of work is one step of a rank. A model in a dtype that scenarios do not know counts as float32, in which it is summed.
    """
    size, dtype = model
    own = [record.computed_ns for one in notes for record in one.iterations]
    table: dict[str, Any] = {
        "name": NAME,
        "ranks": schedule.world_size,
        "iterations": max(1, *(one.iterations[-1].iteration + 1 if one.iterations else 0 for one in notes)),
        "model": {"parameters": size, "dtype": dtype if dtype in DTYPES else "float32"},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "constant", "seconds": max(1, sum(own)) / max(1, len(own)) / 1e9},
        "algorithm": {"sync_period": "never" if schedule.sync_period == NEVER else schedule.sync_period},
    }
    if schedule.grouped:
        table["algorithm"]["group_size"] = schedule.group_size
    return table
