"""Bad input: one line on standard error that names the thing, its value and what is allowed; exit status 2; never a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from wagma.cli import main
from wagma.real.launching import launch
from wagma.scenario import packaged

SCENARIO = "resnet50_imagenet"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that bad arguments are answered with."""
    status = main(arguments)
    output, errors = capsys.readouterr()
    assert status == 2, errors
    assert output == ""
    assert errors.startswith("wagma: error: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    return errors


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["--nonsense"], "argument --nonsense: unknown; allowed: --help, --version"),
        (["simulate"], "SCENARIO"),
        (["simulate", SCENARIO, "--nonsense"], "--nonsense"),
        (["simulate", SCENARIO, "--iter", "5"], "--iter"),  # no abbreviations: they would stop working one day
        (["simulate", "nowhere.toml"], "'nowhere.toml'"),
        (["simulate", SCENARIO, "--ranks", "0"], "'0'"),
        (["simulate", SCENARIO, "--ranks", "-4"], "'-4'"),
        (["simulate", SCENARIO, "--ranks", "4,,8"], "'4,,8'"),
        (["simulate", SCENARIO, "--ranks", "4,4"], "'4,4'"),
        (["simulate", SCENARIO, "--ranks", "many"], "'many'"),
        (["simulate", SCENARIO, "--ranks", "4", "--set", "ranks=8"], "--set ranks=8"),
        (["simulate", SCENARIO, "--algorithms", "sgd"], "'sgd'"),
        (["simulate", SCENARIO, "--algorithms", ""], "''"),
        (["simulate", SCENARIO, "--algorithms", "ideal,,wagma_sgd"], "''"),
        (["simulate", SCENARIO, "--algorithms", "all,ideal"], "'all'"),
        (["simulate", SCENARIO, "--iterations", "0"], "iterations = 0"),
        (["simulate", SCENARIO, "--iterations", "1.5"], "'1.5'"),
        (["simulate", SCENARIO, "--seed", "-1"], "seed = -1"),
        (["simulate", SCENARIO, "--seed", "x"], "'x'"),
        (["simulate", SCENARIO, "--seed", str(2**63)], f"seed = {2**63}"),
        (["simulate", SCENARIO, "--group-size", "0"], "group_size = 0"),
        (["simulate", SCENARIO, "--ranks", "4", "--group-size", "5"], "group_size = 5"),
        (["simulate", SCENARIO, "--group-size", "cube"], "'cube'"),
        (["simulate", SCENARIO, "--sync-period", "0"], "sync_period = 0"),
        (["simulate", SCENARIO, "--sync-period", "always"], "'always'"),
        (["simulate", SCENARIO, "--sync-period", "never"], "local_sgd"),
        (["simulate", SCENARIO, "--delay", "-1"], "delay_s = -1.0"),
        (["simulate", SCENARIO, "--delay", "nan"], "delay_s = nan"),
        (["simulate", SCENARIO, "--delay", "inf"], "delay_s = inf"),
        (["simulate", SCENARIO, "--delay", "long"], "'long'"),
        (["simulate", SCENARIO, "--set", "ranks"], "--set ranks"),
        (["simulate", SCENARIO, "--set", "=3"], "--set =3"),
        (["simulate", SCENARIO, "--set", "network..latency_ns=3"], "network..latency_ns"),
        (["simulate", SCENARIO, "--set", "bandwidth=3"], "bandwidth = 3"),
        (["simulate", SCENARIO, "--set", "network.bandwidth=3"], "network.bandwidth = 3"),
        (["simulate", SCENARIO, "--set", "ranks.more=3"], "'ranks'"),
        (["simulate", SCENARIO, "--set", "imbalance.7.delay_s=3"], "'7'"),
        (["simulate", SCENARIO, "--set", "imbalance.0=3"], "imbalance[0] = 3"),
        (["simulate", SCENARIO, "--set", "imbalance=3"], "imbalance = 3"),
        (["simulate", SCENARIO, "--set", "model.dtype=int8"], '"int8"'),
        (["simulate", SCENARIO, "--set", "seed=1\nranks=2"], "seed"),
        (["simulate", SCENARIO, "--set", "algorithms.sgd.sync_period=3"], "sgd"),
        (["simulate", SCENARIO, "--set", "algorithms.eager_sgd.initiators=0"], "algorithms.eager_sgd.initiators = 0"),
        (["simulate", SCENARIO, "--ranks", "4", "--set", "algorithms.eager_sgd.initiators=5"], "initiators = 5"),
        (["simulate", SCENARIO, "--set", 'algorithms.eager_sgd.initiators="most"'], "'most'"),
        (["simulate", SCENARIO, "--set", "algorithms.eager_sgd.initiators=true"], "initiators = True"),
        (["simulate", SCENARIO, "--set", "algorithms.eager_sgd.initiators=1.5"], "initiators = 1.5"),
        (["simulate", SCENARIO, "--set", "algorithms.wagma_sgd.initiators=1"], "initiators = 1: unknown key"),
        (["simulate", SCENARIO, "--set", "algorithm.initiators=1"], "initiators = 1: unknown key"),
        (["simulate", SCENARIO, "--engine", "warp"], "'warp'"),
        (["simulate", SCENARIO, "--ranks", "2", "--set", "compute.seconds=1e9"], "beyond 2^63 ns, 292 years"),
        (["simulate", SCENARIO, "--ranks", "2", "--algorithms", "ideal", "--set", "compute.seconds=1e9"], "beyond 2^63 ns"),
        (["simulate", SCENARIO, "--trace", "."], "'.'"),
        (["simulate", SCENARIO, "--trace", "no/such/folder/t"], "no/such/folder"),
        (["simulate", SCENARIO, "--json", "."], "'.'"),
        (["simulate", SCENARIO, "--json", ""], "--json ''"),
        (["simulate", SCENARIO, "-q", "-v"], "not allowed with"),
        (["train", "digits", "-n", "0"], "'0'"),
        (["train", "digits", "-n", "2,4"], "'2,4'"),
        (["train", "digits", "--engine", "simpy"], "'simpy'"),
        (["train", "digits", "--algorithm", "sgd"], "'sgd'"),
        (["train", "digits", "-n", "2", "--group-size", "3"], "group_size = 3"),
        (["train", "digits", "--trace", "."], "'.'"),
        (["train", "digits", "--report-every", "0"], "'0'"),
        (["train", "digits", "--no-digests"], "--trace"),
        (["train", "digits", "--device", "gpu"], "argument --device: 'gpu': must be cpu, cuda, cuda:N or emulated"),
        (
            ["train", "digits", "--device", "emulated", "--resident", "--transport", "shm"],
            "--resident with --transport shm: on --device emulated it must be auto, ipc or cuda-mpi",
        ),
        (["train", "digits", "--transport", "ipc"], "--transport ipc: of models on a device; with --device cpu it must be"),
        (["train", "digits", "--checkpoint-every", "5"], "--checkpoint-every 5: only with --checkpoint"),
        (["train", "digits", "--checkpoint", ""], "argument --checkpoint: '': must be the name of a folder"),
        (["train", "digits", "--resume", ""], "argument --resume: '': must be the name of a folder"),
        (["train", "digits", "--checkpoint", "/dev/null/run"], "/dev/null/run: no folder that can be written: /dev/null is a file"),
        (["train", "digits", "--tensorboard", "/dev/null"], "--tensorboard /dev/null: no folder that can be written"),
        (["train", "digits", "--checkpoint", "run", "--sync-period", "never"], 'wagma_sgd with sync_period = "never" has no syncs'),
        (["train", "digits", "--checkpoint", "run", "--algorithm", "sgp"], "sgp has no syncs"),
        (["train", "digits", "--trace", "a.jsonl", "--every", "301"], "at most the number of iterations of wagma_sgd, 300"),
        (["train", "digits", "--trace", "a", "--times", "./a"], "--times './a': --trace goes to the same file"),
        (["simulate", SCENARIO, "--trace", "a", "--json", "a"], "--json 'a': --trace goes to the same file"),
        (["compare", "digits", "--limit", "5"], "--limit 5: only with --real"),
        (["compare", "digits", "--limit", "0", "--real"], "--limit 0: must be seconds"),
        (["compare", "digits", "--seed", "3", "--seeds", "4,5"], "--seed 3: --seeds 4,5 says which"),
        (["trace", "summary", "nowhere.jsonl"], "nowhere.jsonl"),
        (["train", SCENARIO], "training.workload"),
        (["train", "nowhere"], "'nowhere'"),
        (["validate"], "TRACE"),
        (["validate", "nowhere.jsonl"], "nowhere.jsonl"),
        (["validate", "."], "trace .:"),
        (["demo", "--iterations", "0"], "iterations = 0"),
        (["demo", "--json", "."], "'.'"),
        (["scenarios", "show"], "NAME"),
        (["scenarios", "show", "nowhere"], "'nowhere'"),
        (["scenarios", "eat"], "'eat'"),
        (["env", "--json", "no/such/folder/e"], "no/such/folder"),
        (["env", "extra"], "extra"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)  # fmt: skip
