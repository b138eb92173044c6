"""Sweeps: the table, what is run and what is reused, crashes and kills, the same through MPI."""

from __future__ import annotations

import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mpi_launch
import pytest

import wagma
from wagma.algorithms import ALGORITHMS, Collectives
from wagma.algorithms.registry import Specification
from wagma.cli import main
from wagma.commands.sweep import parse_lists
from wagma.core.effects import ComputeGradient, Value
from wagma.errors import InputError, MissingDependencyError, WagmaError
from wagma.report.rows import read_rows
from wagma.scenario import load
from wagma.studies import pool
from wagma.studies import sweep as sweeps
from wagma.studies.journal import Journal
from wagma.studies.sweep import _version

SCENARIO = "resnet50_imagenet"
THOUSAND = ",".join(map(str, range(1000)))
#: Ten runs that take a while together, for those that are to be interrupted.
LONG = [
    "sweep", SCENARIO, "--set", "iterations=150", "--set", "algorithm.group_size=2,4", "--set", "algorithm.sync_period=4,8", "--ranks",
    "16,32", "--algorithms", "wagma_sgd,allreduce_sgd", "--jobs", "2", "--engine", "simpy",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["sweep", SCENARIO, "--set", "iterations=12", *arguments])
    output, errors = capsys.readouterr()
    return status, output, errors


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wagma", *LONG, "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_lines(path: Path, count: int) -> None:
    """Until so many runs are in a journal."""
    for _ in range(3000):
        if path.exists() and path.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.01)
    pytest.fail(f"{path} did not get {count} entries")


