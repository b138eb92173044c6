"""wagma replay: recordings of real processes, what it prints, what it refuses; and seals, which find any change of a trace's file."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest

pytest.importorskip("torch")
pytest.importorskip("wagma._native")
pytest.importorskip("sklearn")

from test_replay import recorded, scenario  # after the checks that they can be imported

import wagma
from wagma import workloads
from wagma.algorithms import ALGORITHMS
from wagma.cli import main
from wagma.commands.replay import elsewhere
from wagma.errors import InputError, WagmaError
from wagma.sim.replay.again import check_simulated, compare_simulated
from wagma.trace import Evaluation, Trace, load_trace


@pytest.fixture(scope="module")
def trace() -> Trace:
    return recorded("wagma_sgd", ranks=3, iterations=6)


@pytest.fixture
def path(trace: Trace, tmp_path: Path) -> Path:
    where = tmp_path / "run.jsonl"
    trace.write(where)
    return where


def complaint(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> str:
    assert main(["replay", *arguments]) == status
    seen = capsys.readouterr().err
    assert seen.startswith("wagma: error: ")
    assert seen.count("\n") == 1
    return seen


def test_what_it_prints(path: Path, trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    out = path.with_name("again.jsonl")
    assert main(["replay", str(path), "--trace", str(out)]) == 0
    text = capsys.readouterr().out
    assert "bit-identical on all ranks: " in text
    assert all(start.final_digest in text for start in trace.starts if start.final_digest is not None)
    assert main(["replay", str(path), "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["identical"] is True
    assert result["complete"] is True
    assert "the scenario has" not in text
    assert f"{result['digests']} digests, weights {result['weights']}" in text
    assert [rank["weights"] for rank in result["ranks"]] == [start.final_digest for start in trace.starts]
    assert [rank["iterations"] for rank in result["ranks"]] == [6, 6, 6]
    assert load_trace(out).executions == load_trace(path).executions


def test_a_difference_is_one_line_and_json(path: Path, trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    changed = load_trace(path)
    sum_digest = changed.executions[4].sum_digest
    changed.executions[4].sum_digest = "0123456789abcdef"
    changed.write(path)
    seen = complaint(capsys, 1, str(path), "--json", str(path.with_suffix(".json")))
    rank, version = trace.executions[4].rank, trace.executions[4].version
    expected = f"rank {rank}, version {version}: sum_digest: recorded 0123456789abcdef, recomputed {sum_digest}"
    assert expected in seen
    result = json.loads(path.with_suffix(".json").read_text())
    assert result["identical"] is False
    assert expected in result["difference"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"digests": "off"}, 'digests = "off"'),
        ({"digests": "symbolic"}, 'digests = "symbolic"'),
        ({"begin": 4}, "begin = 4"),
        ({"scenario.training.workload": "none"}, 'training.workload = "none"'),
        ({"scenario.ranks": 4}, "rank 3: 0 records of its beginning"),
        ({"algorithm": "nothing"}, "nothing"),
    ],
)
def test_what_lacks_something_is_refused(
    path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], text: str
) -> None:
    changed = load_trace(path)
    for name, value in change.items():
        *parts, last = name.split(".")
        table: Any = changed.header
        for part in parts:
            table = table[part] if isinstance(table, dict) else getattr(table, part)
        if isinstance(table, dict):
            table[last] = value
        else:
            setattr(table, last, value)
    changed.write(path)
    assert text in complaint(capsys, 2, str(path))


def test_what_is_not_there_is_refused(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read" in complaint(capsys, 2, str(path.with_name("none.jsonl")))
    assert "--trace" in complaint(capsys, 2, str(path), "--trace", "/nowhere/at/all.jsonl")
    assert "is the recording itself" in complaint(capsys, 2, str(path), "--trace", str(path))
    monkeypatch.setattr("wagma.workloads.registry.find_spec", lambda name: None if name == "sklearn" else True)
    assert "needs scikit-learn" in complaint(capsys, 2, str(path))


def test_another_environment_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, where bits agree all the same; and beside the difference where they do not."""
    changed = load_trace(path)
    for start in changed.starts:
        start.environment = {**workloads.environment("digits_mlp"), "threads": "1"}
    assert elsewhere(changed) == ""
    changed.starts[1].environment["torch"] = "1.0"
    changed.write(path)
    assert main(["replay", str(path)]) == 0
    assert capsys.readouterr().err.count("it was recorded with torch 1.0 (here ") == 1
    changed.iterations[0].model_digest = "0123456789abcdef"
    changed.write(path)
    assert "; it was recorded with torch 1.0 (here " in complaint(capsys, 1, str(path))


@pytest.mark.parametrize("numerics", ["per_rank", "batched", "symbolic"])
def test_a_simulation_is_simulated_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], numerics: str) -> None:
    training = {"training.workload": "none"} if numerics == "symbolic" else {"training.numerics": numerics}
    path = tmp_path / "sim.jsonl"
    changes = {"imbalance": [{"kind": "independent", "probability": 0.3, "delay_s": 0.1}], **training}
    (simulated,) = wagma.simulate(scenario(3, 6, **changes), "wagma_sgd", traces=True)
    simulated.write(path)
    assert main(["replay", str(path)]) == 0
    assert "bit-identical on all ranks: " in capsys.readouterr().out
    iteration = simulated.iterations[7]
    iteration.return_ns ^= 1
    simulated.write(path)
    seen = complaint(capsys, 1, str(path))
    assert f"rank {iteration.rank}, iteration {iteration.iteration}: return_ns: recorded {iteration.return_ns}" in seen


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda trace: trace.starts.clear(), "rank 0: 0 records of its beginning"),
        (lambda trace: setattr(trace.starts[2], "rank", 1), "rank 1: 2 records of its beginning"),
        (lambda trace: setattr(trace.starts[1], "initial_digest", None), "rank 1: initial_digest: recorded null"),
        (lambda trace: setattr(trace.starts[1], "final_digest", None), "rank 1: final_digest: recorded null"),
        (lambda trace: setattr(trace.header, "score_direction", "down"), "score_direction: recorded down, recomputed up"),
        (lambda trace: trace.evaluations.append(Evaluation(3, 0.99)), "evaluations: recorded "),
    ],
)
def test_all_of_a_simulation_is_compared(simulation: Trace, change: Callable[[Trace], None], text: str) -> None:
    """Not its iterations and executions only."""
    changed = copy.deepcopy(simulation)
    change(changed)
    with pytest.raises(WagmaError, match=text):
        held_against(changed, simulation)


