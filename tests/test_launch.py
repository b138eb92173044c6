"""Real ranks: they are started, they end, and who fails says so first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from stopwatch import Stopwatch

from wagma.api import select_algorithms
from wagma.cli import main, parser
from wagma.commands import train as train_command
from wagma.commands.options import load_scenarios, trace_path
from wagma.errors import WagmaError
from wagma.real.devices.choice import CPU
from wagma.real.launching import launch
from wagma.real.launching.channel import PIPE_LIMIT, Receiver, Sender, is_read
from wagma.scenario import load
from wagma.trace import load_trace

LIMIT_S = 60.0  # of a test; what is promised is measured by itself

#: `wagma train` with a training that fails in rank 2, as $FAILURE says, 0.3 s after all ranks have begun.
FAILING = """
import os, signal, sys, time, types
from wagma.cli import main, parser
from wagma.commands import train as train_command
from wagma.errors import InputError, PeerFailed

def fail(comm):
    how = os.environ["FAILURE"]
    if how == "complains" and comm.rank == 1:
        time.sleep(0.1)
        raise PeerFailed("rank 2 has failed")
    if how == "never" or comm.rank != 2:
        while True:
            time.sleep(0.01)
    time.sleep(0.3)
    if how in ("raises", "complains"):
        raise ZeroDivisionError("by " + "zero" * 1100)
    if how == "bad input":
        raise InputError("no such digit")
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    os._exit(int(how))