def test_one_row_for_each_combination(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    status, output, _ = run(
        capsys, "--set", "algorithm.group_size=2,4,sqrt", "--ranks", "4,8", "--seeds", "1,2", "--algorithms",
        "wagma_sgd,allreduce_sgd", "--out", str(out),
    )  # fmt: skip
    assert status == 0
    rows = read_rows(out)
    assert [(r["ranks"], r["algorithm.group_size"], r["seed"], r["algorithm"]) for r in rows] == [
        (ranks, size, seed, algorithm)
        for ranks in (4, 8) for size in (2, 4, "sqrt") for seed in (1, 2) for algorithm in ("wagma_sgd", "allreduce_sgd")
    ]  # fmt: skip
    assert "wall_s" not in rows[0]
    # allreduce_sgd has no groups, and sqrt is 2 at 4 ranks and 4 at 8, so that wagma_sgd runs with two sizes.
    assert f"{out}: 24 rows of 12 different runs\n" in output
    for row in rows[:4]:
        changes = {
            "ranks": row["ranks"],
            "seed": row["seed"],
            "iterations": 12,
            "algorithm.group_size": row["algorithm.group_size"],
        }
        [alone] = wagma.simulate(load(SCENARIO, changes), row["algorithm"])
        for name, value in row.items():
            if hasattr(alone, name):
                assert value == getattr(alone, name), name


def test_the_best_settings_are_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    _, output, _ = run(
        capsys, "--set", "algorithm.sync_period=2,12", "--ranks", "8", "--algorithms", "wagma_sgd", "--out", str(out)
    )
    assert output.splitlines()[0].split() == ["ranks", "algorithm", "best", "images/s", "algorithm.sync_period"]
    best = max(read_rows(out), key=lambda row: row["throughput"])
    assert output.splitlines()[1].split()[-1] == str(best["algorithm.sync_period"])


def test_a_killed_sweep_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 in the middle; then the table is that of a sweep that nobody disturbed, without running anything twice."""
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    undisturbed = start(whole)
    undisturbed.communicate(timeout=60)
    assert undisturbed.returncode == 0
    process = start(killed)
    wait_for_lines(sweeps.journal_of(killed), 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not killed.exists()
    time.sleep(0.5)  # workers end by themselves
    before = sweeps.journal_of(killed).read_text().splitlines()
    assert 3 < len(before) < 11
    again = start(killed)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "of them from killed.csv.journal" in output
    assert killed.read_bytes() == whole.read_bytes()
    after = sweeps.journal_of(killed).read_text().splitlines()
    assert after[: len(before)] == before
    runs = [json.loads(line)["run"] for line in after[1:]]
    assert len(runs) == len(set(runs)) == 10


def test_workers_of_a_killed_sweep_end(tmp_path: Path) -> None:
    process = start(tmp_path / "t.csv")
    wait_for_lines(sweeps.journal_of(tmp_path / "t.csv"), 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_is_one_line_and_keeps_the_journal(tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    process = start(out)
    wait_for_lines(sweeps.journal_of(out), 2)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (130, "", "wagma: interrupted\n")
    assert not out.exists()
    assert len(sweeps.journal_of(out).read_text().splitlines()) > 2


def counted(monkeypatch: pytest.MonkeyPatch) -> list[pool.Job]:
    """What is run in this process from now on."""
    ran: list[pool.Job] = []
    here = pool.run_here

    def run_here(jobs: Any, report: Any) -> Iterator[pool.Finished]:
        ran.extend(jobs)
        return here(jobs, report)

    monkeypatch.setattr(pool, "run_here", run_here)
    return ran


def sweep_here(out: Path | None, settings: dict[str, list[Any]], changes: dict[str, Any] | None = None) -> sweeps.Sweep:
    scenario = load(SCENARIO, {"ranks": 4, "iterations": 6, **(changes or {})})
    return sweeps.sweep(scenario, settings, "wagma_sgd", out=out, in_process=True)


def test_a_larger_sweep_takes_what_it_has_in_common(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran, out = counted(monkeypatch), tmp_path / "t.csv"
    sweep_here(out, {"algorithm.group_size": [1, 2]})
    assert len(ran) == 2
    done = sweep_here(out, {"algorithm.group_size": [1, 2, 4]})
    assert (len(ran), done.reused, len(done.rows)) == (3, 2, 3)
    assert [row["algorithm.group_size"] for row in read_rows(out)] == [1, 2, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"imbalance.0.delay_s": 0.1},
        {"iterations": 7},
        {"network.latency_ns": 3},
        {"algorithms": {"wagma_sgd": {"merge_once": True}}},
    ],
    ids=str,
)
def test_a_changed_scenario_reuses_nothing(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran, out = counted(monkeypatch), tmp_path / "t.csv"
    sweep_here(out, {"algorithm.group_size": [1, 2]})
    before = out.read_bytes()
    done = sweep_here(out, {"algorithm.group_size": [1, 2]}, change)
    assert (len(ran), done.reused) == (4, 0)
    assert len(read_rows(out)) == 2
    # And back again: both are in the journal now.
    assert sweep_here(out, {"algorithm.group_size": [1, 2]}).reused == 2
    assert out.read_bytes() == before


def test_a_changed_csv_of_compute_times_reuses_nothing(tmp_path: Path) -> None:
    times, scenario, out = tmp_path / "times.csv", tmp_path / "s.toml", tmp_path / "t.csv"
    scenario.write_text(
        'name = "mine"\nranks = 2\niterations = 4\nmodel = {parameters = 10}\nwork = {per_rank = 1, unit = "steps"}\n'
        'compute = {kind = "trace", file = "times.csv"}\n'
    )
    for seconds in (0.5, 0.7):
        times.write_text(f"rank,iteration,seconds\n0,0,{seconds}\n")
        done = sweeps.sweep(scenario, {"algorithm.group_size": [1]}, "wagma_sgd", out=out, in_process=True)
        assert done.reused == 0
        assert done.rows[0].result.iteration_mean_s == pytest.approx(seconds)


@pytest.mark.parametrize("jobs", [None, 2])
def test_a_csv_that_is_edited_while_the_sweep_runs(jobs: int | None, tmp_path: Path) -> None:
    """What runs is what was planned, and so what the journal knows it by."""
    times, scenario, out = tmp_path / "times.csv", tmp_path / "s.toml", tmp_path / "t.csv"
    scenario.write_text(
        'name = "mine"\nranks = 2\niterations = 4\nmodel = {parameters = 10}\nwork = {per_rank = 1, unit = "steps"}\n'
        'compute = {kind = "trace", file = "times.csv"}\n'
    )
    times.write_text("rank,iteration,seconds\n0,0,0.5\n")
    points = sweeps.plan(scenario, {"seed": [1, 2]}, ["ideal"])
    times.write_text("rank,iteration,seconds\n0,0,0.7\n")
    done = sweeps.execute(points, out, pool.run_here if jobs is None else sweeps.processes(points, jobs))
    assert [row.result.iteration_mean_s for row in done.rows] == [pytest.approx(0.5)] * 2
    changed = sweeps.sweep(scenario, {"seed": [1, 2]}, ["ideal"], out=out, in_process=True)
    assert changed.reused == 0
    assert [row.result.iteration_mean_s for row in changed.rows] == [pytest.approx(0.7)] * 2


def test_a_csv_is_worked_out_once_for_all_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long one takes a second, and a sweep has a thousand points."""
    times = tmp_path / "times.csv"
    times.write_text("rank,iteration,seconds\n0,0,0.25\n0,1,0.5\n")
    scenario = load(SCENARIO, {"ranks": 2, "iterations": 4, "imbalance": []})
    settings = {"compute": [{"kind": "trace", "file": str(times)}], "seed": [1, 2, 3]}
    points = sweeps.plan(scenario, settings, ["ideal", "sgp"])
    [one] = {id(point.scenario.compute.measured) for point in points}
    measured = points[0].scenario.compute.measured
    assert measured is not None
    assert id(measured) == one
    with pytest.raises(ValueError, match="read-only"):
        measured[0, 0] = 1
    ran = counted(monkeypatch)
    assert len(sweeps.execute(points, None, pool.run_here).rows) == 6
    assert len({id(job.table["compute"]) for job in ran}) == 1
    assert ran[0].table["compute"] == {"kind": "trace", "seconds": [[0.25, 0.5]]}
    assert len({point.digest for point in points}) == 6


OWN = """
from wagma.core.effects import ApplyUpdate, Average, ComputeGradient, Exchange, Value
from wagma.core.graphs import ring

def neighbours(rank):
    return ring(rank.schedule.world_size, rank.rank)

def mine(rank):
    for t in rank.iterations:
        yield ComputeGradient(t)
        outcome = yield Exchange(t, Value.MODEL, neighbours(rank), neighbours(rank))
        yield Average(t, 1, 1 + outcome.mass)
        yield ApplyUpdate(t)
"""


def digest_of(folder: Path, text: str, **changes: Any) -> str:
    """Of an algorithm whose module has this text, beside a fixed delay; it runs, too."""
    (folder / "own.py").write_text(text)
    module = ModuleType("own")
    module.__file__ = str(folder / "own.py")
    exec(compile(text, module.__file__, "exec"), module.__dict__)  # noqa: S102  the text above
    sys.modules["own"] = module
    known = Specification("mine", module.mine, **{"collectives": Collectives.NEIGHBOURS, **changes})
    ALGORITHMS["mine"] = known
    try:
        scenario = load(SCENARIO, {"ranks": 4, "iterations": 3})
        [point] = sweeps.plan(scenario, {}, ["mine"])
        assert sweeps.execute([point], None, pool.run_here).rows
        return point.digest
    finally:
        del ALGORITHMS["mine"], sys.modules["own"]


def test_the_whole_of_an_own_algorithm_counts(tmp_path: Path) -> None:
    """Its helpers and what it is registered with, not only the generator's own lines."""
    variants: list[tuple[str, dict[str, Any]]] = [
        (OWN, {}),
        (OWN.replace("return ring(rank.schedule.world_size, rank.rank)", "return ()"), {}),
        (OWN, {"delayed": False}),
        (OWN, {"value": Value.GRADIENT}),
        (OWN, {"keys": ("out_neighbours",)}),
        (OWN, {"collectives": Collectives.NONE}),
    ]
    digests = [digest_of(tmp_path, text, **changes) for text, changes in variants]
    assert len(set(digests)) == len(variants)
    assert digest_of(tmp_path, OWN) == digests[0]
    assert len(sweeps._source("ad_psgd")) == 2  # the second is its companion


def test_what_an_own_algorithm_was_made_with_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One text, two closures."""

    def maker(count: int) -> Any:
        def run(rank: Any) -> Iterator[Any]:
            for t in rank.iterations[:count]:
                yield ComputeGradient(t)

        return run

    sources = []
    for count in (1, 2, 1):
        monkeypatch.setitem(ALGORITHMS, "mine", Specification("mine", maker(count), Collectives.NONE, companion=maker(3)))
        sources.append(sweeps._source("mine"))
    assert sources[0] != sources[1]
    assert sources[0] == sources[2]


@pytest.mark.parametrize(
    ("library", "counts"),
    [
        *((name, [SCENARIO, "digits", "rl", "text"]) for name in ("numpy", "scipy", "simpy")),
        *((name, ["digits", "rl", "text"]) for name in ("torch", "python")),
        ("scikit-learn", ["digits"]),
        ("gymnasium", ["rl"]),
    ],
)
def test_other_libraries_reuse_nothing(library: str, counts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ranks train, what they train with counts; text is of the Python that reads it."""
    names = [SCENARIO, "digits", "rl", "text"]

    def digests() -> list[str]:
        return [sweeps.plan(load(name, {"ranks": 4, "iterations": 6}), {}, ["ideal"])[0].digest for name in names]

    monkeypatch.setattr("wagma.workloads.registry.find_spec", lambda _: True)
    before = digests()
    monkeypatch.setattr(sweeps, "_version", lambda name: "another" if name == library else _version(name))
    if library == "python":
        monkeypatch.setattr(platform, "python_version", lambda: "another")
    assert [name for name, new, old in zip(names, digests(), before, strict=True) if new != old] == counts


def test_another_program_reuses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    sweep_here(out, {"algorithm.group_size": [1]})
    monkeypatch.setattr(sweeps, "_program", lambda: "another version")
    assert sweep_here(out, {"algorithm.group_size": [1]}).reused == 0


def test_settings_that_an_algorithm_does_not_read_make_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch)
    scenario = load(SCENARIO, {"ranks": 4, "iterations": 6})
    settings = {"algorithm.group_size": [1, 2, 4], "algorithm.sync_period": [2, 3]}
    done = sweeps.sweep(scenario, settings, ["wagma_sgd", "allreduce_sgd", "ideal"], in_process=True)
    assert len(done.rows) == 18
    assert sorted(job.algorithm for job in ran) == ["allreduce_sgd", "ideal"] + ["wagma_sgd"] * 6
    of_ideal = {row.result.throughput for row in done.rows if row.result.algorithm == "ideal"}
    assert len(of_ideal) == 1


