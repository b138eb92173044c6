"""`wagma fuzz`: what it prints, how it ends, and the sample of seeds in the simulator."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

pytest.importorskip("wagma._proof")

import wagma
from wagma.cli import main
from wagma.core.protocol import Forward, Machine, Output
from wagma.proof import fuzzing, hostile, twins
from wagma.trace import Trace


def test_it_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "--seeds", "300"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "300 seeds from 0 on, each twice" in output
    assert "2 of the seeds by the Python machines, too, output for output, and in the simulator, each twice" in output
    assert output.endswith("all promises held; all pairs of runs were the same bytes\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "--first", "100", "--seeds", "50", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["result"], found["first"], found["seeds"], found["simulated"], found["failure"]) == ("ok", 100, 50, 0, None)
    assert found["events"] > 1000
    assert len(found["digest"]) == 16


def test_a_failure_is_printed_with_seed_commit_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "--mutate", "no-solo", "-q"]) == 1
    output, _ = capsys.readouterr()
    (again,) = (line.split("again: wagma ")[1] for line in output.splitlines() if "again: " in line)
    assert fuzzing.commit() in output
    assert "rank 1: close" in output.partition("shrunk in ")[2]
    assert main([*again.split(), "-q"]) == 1
    replayed, _ = capsys.readouterr()
    assert replayed.partition("  case: ")[2] == output.partition("  case: ")[2]


def test_the_commit_is_the_checkouts() -> None:
    root = Path(wagma.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        assert fuzzing.commit() == f"version {wagma.__version__}"
        return
    head = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert head.startswith(fuzzing.commit().removesuffix("-changed"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seeds", "0"], "--seeds 0"),
        (["--first", "-1"], "--first -1"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "3", "--seeds", "5"], "--seeds 5"),
        (["--seed", "3", "--first", "5"], "--first 5"),
        (["--simulate-every", "-1"], "--simulate-every -1"),
        (["--mutate", "nothing"], "drop-second-activation"),
        (["--first", str(2**62)], str(2**62)),
        (["--json", "nowhere/x"], "nowhere/x"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert named in line


def test_ctrl_c_reaches_the_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    """A signal that comes while C++ runs is handled there and then; a billion seeds would take hours."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert main(["fuzz", "--seeds", "1000000000", "-q"]) == 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert capsys.readouterr().err == "wagma: interrupted\n"


# -- the simulator ---------------------------------------------------------------------------------------------------------


def test_a_seed_is_one_scenario() -> None:
    table, algorithm = hostile.scenario_of(7)
    assert hostile.scenario_of(7) == (table, algorithm)
    assert hostile.scenario_of(8) != (table, algorithm)


def test_the_simulators_scenarios_are_hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late ranks, slow progress threads, noise, imbalance, all three algorithms, sizes that are no powers of two."""
    seen: list[Trace] = []
    original = hostile.run

    def watched(*arguments: Any, **options: Any) -> Trace:
        seen.append(original(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(hostile, "run", watched)
    report = fuzzing.fuzz(0, 2500, simulate_every=50)
    assert report.failure is None, report.failure
    assert report.simulated == 50
    assert len(seen) == 2 * report.simulated, "each runs twice"
    outcomes = [record.fresh for trace in seen for record in trace.iterations if record.fresh is not None]
    assert outcomes.count(False) > 0.1 * len(outcomes)
    scenarios = [trace.scenario for trace in seen]
    assert {trace.header.algorithm for trace in seen} == {"wagma_sgd", "eager_sgd", "local_sgd"}
    assert sum(s.network.progress_computing_ns > 0 for s in scenarios) > 10
    assert sum(s.noise.detours_per_s > 0 for s in scenarios) > 10
    assert sum(bool(s.imbalance) for s in scenarios) > 10
    assert any(s.ranks & (s.ranks - 1) for s in scenarios)
    assert max(s.ranks for s in scenarios) > 32
    assert len({s.network.ranks_per_node for s in scenarios}) > 2


def test_a_defect_of_the_python_machine_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same defect as the C++ fuzzer's no-forward, in the machine that the simulator runs: whoever is activated tells nobody."""
    activation = Machine.activation

    def tells_nobody(self: Machine, version: int, dimension: int) -> list[Output]:
        return [output for output in activation(self, version, dimension) if not isinstance(output, Forward)]

    monkeypatch.setattr(Machine, "activation", tells_nobody)
    monkeypatch.setattr(twins, "difference", lambda _seed: None)  # which would see it at once
    seed, failure = next((seed, found) for seed in range(20) if (found := fuzzing.simulate(seed)) is not None)
    assert (failure.world, failure.seed) == ("simulator", seed)
    assert "is stuck" in failure.violation
    assert "not done" in failure.shrunk_violation
    assert "ranks 4, " in failure.shrunk_case, "with three there is nobody whom only others tell"
    assert "iterations 1, " in failure.shrunk_case
    assert "network {}" in failure.shrunk_case
    assert fuzzing.simulate(seed) == failure
    monkeypatch.undo()
    assert fuzzing.simulate(seed) is None, "the scenario itself is fine"


@pytest.mark.parametrize(("twin", "world"), [(True, "twins"), (False, "simulator")])
def test_whatever_python_raises_comes_with_its_seed(monkeypatch: pytest.MonkeyPatch, twin: bool, world: str) -> None:
    """An exception that no machine means to raise is a finding too, and no traceback."""

    def breaks(_self: Machine, _version: int) -> list[Output]:
        raise KeyError("oops")

    monkeypatch.setattr(Machine, "arrive", breaks)
    if not twin:
        monkeypatch.setattr(twins, "difference", lambda _seed: None)
    seed, failure = next((seed, found) for seed in range(20) if (found := fuzzing.simulate(seed)) is not None)
    assert (failure.world, failure.seed) == (world, seed)
    assert "KeyError: 'oops'" in failure.violation


def test_a_difference_of_the_machines_is_located(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python machine that keeps its stamp over a sync: the C++ machine does not."""
    exec_done = Machine.exec_done

    def keeps_stamp(self: Machine, version: int) -> list[Output]:
        stamp = self.stamp
        outputs = exec_done(self, version)
        self.stamp = stamp  # that of a sync's result is the sync's version
        return outputs

    monkeypatch.setattr(Machine, "exec_done", keeps_stamp)
    failure = next(found for found in map(fuzzing.simulate, range(100)) if found is not None)
    assert failure.world == "twins"
    assert failure.violation.startswith("twins: rank ")
    rank = failure.violation.split()[2].rstrip(":")
    assert len(failure.trace) <= failure.events
    assert all(f"rank {rank}: " in line for line in failure.trace), "other ranks' events do not matter"


def test_simulations_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original, runs = hostile.run, iter(range(10**6))

    def drifts(*arguments: Any, **options: Any) -> Trace:
        trace = original(*arguments, **options)
        trace.iterations[-1].model_digest = f"{next(runs)}"
        return trace

    monkeypatch.setattr(hostile, "run", drifts)
    monkeypatch.setattr(hostile, "validate", lambda _trace: [])
    failure = fuzzing.simulate(0)
    assert failure is not None
    assert failure.violation.startswith("determinism: two runs of one seed differ")
