"""What progress threads cost while they have nothing to do, and how soon they start when they have: `wagma bench idle`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from wagma.errors import InputError
from wagma.real.bench import job
from wagma.real.bench.kernels import knows, options_of

NAP_OPTION = "longest_nap_s"
LIMIT_S = 180.0

Progress = Callable[[int, int], None]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def naps_known() -> bool:
    """Whether this build of the collective can be told how long its naps may be."""
    return knows(NAP_OPTION)


def cases(transports: Sequence[str], naps: Sequence[float] | None) -> list[dict[str, Any]]:
    """The options of each measurement. Raises InputError for naps that this build cannot be told of."""
    found: list[dict[str, Any]] = []
    for transport in transports:
        options: dict[str, Any] = {} if transport == "auto" else {"transport": transport}
        options_of(options)
        if transport == "mpi" and naps:
            found += [options_of({**options, NAP_OPTION: nap}) for nap in naps]
        else:
            found.append(options)
    return found


def measure(
    ranks: int, transports: Sequence[str], naps: Sequence[float] | None, seconds: float, activations: int, progress: Progress
) -> dict[str, Any]:
    """Start a job for each case and make the document of them. Raises InputError, WagmaError if a job fails."""
    if ranks < 2:
        raise InputError(f"--ranks {ranks}: must be at least 2, or nobody activates anybody")
    chosen = cases(transports, naps)
    rows = []
    for number, options in enumerate(chosen):
        what = {"ranks": ranks, "seconds": seconds, "activations": activations, "options": options, "group_size": min(4, ranks)}
        found = job.run(job.Job(ranks, ["-m", "wagma.real.bench.idle"], what), LIMIT_S + 10 * seconds + activations)
        progress(number + 1, len(chosen))
        rows.append(row(found, options, ranks))
    return {"schema": 1, "benchmark": "idle", "results": rows}


def row(found: dict[str, Any], options: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The figures of a job. Shares are of one core; the largest is that of the rank whose thread used most."""
    latencies = found["latencies_s"]
    return {
        "transport": found["transport"],
        NAP_OPTION: options.get(NAP_OPTION),
        "ranks": ranks,
        "computing_share": statistics.fmean(found["computing"]),
        "computing_share_largest": max(found["computing"]),
        "waiting_share": statistics.fmean(found["waiting"]),
        "waiting_share_largest": max(found["waiting"]),
        "caller_waiting_share": statistics.fmean(found["callers"]),
        "activations": len(latencies),
        "latency_median_s": statistics.median(latencies) if latencies else None,
        "latency_p99_s": percentile(latencies, 0.99) if latencies else None,
    }