def train(scenario, algorithm, comm, progress=None, **options):
    comm.barrier()
    with open(f"pid.{comm.rank}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(file.name, f"pid.{comm.rank}")
    fail(comm)

sys.modules["wagma.real.train"] = types.SimpleNamespace(train=train)
sys.modules["wagma.real.checkpoints.run"] = types.SimpleNamespace(Saving=lambda *_: None)  # the real ones import torch
sys.exit(main(sys.argv[1:]))
"""

LAUNCHER = """
import sys
from wagma.real.launching.launch import run_ranks
try:
    sys.exit(run_ranks(4, ["failing", "train", "digits", "-q"]))
except KeyboardInterrupt:
    sys.exit(130)
"""

needs_mpi = pytest.mark.mpi


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Launchers that a test started; none outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def start(job: list[subprocess.Popen[str]], tmp_path: Path, failure: str) -> subprocess.Popen[str]:
    (tmp_path / "failing.py").write_text(FAILING)
    environment = {**os.environ, "FAILURE": failure, "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    job.append(process)
    return process


def ranks_of(process: subprocess.Popen[str], tmp_path: Path) -> list[int]:
    """The process ids of the ranks, once all of them train."""
    files = [tmp_path / f"pid.{rank}" for rank in range(4)]
    while not all(file.exists() for file in files):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def gone(pids: list[int], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        alive = []
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, 0)
                alive.append(pid)
        if not alive:
            return True
        time.sleep(0.05)
    return False


@needs_mpi
@pytest.mark.parametrize(
    ("failure", "status", "first"),
    [
        ("raises", 1, "wagma: rank 2: ZeroDivisionError: by zero"),
        ("bad input", 2, "wagma: rank 2: no such digit"),
        ("SIGKILL", 1, "wagma: rank 2: killed by SIGKILL"),
        ("SIGSEGV", 1, "wagma: rank 2: killed by SIGSEGV"),
        ("0", 1, "wagma: rank 2: left with exit status 0"),
        ("3", 1, "wagma: rank 2: left with exit status 3"),
        ("complains", 1, "wagma: rank 2: ZeroDivisionError"),  # rank 1 speaks of it earlier
    ],
)
def test_a_rank_that_fails(failure: str, status: int, first: str, job: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start(job, tmp_path, failure)
    pids = ranks_of(process, tmp_path)
    stopwatch = Stopwatch()
    _, errors = process.communicate(timeout=LIMIT_S)
    assert stopwatch.seconds < launch.OVER_WITHIN_S
    assert process.returncode == status
    assert errors.startswith(first), errors
    assert errors.count("wagma:") == 1
    assert ("Traceback" in errors) is ("ZeroDivisionError" in first)
    assert ("Fatal Python error" in errors) is (failure == "SIGSEGV")
    assert "BAD TERMINATION" not in errors
    assert gone(pids, LIMIT_S)
    assert list(tmp_path.glob("wagma-*")) == []


@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_the_launcher_ends_the_ranks(number: int, job: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start(job, tmp_path, "never")
    pids = ranks_of(process, tmp_path)
    stopwatch = Stopwatch()
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (130, "")
    assert gone(pids, LIMIT_S)
    assert stopwatch.seconds < launch.OVER_WITHIN_S


@needs_mpi
def test_killing_the_launcher_ends_the_ranks(job: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start(job, tmp_path, "never")
    pids = ranks_of(process, tmp_path)
    stopwatch = Stopwatch()
    process.kill()
    assert gone(pids, LIMIT_S)
    assert stopwatch.seconds < launch.OVER_WITHIN_S


def test_the_steps_to_the_end_take_less_than_is_promised() -> None:
    assert launch.FAILURE_LIMIT_S + sum(limit_s for _, limit_s in launch.STOP_LIMITS_S) + launch.POLL_S < launch.OVER_WITHIN_S


@needs_mpi
@pytest.mark.slow
def test_train_for_real(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = ["-n", "2", "--iterations", "12", "--algorithms", "allreduce_sgd,wagma_sgd", "--delay", "0.05"]
    status = main(["train", "digits", *options, "--trace", str(tmp_path / "t.jsonl"), "--json", str(tmp_path / "r.json")])
    output, errors = capfd.readouterr()
    assert (status, errors) == (0, "")
    assert "trained on 2 real ranks" in output
    found = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [(r["algorithm"], r["ranks"], r["engine"], r["iterations"]) for r in found] == [
        ("allreduce_sgd", 2, "real", 12),
        ("wagma_sgd", 2, "real", 12),
    ]
    assert all(r["accuracy"] > 0 and r["throughput"]["value"] > 0 for r in found)
    traces = [str(tmp_path / f"t.{name}.2.jsonl") for name in ("allreduce_sgd", "wagma_sgd")]
    assert load_trace(traces[1]).scenario.imbalance[0].delay_s == 0.05
    assert main(["validate", "-q", *traces]) == 0


@needs_mpi
@pytest.mark.long
def test_train_resident_over_mpi(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = ["-n", "2", "--iterations", "12", "--delay", "0.02", "--transport", "mpi", "--resident", "-q"]
    status = main(["train", "digits", *options, "--trace", str(tmp_path / "t.jsonl")])
    assert (status, *capfd.readouterr()) == (0, "", "")
    assert main(["validate", "-q", str(tmp_path / "t.jsonl")]) == 0


def test_train_hands_on_how_models_travel_and_where_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    seen: list[dict[str, object]] = []
    monkeypatch.setattr("wagma.real.train.train", lambda *_, **options: seen.append(options))
    arguments = parser().parse_args(["train", "digits", "--transport", "mpi", "--resident"])
    nobody: list[object] = []
    assert train_command._train([(load("digits"), "wagma_sgd")], arguments, None, lambda *_: None, CPU, nobody.append) == []
    [options] = seen
    handed = {"transport": "mpi", "resident": True, "tensorboard": None, "digests": False, "device": CPU}
    assert handed.items() <= options.items()


def test_train_hands_on_what_is_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are read for a trace alone; of several algorithms each has a folder of scalars."""
    pytest.importorskip("torch")
    seen: list[dict[str, object]] = []
    monkeypatch.setattr("wagma.real.train.train", lambda *_, **options: seen.append(options))
    runs = [(load("digits"), "wagma_sgd"), (load("digits"), "allreduce_sgd")]
    for more in ([], ["--no-digests"]):
        arguments = parser().parse_args(["train", "digits", "--trace", "a.jsonl", "--tensorboard", "runs", *more])
        train_command._train(runs, arguments, None, lambda *_: None, CPU, lambda *_: None)
    assert [options["digests"] for options in seen] == [True, True, False, False]
    assert [options["tensorboard"] for options in seen[:2]] == [Path("runs/wagma_sgd"), Path("runs/allreduce_sgd")]


@needs_mpi
@pytest.mark.long
def test_one_real_rank(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    options = ["-n", "1", "--iterations", "5", "--delay", "0", "--algorithm", "ideal", "--json", "-"]
    assert main(["train", "digits", *options]) == 0
    output, errors = capfd.readouterr()
    assert json.loads(output)["results"][0]["ranks"] == 1
    assert errors == ""


@needs_mpi
def test_bad_input_under_mpiexec_is_said_once() -> None:
    """Where the user's own mpiexec started the ranks, all of them see the mistake."""
    rank = [sys.executable, "-m", "mpi4py", "-m", "wagma", "train", "digits", "-n", "3"]
    command = [str(launch.find_mpiexec()), "-n", "2", *rank]
    done = subprocess.run(command, env=dict(launch.environment()), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("wagma:") == 1
    assert "-n 3: mpiexec started 2 ranks" in done.stderr


def on_threads(ranks: int, arguments: Sequence[str], progress: object = None) -> int:
    """run_ranks for `wagma train`, whose ranks are threads here: each process would import torch again."""
    from real_ranks import train_locally

    options = parser().parse_args(arguments[1:])
    (scenario,) = load_scenarios(options, [ranks])
    names = select_algorithms(options.algorithms)
    for name in names:
        trace = train_locally(scenario, name, lambda rank, t: 0.02 * ((rank + t) % 4 == 0))
        trace.write(trace_path(options.trace, name, ranks, several=len(names) > 1))
    return 0


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_demo(launched: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """launched: its training runs on processes, as always outside of a test."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    if not launched:
        monkeypatch.setattr("wagma.commands.demo.run_ranks", on_threads)
    folder = tmp_path / "made" / "demo"
    status = main(["demo", "--iterations", "40", "--output", str(folder), "--json", str(tmp_path / "d.json")])
    output, errors = capfd.readouterr()
    assert (status, errors) == (0, "")
    steps = [output.index(f"{number}. ") for number in (1, 2, 3, 4)]
    assert steps == sorted(steps)
    for text in (
        "11,430 ± 91",
        "times as fast as allreduce_sgd",
        "predicted / measured",
        "No promise is violated",
        "accuracies of",
    ):
        assert text in output
    assert (folder / "timeline.png").stat().st_size > 10_000
    assert "held" in (folder / "promises.txt").read_text()
    document = json.loads((tmp_path / "d.json").read_text())
    assert document["violations"] == 0
    assert [r["ranks"] for r in document["simulated"]["results"]] == [16] * 4 + [64] * 4
    assert document["speed_up"]["simulated"] > 1.1
    assert document["speed_up"]["predicted"] > 1.1
    single = load_trace(folder / "single.jsonl")
    predicted = load_trace(folder / "predicted.wagma_sgd.4.jsonl")
    # Nothing of the run that is predicted goes into the prediction.
    assert predicted.header.scenario["compute"] == {
        "kind": "samples",
        "seconds": [a.computed_ns * 1e-9 for a in single.iterations],
    }
    assert len(single.starts) == 1


@needs_mpi
def test_a_rank_is_named_once() -> None:
    """Many messages say themselves whose error it is, of a peer, too."""
    assert str(launch.Failure(1, "no memory")) == "wagma: rank 1: no memory"
    assert str(launch.Failure(1, "rank 0: checkpoint: no space")) == "wagma: rank 0: checkpoint: no space"
    assert str(launch.Failure(1, "ranks 0 and 2 differ")) == "wagma: rank 1: ranks 0 and 2 differ"
    assert str(launch.Failure(None, "mpiexec ended")) == "wagma: mpiexec ended"


def test_output_of_a_module() -> None:
    measured = json.loads(launch.output_of(2, "wagma.real.measure", 60.0))
    # Overheads may be all that a message costs.
    assert measured["latency_ns"] + 2 * measured["overhead_ns"] > 0
    assert min(measured.values()) >= 0


@needs_mpi
def test_output_of_a_module_that_fails() -> None:
    with pytest.raises(WagmaError, match="ping-pong needs 2"):
        launch.output_of(1, "wagma.real.measure", 60.0)


@needs_mpi
def test_output_of_a_module_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WagmaError, match=r"not done after 0\.5 s"):
        launch.output_of(1, "sleepy", 0.5)


def test_ranks_leave_the_cores_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    found = launch.environment()
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("1", "3")  # what the user says counts


@pytest.mark.parametrize("variable", launch.RANK_VARIABLES)
def test_being_a_rank_already(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launch.under_mpiexec()
    monkeypatch.setenv(variable, "0")
    assert launch.under_mpiexec()


def test_channel_keeps_events_whole_and_in_order(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    path = str(receiver.path)
    try:
        senders = [Sender(path, rank) for rank in (0, 1)]
        assert is_read(path)
        for sender in senders:
            assert sender.send("begun", pid=7)
            assert sender.send_text("é" * PIPE_LIMIT)
        events = list(receiver.events())
    finally:
        receiver.close()
    for rank in (0, 1):
        own = [event for event in events if event["rank"] == rank]
        assert own[0] == {"event": "begun", "rank": rank, "pid": 7}
        assert "".join(event["text"] for event in own[1:]) == "é" * PIPE_LIMIT
    assert not is_read(path)


def test_nobody_listens(tmp_path: Path) -> None:
    assert not Sender(None, 0).send("begun")
    assert not Sender(str(tmp_path / "nothing"), 0).send("begun")
    assert not Sender(None, 0).send_text("")


def test_a_rank_without_a_launcher_to_hear_it_goes_on(tmp_path: Path) -> None:
    """On another host the channel's path leads nowhere."""
    program = [sys.executable, "-c", "import time; time.sleep(1.5); print('through')"]
    command = [sys.executable, "-m", "wagma.real.launching.supervise", str(tmp_path / "nowhere"), *program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "through\n")