@pytest.mark.parametrize("cut", [1, 20])
def test_a_journal_that_a_kill_has_cut_short(cut: int, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    sweep_here(out, {"algorithm.group_size": [1, 2]})
    table, path = out.read_bytes(), sweeps.journal_of(out)
    path.write_bytes(path.read_bytes()[:-cut])
    assert sweep_here(out, {"algorithm.group_size": [1, 2]}).reused == 1
    assert out.read_bytes() == table
    assert sweep_here(out, {"algorithm.group_size": [1, 2]}).reused == 2  # the cut line was replaced, not continued


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("precious\n", ":1:"),
        ("precious", ":1:"),
        ('{"journal":"wagma sweep","schema":1}\nnonsense\n', ":2:"),
        ('{"run":3}\n', ":1:"),
    ],
)
def test_a_file_that_is_no_journal_is_left_alone(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv.journal"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        sweep_here(tmp_path / "t.csv", {"algorithm.group_size": [1]})
    assert path.read_text() == text


@pytest.mark.parametrize("written", [None, 3])
def test_a_disk_that_is_full(written: int | None, tmp_path: Path) -> None:
    """Nothing was written, or the beginning of a line."""

    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            if written is None:
                raise OSError(28, "No space left on device")
            return written

    with Journal(tmp_path / "journal") as journal:
        journal._file.close()
        journal._file = Full()
        with pytest.raises(WagmaError, match="journal: cannot be written: No space left"):
            journal.add("digest", {})


def test_a_journal_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "t.csv.journal").mkdir()
    with pytest.raises(InputError, match=r"t\.csv\.journal: cannot be written"):
        sweep_here(tmp_path / "t.csv", {"algorithm.group_size": [1]})


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    with Journal(sweeps.journal_of(out)), pytest.raises(InputError, match="another sweep is writing"):
        sweep_here(out, {"algorithm.group_size": [1]})


