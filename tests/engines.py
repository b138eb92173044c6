"""Both engines on one scenario, compared cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from wagma.columns import Columns
from wagma.scenario import Scenario
from wagma.sim import driver, fast
from wagma.sim.numerics import Nothing

#: What both engines must agree on, cell by cell.
COLUMNS = (
    "begin_ns", "counts", "arrival_ns", "return_ns", "computed_ns", "fresh", "merged_version", "versions", "executed",
    "activated_ns", "activator", "started_ns", "completed_ns", "stamp", "oldest_stamp", "exchange_staleness",
)  # fmt: skip
COVERED = ("ideal", "allreduce_sgd", "local_sgd", "wagma_sgd", "eager_sgd", "d_psgd", "sgp")
NOT_COVERED = ("ad_psgd", "swarm_sgd")


def table(ranks: int, iterations: int = 12, **changes: Any) -> dict[str, Any]:
    return {
        "name": "engines",
        "ranks": ranks,
        "iterations": iterations,
        "seed": 5,
        "model": {"parameters": 25},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "samples", "seconds": [1e-7, 2e-7, 5e-7]},
        "network": {"latency_ns": 100, "overhead_ns": 20, "gap_ns": 30, "gap_per_byte_ns": 0.5},
        "algorithm": {"group_size": min(ranks, 4), "sync_period": 5},
        **changes,
    }


def measured(rows: list[list[int]]) -> dict[str, Any]:
    """Compute times in ns, [rank][iteration]."""
    return {"kind": "trace", "seconds": [[ns * 1e-9 for ns in row] for row in rows]}


def assert_agree(scenario: Scenario, algorithm: str) -> Columns:
    """Run both engines and compare all they record; the fast one's columns. Raises fast.Unfit."""
    quick = fast.simulate(scenario, algorithm, columns=True)
    slow = Columns.of(driver.simulate(scenario, algorithm, Nothing()))
    for name in COLUMNS:
        expected, got = getattr(slow, name), getattr(quick, name)
        if expected is None or got is None:
            assert (expected is None) == (got is None) or not slow.versions.size, name
            continue
        assert expected.shape == got.shape, name
        differ = np.argwhere(expected != got)
        assert not differ.size, (
            f"{algorithm} {name}{tuple(differ[0])}: {expected[tuple(differ[0])]}, not {got[tuple(differ[0])]}"
        )
    totals, sums = quick.totals(), fast.simulate(scenario, algorithm)
    for name in ("counts", "begin_ns", "finish_ns", "computed_ns", "durations_ns"):
        assert np.array_equal(getattr(totals, name), getattr(sums, name)), name
    assert (totals.staleness, totals.fresh, totals.joined) == (sums.staleness, sums.fresh, sums.joined)
    return quick