def test_options(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in complaint(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("ranks = ", "not valid TOML"),
        ("\x00", "not valid TOML"),
        ("ranks = 4", "name: missing"),
    ],
)
def test_files_that_are_no_scenario(text: str, named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    line = complaint(capsys, "simulate", str(path))
    assert str(path) in line
    assert named in line


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("ranks = 64", "ranks = 0", "ranks = 0"),
        ("ranks = 64", "ranks = true", "ranks = true"),
        ("ranks = 64", 'ranks = "64"', 'ranks = "64"'),
        ("ranks = 64", "ranks = 64\nrank = 64", "rank = 64"),
        ("delay_s = 0.32", "delay_s = -0.32", "imbalance[0].delay_s = -0.32"),
        ("delay_s = 0.32", "delay_s = nan", "imbalance[0].delay_s = nan"),
        ("draws = 2", "draws = 0", "imbalance[0].draws = 0"),
        ("draws = 2", "draws = 2\nprobability = 0.5", "probability = 0.5"),
        ("seconds = 0.62", "seconds = 0", "compute.seconds = 0"),
        ('kind = "constant"', 'kind = "constantly"', 'compute.kind = "constantly"'),
        ('group_size = "sqrt"', "group_size = 65", "algorithm.group_size = 65"),
        ("latency_ns = 1_300", "latency_ns = inf", "network.latency_ns = inf"),
        ('dtype = "float32"', 'dtype = ["float32"]', "model.dtype"),
        ("[model]", "[[model]]", "model"),
        ("[[imbalance]]", "[imbalance]", "imbalance"),
    ],
)
def test_scenarios_with_one_mistake(old: str, new: str, named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = packaged()[SCENARIO].read_text()
    assert text.count(old) == 1
    path = tmp_path / "mistaken.toml"
    path.write_text(text.replace(old, new))
    line = complaint(capsys, "simulate", str(path))
    assert str(path) in line
    assert named in line


def test_a_file_of_bytes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe\x00")
    assert str(path) in complaint(capsys, "simulate", str(path))
    assert str(path) in complaint(capsys, "validate", str(path))


def test_a_folder_as_scenario(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path) in complaint(capsys, "simulate", str(tmp_path))


def test_delay_without_an_imbalance(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = packaged()[SCENARIO].read_text()
    path = tmp_path / "balanced.toml"
    path.write_text(text[: text.index("[[imbalance]]")] + text[text.index("[network]") :])
    assert "--delay 0.5" in complaint(capsys, "simulate", str(path), "--delay", "0.5")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", ":1:"),
        ("{}", ":1:"),
        ("[1]", ":1:"),
        ("null", ":1:"),
        ('{"record": "execution"}', ":1:"),
        ('{"record": "header"}', ":1:"),
        ('{"record": "header", "schema": 1, "colour": "red"}', "'colour'"),
        ('{"record": "header", "world": 3}', "world = 3"),
    ],
)
def test_files_that_are_no_trace(line: str, named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(line + "\n")
    text = complaint(capsys, "validate", str(path))
    assert str(path) in text
    assert named in text


def test_traces_with_a_mistake(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    assert (
        main(
            ["simulate", SCENARIO, "--ranks", "2", "--iterations", "3", "--algorithm", "wagma_sgd", "--trace", str(path), "-q"]
        )
        == 0
    )
    header, *lines = [re.sub(',"seal":"[0-9a-f]*"', "", line) for line in path.read_text().splitlines()]
    path.write_text("")
    assert "empty" in complaint(capsys, "validate", str(path))
    for change, named in (
        ({"schema": 99}, "schema = 99"),
        ({"algorithm": "sgd"}, "'sgd'"),
        ({"scenario": {"name": "x"}}, "missing"),
    ):
        path.write_text("\n".join([json.dumps({**json.loads(header), **change}), *lines]))
        assert named in complaint(capsys, "validate", str(path))


def pretend_missing(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Modules look as if they were not installed."""
    real = util.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        return None if name in modules else real(name)

    for place in ("wagma.real.launching.launch", "wagma.workloads.registry", "wagma.commands.demo"):
        monkeypatch.setattr(f"{place}.find_spec", find_spec)


@pytest.mark.parametrize(
    ("module", "named"),
    [("mpi4py", "mpi4py"), ("wagma._native", "wagma._native"), ("torch", "torch"), ("sklearn", "scikit-learn")],
)
@pytest.mark.parametrize("command", [["train", "digits", "-n", "2"], ["demo"]])
def test_real_runs_say_what_is_missing(
    command: list[str],
    module: str,
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    pretend_missing(monkeypatch, module)
    line = complaint(capsys, *command)
    assert named in line
    assert "docs/install.md" in line
    assert list(tmp_path.iterdir()) == []


def test_a_workload_is_asked_for_what_it_needs_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """text and rl train without scikit-learn, text without gymnasium."""
    pytest.importorskip("torch")
    pytest.importorskip("mpi4py")
    pytest.importorskip("wagma._native")
    monkeypatch.setattr("wagma.commands.train.run_ranks", lambda *_: 0)
    pretend_missing(monkeypatch, "sklearn", "gymnasium")
    assert main(["train", "text", "-q"]) == 0
    assert "the workload rl needs gymnasium: pip install" in complaint(capsys, "train", "rl")
    assert "the workload digits needs scikit-learn: pip install" in complaint(capsys, "train", "digits", "-n", "2")


def test_the_part_that_calls_mpi_is_needed_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_missing(monkeypatch, "wagma._native_mpi")
    line = complaint(capsys, "train", "digits", "-n", "2", "--transport", "mpi")
    assert "a real run needs the kernel's part wagma._native_mpi" in line
    pytest.importorskip("mpi4py")
    pytest.importorskip("wagma._native")
    assert launch.require(training=False) == launch.find_mpiexec()  # ranks on one machine share memory


def test_what_cannot_be_resident_is_refused_before_any_rank_starts(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(capsys, "train", "digits", "-n", "2", "--algorithms", "wagma_sgd,allreduce_sgd", "--resident")
    assert "resident = True: allreduce_sgd averages no models in collectives; must be False" in line
    assert "or the algorithm one of local_sgd, wagma_sgd" in line


def test_no_mpiexec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "mpiexec" in complaint(capsys, "train", "digits")


def test_training_in_the_simulator_needs_torch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_missing(monkeypatch, "torch")
    line = complaint(capsys, "simulate", "digits")
    assert "pip install torch scikit-learn" in line
    assert "--set training.workload=none" in line
    assert main(["simulate", "digits", "--set", "training.workload=none", "--iterations", "5", "-q"]) == 0


def test_the_demo_needs_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_missing(monkeypatch, "matplotlib")
    assert "pip install matplotlib" in complaint(capsys, "demo")


def test_the_demo_starts_its_own_ranks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    assert "mpiexec" in complaint(capsys, "demo")


def test_an_output_folder_that_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file/folder" in complaint(capsys, "demo", "--output", str(tmp_path / "file" / "folder"))


def test_errors_from_the_installed_command_are_one_line() -> None:
    """The same through a process of its own: nothing escapes at start-up or exit."""
    command = [sys.executable, "-m", "wagma", "simulate", SCENARIO, "--group-size", "65"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "from 1 to the number of ranks, 64" in done.stderr
