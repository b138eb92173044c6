"""Whether a simulation fits in memory: asked before it starts, since one that does not ends in the middle of the night.

The figures per rank and iteration were measured (docs/engines.md); they are what a run needs at its peak, the computing of its
figures included, rounded up.
"""

from __future__ import annotations

import resource
from pathlib import Path

from wagma.core.schedule import NEVER
from wagma.errors import InputError
from wagma.scenario import Scenario

#: Fast engine, bytes: an int64 duration for each rank and iteration and a float64 copy of it for percentiles; with columns four more
#: int64 and two small ones for each iteration, and five more for each version, twice while they are put together.
FAST_CELL, FAST_COLUMNS_CELL = 18, 160
#: Of each rank, some sixty arrays that live at the same time.
FAST_RANK = 500
#: SimPy engine, bytes: one record of an iteration and up to one of an execution; a generator, a process, a decision machine.
SIMPY_CELL, SIMPY_RANK = 1400, 8_000
#: The interpreter and what it has imported.
BASE = 100 << 20

_GROUPS = (  # (folder, limit, usage) of a control group, version 2 and version 1
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def needed_bytes(scenario: Scenario, algorithm: str, engine: str, columns: bool = False) -> int:
    """About how much memory a run takes at its peak."""
    cells, ranks = scenario.ranks * scenario.iterations, scenario.ranks
    if engine == "simpy":
        return BASE + SIMPY_CELL * cells + SIMPY_RANK * ranks
    schedule = scenario.schedule(algorithm)
    window = scenario.iterations if schedule.sync_period == NEVER else min(schedule.sync_period, scenario.iterations)
    depth = (16 if scenario.network.overlap else 8) * window if schedule.grouped else 0
    kept = FAST_CELL + (FAST_COLUMNS_CELL if columns else 0)
    return BASE + kept * cells + (FAST_RANK + depth) * ranks


def available_bytes() -> int | None:
    """Memory that this process can still take: of the machine, its control group and its own limit; None: nobody says."""
    found = []
    meminfo = _fields("/proc/meminfo")
    if "MemAvailable:" in meminfo:
        found.append(meminfo["MemAvailable:"] * 1024)
    for folder, limit, usage in _GROUPS:
        try:
            left = int(Path(folder, limit).read_text(encoding="ascii")) - int(Path(folder, usage).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or "max"
            continue
        found.append(left + _fields(f"{folder}/memory.stat").get("inactive_file", 0))  # a cache, which gives way
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        found.append(own - _fields("/proc/self/status").get("VmSize:", 0) * 1024)
    return max(0, min(found)) if found else None


def _fields(path: str) -> dict[str, int]:
    """The numbers of a file of lines "name number ..."; nothing if it is not there."""
    try:
        lines = [line.split() for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def check_memory(scenario: Scenario, algorithm: str, engine: str, columns: bool = False) -> None:
    """Raise InputError, before anything runs, if a simulation will not fit in memory."""
    needed, available = needed_bytes(scenario, algorithm, engine, columns), available_bytes()
    if available is not None and needed > available:
        raise InputError(
            f"{scenario.source}: {algorithm} with {scenario.ranks} ranks and {scenario.iterations} iterations needs about "
            f"{needed / 2**30:.1f} GiB of memory on the {engine} engine, {available / 2**30:.1f} GiB are available; "
            "fewer ranks or iterations fit"
        )