def held_against(recorded: Trace, again: Trace) -> None:
    check_simulated(recorded)
    compare_simulated(recorded, again)


@pytest.fixture(scope="module")
def simulation() -> Trace:
    (simulated,) = wagma.simulate(scenario(3, 4), "wagma_sgd", traces=True)
    return simulated


def test_a_recording_that_ends_early_is_said_to(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the true recording of a shorter run, or somebody shortened it, last digests and all."""
    changed = load_trace(path)
    changed.header.scenario["iterations"] = 7
    changed.write(path)
    assert main(["replay", str(path)]) == 0
    assert "the scenario has 7 iterations: a rank ended before" in capsys.readouterr().out
    assert main(["replay", str(path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is False


# -- seals -----------------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_of_a_file_is_found_in_its_line(path: Path) -> None:
    whole = path.read_bytes()
    rng = random.Random(3)
    for _ in range(400):
        place = rng.randrange(len(whole) - 1)  # the last line break says nothing
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        line = whole[:place].count(b"\n") + 1
        with pytest.raises(InputError, match=rf"^{path}:{line}: "):
            load_trace(path)


@pytest.mark.long
def test_every_bit_of_a_small_file(tmp_path: Path) -> None:
    """-s shows how many there are."""
    path = tmp_path / "tiny.jsonl"
    recorded("ideal", ranks=2, iterations=2).write(path)
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(InputError) as caught:
                load_trace(path)
            assert str(caught.value).startswith(f"{path}:{whole[:place].count(10) + 1}: ")
    print(f"{8 * (len(whole) - 1)} bits")


def test_lines_that_are_lost_doubled_or_moved_are_found(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(1, len(lines) - 2):
        for some in (
            [*lines[:number], *lines[number + 1 :]],
            [*lines[: number + 1], *lines[number:]],
            [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]],
        ):
            path.write_bytes(b"".join(some))
            with pytest.raises(InputError, match=rf":({number + 1}|{number + 2}): "):
                load_trace(path)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(InputError, match=rf":{len(lines) - 1}: .* cut off"):
        load_trace(path)


def test_traces_from_before_there_were_seals_are_read(path: Path, trace: Trace) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "seal"}) + "\n" for line in lines[:-1]))
    assert load_trace(path).iterations == trace.iterations


# -- processes -------------------------------------------------------------------------------------------------------------


def train(folder: Path, workload: str, ranks: int, algorithms: str, *options: str) -> list[Path]:
    """One job for all algorithms: a trace of each."""
    command = [sys.executable, "-m", "wagma", "train", workload, "-n", str(ranks), "--algorithms", algorithms, "-q"]
    processes.run([*command, "--trace", str(folder / "run.jsonl"), *options], folder)
    return sorted(folder.glob("run*.jsonl"))


@pytest.mark.mpi
def test_processes_that_train_on_text_are_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--iterations", "6", "--sync-period", "4", "--every", "3", "--set", "algorithms.ad_psgd.all_ask=true")
    for path in train(tmp_path, "text", 4, "wagma_sgd,ad_psgd", *options):
        assert main(["replay", str(path), "--json", "-"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert [rank["iterations"] for rank in result["ranks"]] == [6] * 4
        trace = load_trace(path)
        assert len(trace.evaluations) == 3
        assert all(start.environment["threads"] == "1" for start in trace.starts)
    trace.evaluations[1].score += 1e-9
    trace.write(path)
    assert "score after 3 iterations: recorded " in complaint(capsys, 1, str(path))


#: The delays make ranks late; compute is short, so that eight ranks do not need eight cores for long.
OPTIONS = {
    "digits": ("--iterations", "32", "--delay", "0.03", "--set", "compute.seconds=0.004", "--sync-period", "8"),
    "text": ("--iterations", "16", "--sync-period", "8", "--group-size", "sqrt"),
}


@pytest.mark.mpi
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("workload", OPTIONS)
def test_every_algorithm_on_processes_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workload: str, ranks: int
) -> None:
    """What docs/proof.md has in its table."""
    more = ("--set", "algorithms.ad_psgd.all_ask=true", "--set", "algorithms.swarm_sgd.local_steps=2")
    paths = train(tmp_path, workload, ranks, "all", *OPTIONS[workload], *more)
    assert len(paths) == len(ALGORITHMS)
    late = 0
    for path in paths:
        assert main(["replay", str(path), "--json", "-"]) == 0
        result = json.loads(capsys.readouterr().out)
        late += sum((rank["late"] or 0) > 0 for rank in result["ranks"])
        assert [rank["weights"] for rank in result["ranks"]] == [start.final_digest for start in load_trace(path).starts]
    assert late > 0, "the runs were too tame to show anything"
