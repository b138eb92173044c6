"""What `wagma calibrate` may vary in a scenario: its `[calibration]` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wagma.errors import InputError
from wagma.sections import Section

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Fitting:
    """free: dotted key -> bounds. leave_out: algorithms that are no part of a fit. iterations of its simulations; None: the scenario's."""

    free: Mapping[str, Bounds] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    iterations: int | None = None


def read_fitting(section: Section, algorithms: Mapping[str, object]) -> Fitting:
    """`[calibration]`; docs/fidelity.md has the keys. `algorithms`: those that there are."""
    free = section.subsection("free")
    bounds = {key: parse_bounds(free.take(key), f"{section.source}: {free.name}.{key}") for key in free.names()}
    leave_out = section.take("leave_out", [])
    if not isinstance(leave_out, list) or not all(isinstance(name, str) and name in algorithms for name in leave_out):
        section.fail("leave_out", leave_out, f"must be an array of algorithms: {', '.join(algorithms)}")
    iterations = section.integer("iterations", 1) if "iterations" in section.names() else None
    section.finish()
    return Fitting(bounds, tuple(leave_out), iterations)


def parse_bounds(value: object, where: str) -> Bounds:
    """[low, high]. Raises InputError unless they are two finite numbers, the smaller one first."""
    if isinstance(value, list) and len(value) == 2:
        low, high = value
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in value) and -1e300 < low < high < 1e300:
            return float(low), float(high)
    raise InputError(f"{where} = {value!r}: must be [low, high], two finite numbers, the smaller one first")
