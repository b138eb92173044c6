"""For tests of one's own algorithms and engines (docs/testing.md).

Runs: `run_simulated` and `run_real` drive any registered algorithm in both worlds, with a lateness that the test chooses, and keep
every model. `synthetic_trace` drives the decision machines alone. Assertions: `assert_promises`, and the checkers behind it;
`assert_bounded_staleness`, `assert_averages`, `assert_nothing_lost`, `assert_synced`, `assert_distances`, `assert_mean_square`. Hypothesis
strategies, which alone need hypothesis: `lateness`, `cases`, `traces`. pytest fixtures: `wagma.testing.fixtures`.
"""

from __future__ import annotations

from wagma.testing.assertions import (
    assert_averages,
    assert_bounded_staleness,
    assert_nothing_lost,
    assert_promises,
    assert_synced,
)
from wagma.testing.convergence import (
    Distances,
    Reach,
    assert_distances,
    assert_mean_square,
    distances,
    fit_rate,
    measure_rate,
    worst_gradients,
)
from wagma.testing.problems import Ledger, LogCosh, Problem, TugOfWar
from wagma.testing.runs import Case, Observed, run_real, run_simulated, straggling
from wagma.testing.strategies import cases, lateness, traces
from wagma.testing.synthetic import synthetic_trace
from wagma.validate import (
    PROMISES,
    Run,
    Violation,
    check_agreement,
    check_consistency,
    check_determinism,
    check_exactly_once,
    check_freshness,
    check_progress,
    check_staleness,
    check_wholeness,
    report,
    validate,
)

__all__ = [
    "PROMISES", "Case", "Distances", "Ledger", "LogCosh", "Observed", "Problem", "Reach", "Run", "TugOfWar", "Violation",
    "assert_averages", "assert_bounded_staleness", "assert_distances", "assert_mean_square", "assert_nothing_lost",
    "assert_promises", "assert_synced", "cases", "check_agreement", "check_consistency", "check_determinism", "check_exactly_once",
    "check_freshness", "check_progress", "check_staleness", "check_wholeness", "distances", "fit_rate", "lateness",
    "measure_rate", "report", "run_real", "run_simulated", "straggling", "synthetic_trace", "traces", "validate",
    "worst_gradients",
]  # fmt: skip