def test_own_algorithms_run_in_process_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def idle(rank: Any) -> Iterator[Any]:
        from wagma.core.effects import ComputeGradient

        for t in rank.iterations:
            yield ComputeGradient(t)

    monkeypatch.setitem(ALGORITHMS, "idle", ALGORITHMS["ideal"])
    from dataclasses import replace

    monkeypatch.setitem(ALGORITHMS, "idle", replace(ALGORITHMS["ideal"], name="idle", run=idle))
    scenario = load(SCENARIO, {"ranks": 2, "iterations": 3})
    with pytest.raises(InputError, match="in_process=True"):
        sweeps.sweep(scenario, {"seed": [1]}, "idle")
    done = sweeps.sweep(scenario, {"seed": [1]}, "idle", out=tmp_path / "t.csv", in_process=True)
    assert done.rows[0].result.throughput > 0


def test_a_crash_of_one_point_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed in the middle of a run, and an exception: both are reported, all others are done and kept."""
    # A module of this name is found by every Python that wagma starts here, before it runs anything.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'wagma.studies.pool' in sys.orig_argv:\n"
        "    import wagma.api\n"
        "    figures = wagma.api.figures\n"
        "    def hurt(scenario, algorithm, *rest, **options):\n"
        "        if scenario.seed == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        if scenario.seed == 3: raise ZeroDivisionError('a defect')\n"
        "        return figures(scenario, algorithm, *rest, **options)\n"
        "    wagma.api.figures = hurt\n"
    )
    out = tmp_path / "t.csv"
    command = [
        sys.executable, "-m", "wagma", "sweep", SCENARIO, "--set", "iterations=12", "--seeds", "1,2,3,4,5", "--ranks", "4",
        "--algorithms", "wagma_sgd", "--out", str(out), "--jobs", "1",
    ]  # fmt: skip
    broken = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=broken, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert lines[0].startswith("wagma: point iterations=12, ranks=4, seed=2, wagma_sgd: its process was ended by SIGKILL")
    assert lines[1].startswith("wagma: point iterations=12, ranks=4, seed=3, wagma_sgd: ZeroDivisionError: a defect (")
    assert "2 of 5 points failed" in lines[2]
    assert len(lines) == 3
    assert not out.exists()
    healed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (healed.returncode, healed.stderr) == (0, "")
    assert "5 rows of 5 different runs, 3 of them from t.csv.journal" in healed.stdout


@pytest.mark.mpi
def test_the_same_table_through_mpi(tmp_path: Path) -> None:
    arguments = [
        "sweep", SCENARIO, "--set", "iterations=12", "--set", "algorithm.group_size=1,2,4", "--ranks", "4,8", "--algorithms",
        "wagma_sgd,allreduce_sgd", "-q",
    ]  # fmt: skip
    assert main([*arguments, "--out", str(tmp_path / "here.csv")]) == 0
    command = [mpi_launch.executable(), "-n", "3", sys.executable, "-m", "mpi4py.futures", "-m", "wagma", *arguments, "--mpi"]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    job = mpi_launch.Launched([*command, "--out", str(tmp_path / "mpi.csv")], environment).wait(60)
    assert job.returncode == 0, job.output
    assert (tmp_path / "mpi.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


@pytest.mark.mpi
def test_mpi_without_its_launcher(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, errors = run(capsys, "--out", str(tmp_path / "t.csv"), "--mpi")
    assert status == 2
    assert "mpiexec -n 4 python -m mpi4py.futures -m wagma sweep" in errors
    alone = [
        mpi_launch.executable(),
        "-n",
        "1",
        sys.executable,
        "-m",
        "mpi4py.futures",
        "-m",
        "wagma",
        "sweep",
        SCENARIO,
        "--mpi",
    ]
    job = mpi_launch.Launched([*alone, "--out", str(tmp_path / "t.csv")], dict(os.environ)).wait(60)
    assert job.returncode != 0
    assert "this job has 1 rank; must be at least 2" in job.output
    assert list(tmp_path.iterdir()) == []


def test_parquet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    options = ["--set", "algorithm.group_size=2,sqrt", "--set", "compute.seconds=1,1.5", "--set", "compute.kind=constant"]
    options += ["--ranks", "4", "--algorithms", "wagma_sgd"]
    tables = [tmp_path / "t.csv", tmp_path / "t.parquet", tmp_path / "u.parquet"]
    for path in tables:
        assert run(capsys, *options, "--out", str(path))[0] == 0
    csv, parquet, again = map(read_rows, tables)
    assert tables[1].read_bytes() == tables[2].read_bytes()
    assert parquet == again
    for a, b in zip(csv, parquet, strict=True):
        assert {k: str(v) for k, v in a.items() if k not in ("compute.seconds",)} == {
            k: str(v) for k, v in b.items() if k not in ("compute.seconds",)
        }
    assert [row["compute.seconds"] for row in parquet] == [1.0, 1.5, 1.0, 1.5]


def test_training_is_swept_only_if_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Said before the first run, not by each of them."""
    monkeypatch.setattr("wagma.workloads.registry.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install torch"):
        sweeps.sweep("digits", {"training.learning_rate": [0.1, 0.2]}, "wagma_sgd", out=tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


def test_parquet_needs_pyarrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        sweep_here(tmp_path / "t.parquet", {"algorithm.group_size": [1]})
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_what_is_done(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    scenario = load(SCENARIO, {"ranks": 4, "iterations": 6})
    settings = {"algorithm.group_size": [1, 2], "iterations": [6, 12]}
    for number in range(2):
        calls.clear()
        sweeps.sweep(
            scenario, settings, "wagma_sgd", out=tmp_path / "t.csv", in_process=True, progress=lambda *call: calls.append(call)
        )
        assert calls[0] == ((0, 144) if number == 0 else (144, 144))
        assert calls[-1] == (144, 144)
        assert calls == sorted(calls)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=2,4,8", [2, 4, 8]),
        ("a.b=[2, 4, 8]", [2, 4, 8]),
        ("a.b=5", [5]),
        ("a.b=sqrt,2", ["sqrt", 2]),
        ('a.b=["sqrt", 2]', ["sqrt", 2]),
        ("a.b=0.5,1e3", [0.5, 1000.0]),
        ("a.b=true,false", [True, False]),
        ("a.b=[[1, 2], [3]]", [[1, 2], [3]]),
        ('a.b={kind="exactly"},{kind="fixed"}', [{"kind": "exactly"}, {"kind": "fixed"}]),
        ("a.b=butterfly", ["butterfly"]),
    ],
)
def test_lists(text: str, values: list[Any]) -> None:
    assert parse_lists([text]) == {"a.b": values}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "algorithm.grup_size=2,4"], "algorithm.grup_size = 2: unknown key"),
        (["--set", "algorithm.group_size="], "empty list"),
        (["--set", "algorithm.group_size=[]"], "empty list"),
        (["--set", "algorithm.group_size=2,,4"], "empty value"),
        (["--set", "algorithm.group_size"], "KEY=A,B"),
        (["--set", "=2"], "KEY=A,B"),
        (["--set", "algorithm.group_size=2,4,2"], "2 is there twice"),
        (["--set", "algorithm.group_size=2", "--set", "algorithm.group_size=4"], "given twice"),
        (["--set", "algorithm.group_size=2,8", "--ranks", "4,16"], "point ranks=4, iterations=12, algorithm.group_size=8: "),
        (["--set", "algorithm.sync_period=4,never", "--algorithms", "local_sgd", "--set", "algorithms={}"], 'sync_period = "never"'),
        (["--set", "ranks=4,8", "--ranks", "4"], "ranks: given twice"),
        (["--set", "seed=4,8", "--seeds", "4"], "seed: given twice"),
        (["--set", "imbalance.7.delay_s=1,2"], "'7'"),
        (["--set", "network.latency_ns=1,fast"], 'network.latency_ns = "fast"'),
        (["--seeds", THOUSAND, "--set", f"network.latency_ns={THOUSAND}"], "at most 100,000"),
        (["--seeds", "-1"], "'-1'"),
        (["--seeds", "1,1"], "'1,1'"),
        (["--ranks", "0"], "'0'"),
        (["--jobs", "0"], "'0'"),
        (["--jobs", "many"], "'many'"),
        (["--jobs", "2", "--mpi"], "--jobs"),
        (["--ranks", "4,1048576", "--engine", "simpy", "--set", "network.latency_ns=1,2"], "GiB"),
        (["--engine", "warp"], "'warp'"),
        (["--algorithms", "ad_psgd", "--engine", "fast"], "point iterations=12: "),
        (["--algorithms", "sgd"], "'sgd'"),
        (["--out", "t.txt"], ".csv or .parquet"),
        (["--out", "no/such/t.csv"], "no folder no/such"),
        (["--out", "folder.csv"], "a folder"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_sweeps(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    status, output, errors = run(capsys, "--algorithms", "wagma_sgd", "--out", "t.csv", *arguments)
    assert (status, output) == (2, ""), errors
    assert errors.startswith("wagma: error: ")
    assert errors.count("\n") == 1
    assert named in errors
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_jobs_that_do_not_fit_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scenario = load(SCENARIO, {"ranks": 4, "iterations": 6})
    monkeypatch.setattr(sweeps, "available_bytes", lambda: 250 << 20)
    with pytest.raises(InputError, match=r"jobs = 3: .* at most 2 do"):
        sweeps.sweep(scenario, {"seed": [1, 2, 3]}, "ideal", jobs=3, out=tmp_path / "t.csv")
    counts: list[int] = []
    runs = pool.run_processes

    def counting(jobs: Any, count: int, report: Any) -> Iterator[pool.Finished]:
        counts.append(count)
        return runs(jobs, count, report)

    monkeypatch.setattr(pool, "run_processes", counting)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert len(sweeps.sweep(scenario, {"seed": [1, 2, 3]}, "ideal").rows) == 3
    assert counts == [2]


def test_out_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2


@pytest.mark.parametrize(
    ("settings", "named"), [({"seed": 3}, "must be a list"), ({"seed": "12"}, "must be a list"), ({"seed": []}, "no values")]
)
def test_bad_settings_from_python(settings: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        wagma.sweep(SCENARIO, settings)
    with pytest.raises(InputError, match="jobs = 0"):
        wagma.sweep(SCENARIO, {"seed": [1]}, "ideal", jobs=0)


def test_a_swept_key_that_a_scenario_overrides_is_pointed_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = ["--set", "algorithms={local_sgd={sync_period=1}}"]
    options = ["--algorithms", "local_sgd,wagma_sgd", "--ranks", "4", "--set", "algorithm.sync_period=2,3", *own]
    status, _, errors = run(capsys, *options, "--out", str(tmp_path / "t.csv"))
    assert status == 0
    assert errors == "wagma: note: algorithm.sync_period does not vary local_sgd, whose own sync_period = 1 the scenario sets\n"
    assert run(capsys, *options, "--out", str(tmp_path / "t.csv"), "-q") == (0, "", "")


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, named in (("", "empty"), ("a,b\n1\n", ":2: 1 cells"), ('"a"b\n', "cannot be read")):
        path.write_text(text)
        with pytest.raises(InputError, match=named):
            read_rows(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "nowhere.csv")
