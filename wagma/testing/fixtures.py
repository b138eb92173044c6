"""pytest fixtures for tests of one's own algorithms: `from wagma.testing.fixtures import *`, or in the root conftest.py
`pytest_plugins = ["wagma.testing.fixtures"]`. They alone need pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from wagma.algorithms import ALGORITHMS
from wagma.errors import MissingDependencyError
from wagma.testing.problems import Problem
from wagma.testing.runs import Case, Observed, require_real, run_real, run_simulated

__all__ = ["forgotten_algorithms", "run_anywhere"]

Runner = Callable[..., Observed]


@pytest.fixture(params=["simulated", "real"])
def run_anywhere(request: pytest.FixtureRequest) -> Runner:
    """`run_anywhere(algorithm, case, problem=None)`: the test runs twice, in the simulator and on real ranks.

    The latter is skipped, with the reason, where they cannot run.
    """
    if request.param == "simulated":
        return run_simulated
    try:
        require_real()
    except MissingDependencyError as error:
        pytest.skip(str(error))

    def run(algorithm: str, case: Case, problem: Problem | None = None) -> Observed:
        return run_real(algorithm, case, problem)

    return run


@pytest.fixture
def forgotten_algorithms() -> Iterator[None]:
    """Whatever the test registers is forgotten afterwards, and what it has removed is back."""
    before = dict(ALGORITHMS)
    try:
        yield
    finally:
        ALGORITHMS.clear()
        ALGORITHMS.update(before)
