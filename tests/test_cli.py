"""The command line: every command and option, what goes where, and exit statuses."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wagma
from wagma.cli import main
from wagma.commands import COMMANDS
from wagma.commands.env import collect
from wagma.progress import SHOW_AFTER_S, Progress
from wagma.scenario import packaged
from wagma.trace import load_trace
from wagma.validate import validate

SMALL = ["simulate", "resnet50_imagenet", "--ranks", "4", "--iterations", "12"]
RESULT_KEYS = {
    "algorithm", "ranks", "engine", "iterations", "throughput", "iteration_s", "makespan_ns", "staleness", "fresh_fraction",
    "accuracy", "score", "wall_s",
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of a command that ends well and says nothing on standard error."""
    status = main(arguments)
    output, errors = capsys.readouterr()
    assert (status, errors) == (0, "")
    return output


def results(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    document = json.loads(run(capsys, *arguments, "--json", "-"))
    return document["results"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["scenarios", "list"], ["scenarios", "show"]])
def test_help_everywhere(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    output, errors = capsys.readouterr()
    assert end.value.code == 0
    assert output.startswith(f"usage: {' '.join(['wagma', *command])}")
    assert "--launched" not in output
    assert errors == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"wagma {wagma.__version__}\n"


def test_python_m_wagma() -> None:
    done = subprocess.run([sys.executable, "-m", "wagma", "scenarios"], capture_output=True, text=True, check=True, timeout=60)
    assert "resnet50_imagenet" in done.stdout


def test_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    output = run(capsys, *SMALL, "--json", "-")
    assert output.count("\n") == 1
    document = json.loads(output, parse_constant=pytest.fail)  # no NaN, no Infinity
    assert set(document) == {"schema", "scenario", "results"}
    assert (document["schema"], document["scenario"]) == (1, "resnet50_imagenet")
    assert {result["algorithm"] for result in document["results"]} >= {"wagma_sgd", "allreduce_sgd", "local_sgd", "ideal"}
    for result in document["results"]:
        assert set(result) == RESULT_KEYS
        assert (result["ranks"], result["iterations"]) == (4, 12)
        assert result["engine"] == ("simpy" if result["algorithm"] in ("ad_psgd", "swarm_sgd") else "fast")
        assert result["throughput"]["value"] > 0
        assert result["throughput"]["unit"] == "images/s"
        assert set(result["iteration_s"]) == {"mean", "p50", "p99"}
        assert isinstance(result["makespan_ns"], int)
        assert set(result["staleness"]) == {"max", "mean", "bound"}
        assert result["accuracy"] is None
    [ideal] = [result for result in document["results"] if result["algorithm"] == "ideal"]
    assert ideal["staleness"] == {"max": None, "mean": None, "bound": None}
    assert ideal["fresh_fraction"] is None


def test_same_seed_same_bytes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def once(name: str) -> tuple[str, bytes]:
        trace = tmp_path / name
        output = run(capsys, *SMALL, "--algorithm", "wagma_sgd", "--seed", "5", "--trace", str(trace), "--json", "-")
        document = json.loads(output)
        for result in document["results"]:
            assert result.pop("wall_s") > 0
        return json.dumps(document), trace.read_bytes()

    assert once("first.jsonl") == once("second.jsonl")


def test_another_seed_is_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    [one], [other] = (results(capsys, *SMALL, "--algorithm", "wagma_sgd", "--seed", seed) for seed in ("1", "2"))
    # Not the makespan: it counts the delayed iterations of the slowest rank, which two seeds may well have in common.
    assert one["throughput"]["value"] != other["throughput"]["value"]


def test_json_to_a_file_leaves_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = run(capsys, *SMALL, "--algorithms", "wagma_sgd,ideal", "--json", str(tmp_path / "r.json"))
    assert "wagma_sgd" in output
    assert [r["algorithm"] for r in json.loads((tmp_path / "r.json").read_text())["results"]] == ["wagma_sgd", "ideal"]


def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    usual, verbose, quiet = (run(capsys, *SMALL, "--algorithm", "ideal", *option) for option in ([], ["-v"], ["-q"]))
    assert quiet == ""
    assert "p99" in verbose
    assert "p99" not in usual


def test_algorithms_and_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, *SMALL[:2], "--iterations", "5", "--ranks", "1,2", "--algorithms", "ideal, wagma_sgd,ideal")
    assert [(r["ranks"], r["algorithm"]) for r in found] == [(1, "ideal"), (1, "wagma_sgd"), (2, "ideal"), (2, "wagma_sgd")]


