"""What a program asks of the simulator: `wagma.simulate`. The command line uses the same functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

from wagma.algorithms import ALGORITHMS, specification
from wagma.core.effects import Value
from wagma.errors import InputError
from wagma.results import Result, summarize
from wagma.scenario import Scenario, load
from wagma.trace import Trace

Progress = Callable[[int, int], None]


@overload
def simulate(
    scenario: str | Path | Scenario,
    algorithms: str | Sequence[str] = "all",
    ranks: int | Sequence[int] | None = None,
    progress: Progress | None = None,
    traces: Literal[False] = False,
) -> list[Result]: ...


@overload
def simulate(
    scenario: str | Path | Scenario,
    algorithms: str | Sequence[str] = "all",
    ranks: int | Sequence[int] | None = None,
    progress: Progress | None = None,
    *,
    traces: Literal[True],
) -> list[Trace]: ...


def simulate(
    scenario: str | Path | Scenario,
    algorithms: str | Sequence[str] = "all",
    ranks: int | Sequence[int] | None = None,
    progress: Progress | None = None,
    traces: bool = False,
) -> list[Result] | list[Trace]:
    """Simulate algorithms on a scenario: a file, the name of a packaged one, or one in memory.

    Args:
        scenario: what to simulate; if its workload is not "none", the ranks train in virtual time.
        algorithms: "all", or names as a list or with commas between them.
        ranks: one or several numbers of ranks, in place of the scenario's own.
        progress: called as progress(done, total) within each run.
        traces: return the traces, with digests, which `wagma.validate` can check, instead of their figures (slower).

    Returns:
        One Result (or Trace) for each number of ranks and algorithm, in this order.

    Raises:
        InputError: the scenario, a number of ranks or an algorithm is not valid.
        MissingDependencyError: the scenario trains, and torch or scikit-learn is not installed.
    """
    base = scenario if isinstance(scenario, Scenario) else load(scenario)
    sizes = [base.ranks] if ranks is None else [ranks] if isinstance(ranks, int) else list(ranks)
    scenarios = [base.replace({"ranks": size}) for size in sizes]
    runs = list(plan(scenarios, select_algorithms(algorithms)))
    finished = (run(one, algorithm, traces, progress) for one, algorithm in runs)
    return list(finished) if traces else [summarize(trace) for trace in finished]


def select_algorithms(algorithms: str | Sequence[str]) -> list[str]:
    """Names from "all", "a,b" or a list, each once. Raises InputError for an unknown name or none at all."""
    if algorithms == "all":
        return list(ALGORITHMS)
    names = [name.strip() for name in algorithms.split(",")] if isinstance(algorithms, str) else algorithms
    chosen = list(dict.fromkeys(specification(name).name for name in names))
    if not chosen:
        raise InputError(f'algorithms: none given; allowed: "all" or some of {", ".join(ALGORITHMS)}')
    return chosen


def plan(scenarios: Sequence[Scenario], algorithms: Sequence[str]) -> Iterator[tuple[Scenario, str]]:
    """All runs. Raises InputError, before the first one, if the settings of any of them do not fit."""
    for scenario in scenarios:
        for algorithm in algorithms:
            check_settings(scenario, algorithm)
    return ((scenario, algorithm) for scenario in scenarios for algorithm in algorithms)


def check_settings(scenario: Scenario, algorithm: str) -> None:
    """Raise InputError, naming the scenario, if an algorithm cannot run with its settings."""
    try:
        scenario.schedule(algorithm)
    except InputError as error:
        if scenario.source in str(error):
            raise
        raise InputError(f"{scenario.source}: {error}") from error


def run(scenario: Scenario, algorithm: str, digests: bool = False, progress: Progress | None = None) -> Trace:
    """One simulation. With a workload the ranks train, and the header holds the accuracy of the consolidated model.

    digests: record what every model was made from, for the checkers (training always does). Raises InputError and
    MissingDependencyError.
    """
    from wagma.sim import driver
    from wagma.sim.numerics import Nothing, Symbols

    check_settings(scenario, algorithm)
    if scenario.training.workload != "none":
        return _train(scenario, algorithm, progress)
    return driver.simulate(scenario, algorithm, Symbols(scenario.ranks) if digests else Nothing(), progress)


def _train(scenario: Scenario, algorithm: str, progress: Progress | None) -> Trace:
    """Train in virtual time."""
    from wagma import workloads
    from wagma.sim import driver
    from wagma.sim.numerics import Replicas

    numerics = Replicas(workloads.replicas(scenario))
    trace = driver.simulate(scenario, algorithm, numerics, progress)
    models = [numerics.publish(rank, Value.MODEL) for rank in range(scenario.ranks)]
    trace.header.accuracy = workloads.consolidated_accuracy(scenario, algorithm, models)
    return trace
