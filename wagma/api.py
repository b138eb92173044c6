"""What a program asks of the simulator: `wagma.simulate`. The command line uses the same functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar, overload

from wagma.algorithms import ALGORITHMS, specification
from wagma.columns import Columns
from wagma.errors import InputError
from wagma.results import Result, summarize
from wagma.scenario import Scenario, load
from wagma.sim.capacity import check_memory
from wagma.trace import Trace

Progress = Callable[[int, int], None]

T = TypeVar("T")

ENGINES = ("auto", "simpy", "fast")


@overload
def simulate(
    scenario: str | Path | Scenario,
    algorithms: str | Sequence[str] = "all",
    ranks: int | Sequence[int] | None = None,
    progress: Progress | None = None,
    traces: Literal[False] = False,
    engine: str = "auto",
) -> list[Result]: ...


@overload
def simulate(
    scenario: str | Path | Scenario,
    algorithms: str | Sequence[str] = "all",
    ranks: int | Sequence[int] | None = None,
    progress: Progress | None = None,
    *,
    traces: Literal[True],
    engine: str = "auto",
) -> list[Trace]: ...


def simulate(
    scenario: str | Path | Scenario,
    algorithms: str | Sequence[str] = "all",
    ranks: int | Sequence[int] | None = None,
    progress: Progress | None = None,
    traces: bool = False,
    engine: str = "auto",
) -> list[Result] | list[Trace]:
    """Simulate algorithms on a scenario: a file, the name of a packaged one, or one in memory.

    Args:
        scenario: what to simulate; if its workload is not "none", the ranks train in virtual time.
        algorithms: "all", or names as a list or with commas between them.
        ranks: one or several numbers of ranks, in place of the scenario's own.
        progress: called as progress(done, total) within each run.
        traces: return the traces, with digests, which `wagma.validate` can check, instead of their figures (slower).
        engine: "simpy", "fast", or "auto": the fast one where it applies (docs/engines.md); each Result says which it was.

    Returns:
        One Result (or Trace) for each number of ranks and algorithm, in this order.

    Raises:
        InputError: the scenario, a number of ranks or an algorithm is not valid, does not fit in memory, or is nothing for the engine.
        MissingDependencyError: the scenario trains, and torch or scikit-learn is not installed.
    """
    base = scenario if isinstance(scenario, Scenario) else load(scenario)
    sizes = [base.ranks] if ranks is None else [ranks] if isinstance(ranks, int) else list(ranks)
    scenarios = [base.replace({"ranks": size}) for size in sizes]
    runs = list(plan(scenarios, select_algorithms(algorithms), engine, traces))
    if traces:
        return [run(one, algorithm, True, progress) for one, algorithm in runs]
    return [figures(one, algorithm, engine, progress) for one, algorithm in runs]


def select_algorithms(algorithms: str | Sequence[str]) -> list[str]:
    """Names from "all", "a,b" or a list, each once. Raises InputError for an unknown name or none at all."""
    if algorithms == "all":
        return list(ALGORITHMS)
    names = [name.strip() for name in algorithms.split(",")] if isinstance(algorithms, str) else algorithms
    chosen = list(dict.fromkeys(specification(name).name for name in names))
    if not chosen:
        raise InputError(f'algorithms: none given; allowed: "all" or some of {", ".join(ALGORITHMS)}')
    return chosen


def plan(
    scenarios: Sequence[Scenario], algorithms: Sequence[str], engine: str = "simpy", traces: bool = True
) -> Iterator[tuple[Scenario, str]]:
    """All runs. Raises InputError, before the first one, if the settings of any of them do not fit, or it does not fit in memory."""
    for scenario in scenarios:
        for algorithm in algorithms:
            check_settings(scenario, algorithm)
            check_memory(scenario, algorithm, choose_engine(scenario, algorithm, engine, traces))
    return ((scenario, algorithm) for scenario in scenarios for algorithm in algorithms)


def choose_engine(scenario: Scenario, algorithm: str, engine: str = "auto", trace: bool = False) -> str:
    """ "simpy" or "fast". Raises InputError if `engine` is neither nor "auto", or is "fast" where that does not apply.

    trace: whether records are asked for, which only the SimPy engine keeps.
    """
    from wagma.sim import fast

    if engine not in ENGINES:
        raise InputError(f"engine = {engine!r}: unknown; allowed: {', '.join(ENGINES)}")
    if engine == "simpy":
        return engine
    reason = "it keeps no trace" if trace else fast.unfit(scenario, algorithm)
    if reason is None:
        return "fast"
    if engine == "fast":
        raise _refused(scenario, algorithm, reason)
    return "simpy"


def check_settings(scenario: Scenario, algorithm: str) -> None:
    """Raise InputError, naming the scenario, if an algorithm cannot run with its settings."""
    try:
        scenario.schedule(algorithm)
    except InputError as error:
        if scenario.source in str(error):
            raise
        raise InputError(f"{scenario.source}: {error}") from error


def figures(scenario: Scenario, algorithm: str, engine: str = "auto", progress: Progress | None = None) -> Result:
    """One simulation's figures, on the engine that is asked for. Raises InputError and MissingDependencyError."""
    totals = _on_fast_engine(scenario, algorithm, engine, False, lambda fast: fast.simulate(scenario, algorithm, progress))
    return summarize(run(scenario, algorithm, progress=progress) if totals is None else totals)


def columns(scenario: Scenario, algorithm: str, engine: str = "auto", progress: Progress | None = None) -> Columns:
    """One simulation's records as arrays. Raises InputError and MissingDependencyError."""
    arrays = _on_fast_engine(
        scenario, algorithm, engine, True, lambda fast: fast.simulate(scenario, algorithm, progress, columns=True)
    )
    return Columns.of(run(scenario, algorithm, progress=progress)) if arrays is None else arrays


def _on_fast_engine(
    scenario: Scenario, algorithm: str, engine: str, columns: bool, simulate: Callable[[ModuleType], T]
) -> T | None:
    """What the fast engine makes of a run; None where the SimPy engine has to. columns: whether all records are kept."""
    from wagma.sim import fast

    check_settings(scenario, algorithm)
    if choose_engine(scenario, algorithm, engine) == "simpy":
        return None
    check_memory(scenario, algorithm, "fast", columns=columns)
    try:
        return simulate(fast)
    except fast.Unfit as reason:  # seen on the way only
        if engine == "fast":
            raise _refused(scenario, algorithm, str(reason)) from reason
    return None


def _refused(scenario: Scenario, algorithm: str, reason: str) -> InputError:
    return InputError(f'{scenario.source}: {algorithm}: nothing for engine = "fast": {reason}; allowed: simpy, auto')


def run(scenario: Scenario, algorithm: str, digests: bool = False, progress: Progress | None = None) -> Trace:
    """One simulation. With a workload the ranks train, and the header holds the accuracy of the consolidated model.

    digests: record what every model was made from, for the checkers (training in the per-rank mode always does). Raises InputError and
    MissingDependencyError.
    """
    from wagma.sim import driver
    from wagma.sim.numerics import Nothing, Symbols

    check_settings(scenario, algorithm)
    check_memory(scenario, algorithm, "simpy")
    if scenario.training.workload != "none":
        from wagma.studies.learning import train

        return train(scenario, algorithm, digests, progress).trace
    return driver.simulate(scenario, algorithm, Symbols(scenario.ranks) if digests else Nothing(), progress)