def test_one_rank_is_legal_for_every_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, *SMALL[:2], "--ranks", "1", "--iterations", "5", "--delay", "0")
    assert len({round(r["throughput"]["value"], 6) for r in found}) == 1


def test_set_takes_toml_or_a_string(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    settings = ["compute.seconds=0.5", "model.dtype=float64", "network={latency_ns = 7}", "imbalance=[]", "seed=9"]
    options = [word for setting in settings for word in ("--set", setting)]
    run(capsys, *SMALL, "--algorithm", "wagma_sgd", "--seed", "1", "--trace", str(trace), *options)
    scenario = load_trace(trace).scenario
    assert (scenario.dtype, scenario.network.latency_ns, scenario.imbalance, scenario.seed) == ("float64", 7.0, (), 9)


def test_group_size_and_sync_period_win_over_the_scenario(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The scenario has local_sgd sync in every iteration; who asks for another period gets it."""
    base = tmp_path / "t.jsonl"
    options = ["--group-size", "4", "--sync-period", "3", "--trace", str(base), "-q"]
    run(capsys, *SMALL, "--algorithms", "local_sgd,wagma_sgd", *options)
    for algorithm in ("local_sgd", "wagma_sgd"):
        schedule = load_trace(tmp_path / f"t.{algorithm}.4.jsonl").schedule
        assert schedule.sync_period == 3
    assert schedule.group_size == 4
    [unbounded] = results(capsys, *SMALL, "--algorithm", "wagma_sgd", "--sync-period", "never", "--group-size", "sqrt")
    assert unbounded["staleness"]["bound"] is None


def test_delay_sets_every_imbalance(capsys: pytest.CaptureFixture[str]) -> None:
    [without], [tenfold] = (
        results(capsys, *SMALL, "--algorithm", "allreduce_sgd", "--engine", "simpy", "--delay", delay) for delay in ("0", "3.2")
    )
    assert without["iteration_s"]["mean"] < 0.7
    assert tenfold["iteration_s"]["p99"] > 3.8


def test_one_trace_has_the_name_that_was_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, *SMALL, "--algorithm", "wagma_sgd", "--trace", str(tmp_path / "one.jsonl"))
    run(capsys, *SMALL, "--algorithms", "wagma_sgd,ideal", "--trace", str(tmp_path / "two"))
    assert {path.name for path in tmp_path.iterdir()} == {"one.jsonl", "two.wagma_sgd.4", "two.ideal.4"}
    assert load_trace(tmp_path / "one.jsonl").header.digests == "symbolic"


def test_validate_says_what_held(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    run(capsys, *SMALL, "--algorithm", "wagma_sgd", "--trace", str(trace))
    assert "bounded staleness" in run(capsys, "validate", str(trace))
    assert run(capsys, "validate", "-q", str(trace)) == ""


def test_validate_ends_with_1_if_a_promise_is_violated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    run(capsys, *SMALL, "--algorithm", "wagma_sgd", "--trace", str(path))
    trace = load_trace(path)
    trace.executions.pop()
    trace.write(path)
    assert main(["validate", "-q", str(path)]) == 1
    output = capsys.readouterr().out
    assert "violation" in output
    assert "rank 3, version 11" in output


def test_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    listing = run(capsys, "scenarios")
    assert listing == run(capsys, "scenarios", "list")
    for name, path in packaged().items():
        assert name in listing
        assert run(capsys, "scenarios", "show", name) == path.read_text()


@pytest.mark.slow
def test_env_is_json_of_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "env", "--json", "-"))
    assert found["wagma"] == wagma.__version__
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    libraries = {"numpy", "simpy", "mpi4py", "torch", "mpi_library", "mpiexec"}
    assert libraries | {"kernel", "kernel_mpi", "kernel_cuda", "devices", "torch_devices"} <= set(found)
    if found["kernel_cuda"] is not None:
        assert re.match(r"sm_\d+ |compute_\d+|not built: ", found["kernel_cuda"]), found["kernel_cuda"]
        assert isinstance(found["devices"], list) or re.match("none: .", found["devices"]), found["devices"]


def test_env_says_what_is_not_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wagma.commands.env.PROBES", {"kernel": "raise ImportError('cannot open libmpi')"})
    monkeypatch.setattr("wagma.commands.env.PACKAGES", ("numpy", "a-package-that-nobody-has"))
    monkeypatch.setattr("wagma.commands.env.NEEDS", {"kernel": "wagma"})
    found = collect()
    assert found["a-package-that-nobody-has"] is None
    assert found["kernel"] == "fails: ImportError: cannot open libmpi"
    assert "not installed" in run(capsys, "env")


def test_a_closed_pipe_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "wagma", "scenarios", "show", "digits"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wagma.commands.validate.load_trace", interrupt)
    assert main(["validate", "trace"]) == 130
    assert capsys.readouterr().err == "wagma: interrupted\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "quiet", "lines"), [(Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)]
)
def test_progress_is_for_terminals_and_slow_work(
    stream: io.StringIO, quiet: bool, lines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("wagma.progress.time.monotonic", lambda: now)
    with Progress("working", quiet, stream) as progress:
        now += SHOW_AFTER_S / 2
        progress(1, 10)
        assert stream.getvalue() == ""
        now += SHOW_AFTER_S
        progress(6, 10)
        assert ("working: 60 %, 2 s left" in stream.getvalue()) is lines
    assert stream.getvalue().endswith("\r\033[K") is lines


def test_simulate_from_python() -> None:
    found = wagma.simulate("resnet50_imagenet", ["wagma_sgd"], ranks=[2, 3])
    assert [(result.algorithm, result.ranks) for result in found] == [("wagma_sgd", 2), ("wagma_sgd", 3)]
    scenario = wagma.load_scenario("resnet50_imagenet", {"ranks": 2, "iterations": 12})
    calls: list[tuple[int, int]] = []
    [trace] = wagma.simulate(scenario, "wagma_sgd", progress=lambda done, total: calls.append((done, total)), traces=True)
    assert validate(trace) == []
    assert calls[-1] == (24, 24)


@pytest.mark.slow
def test_simulated_training_has_an_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    found = results(capsys, "simulate", "digits", "--iterations", "60", "--algorithms", "wagma_sgd,ideal")
    assert found[0]["accuracy"] > 0.5
    assert found[1]["accuracy"] is None  # these ranks have no model in common


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "the following arguments are required: COMMAND, one of simulate, compare, .*, env"),
        ("--bogus", "argument --bogus: unknown; allowed: --help, --version"),
        ("simulat", "argument COMMAND: 'simulat': must be one of simulate, compare, .*, env"),
        ("simulate", "the following arguments are required: SCENARIO"),
        ("simulate digits more", "argument 'more': one too many; allowed: SCENARIO"),
        ("simulate digits --rank 4", "argument --rank: unknown; allowed: --help, --ranks, --algorithms, .*, --verbose"),
        ("simulate --quie digits", "argument --quie: unknown; allowed: .*"),
        ("simulate digits -z", "argument -z: unknown; allowed: .*"),
        ("simulate --bogus=1", "argument --bogus=1: unknown; allowed: .*"),
        ("simulate digits --ranks", "argument -n/--ranks: must be followed by N,M"),
        ("simulate digits --ranks 0", "argument -n/--ranks: '0': must be different whole numbers, at least 1, .*"),
        ("simulate digits --quiet=3", "argument -q/--quiet: '3': takes no value"),
        ("simulate digits -q -v", "argument -v/--verbose: not allowed with argument -q/--quiet"),
        ("simulate digits --engine warp", "argument --engine: 'warp': must be one of auto, simpy, fast"),
        ("train digits --transport tcp", "argument --transport: 'tcp': must be one of auto, shm, mpi, ipc, cuda-mpi"),
        ("plot", "the following arguments are required: KIND, one of throughput, .*"),
        ("trace chrome t.jsonl", "the following arguments are required: -o/--output"),
        ("bench speed", "argument KIND: 'speed': must be one of engines, cost, collective, partial, idle, training"),
        ("bench engines --ranks some", "argument -n/--ranks: 'some': must be a whole number"),
        ("bench collective --late soon", "argument --late: 'soon': must be a number"),
        ("bench training --mode x", "argument --mode: unknown; allowed: --help, --part, .*"),
        ("scenarios sow", "argument ACTION: 'sow': must be one of list, show, reference, schema"),
        ("env more", "argument 'more': one too many; allowed: options only"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments.split()
    assert main(words) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    # The help to look at is that of the command, and of its part, that the option was given to.
    assert re.fullmatch(rf"wagma: error: {complaint} \(see wagma[a-z ]* --help\)\n", errors), errors
    for word in words[:1]:
        assert f"(see wagma {word}" in errors or word not in COMMANDS, errors


#: Runs `wagma --version`, interrupted while Python begins to import the module that is named.
INTERRUPTED = """
import os, signal, sys
wanted = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from wagma.cli import main
sys.exit(main(["--version"]))
"""


@pytest.mark.parametrize("module", ["argparse", "wagma.commands", "wagma.commands.parser", "wagma.commands.sweep", "numpy"])
def test_an_interrupt_before_the_command_begins_is_one_line(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "wagma: interrupted\n")
