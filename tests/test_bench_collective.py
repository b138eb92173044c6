"""`wagma bench collective|partial|idle`: what the figures are made of, and that ranks measure and tell. No time is judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wagma.cli import main
from wagma.commands import bench_ranks
from wagma.errors import InputError, WagmaError
from wagma.real.bench import job, kernels
from wagma.real.bench.idle import latencies
from wagma.real.bench.rounds import elapsed
from wagma.real.launching import launch
from wagma.real.launching.channel import RANK_VARIABLES
from wagma.report.collective import plot_collective
from wagma.studies import collective, idle, partial
from wagma.studies.collective import Settings, Variant

REQUIRED = {
    "kernel", "mode", "ranks", "group_size", "count", "dtype", "late_s", "median_s", "ratio_to_mpi", "bytes_over_bandwidth",
    "busbw_bytes_per_s",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def one(kernel: str, mode: str, seconds: list[float], late_s: float = 0.0, **more: Any) -> dict[str, Any]:
    """A block as ranks report it, of 1000 elements."""
    return {"kernel": kernel, "mode": mode, "count": 1000, "late_s": late_s, "seconds": seconds} | more


def copies(seconds: float, slow: float) -> list[dict[str, Any]]:
    """Both ways to copy, of which one takes longer."""
    both = {"ordinary": slow, "library": seconds}
    return [{"kernel": "copy", "mode": m, "bytes": 8_000_000, "late_s": 0.0, "seconds": [s]} for m, s in both.items()]


def wagma(seconds: list[float], late_s: float = 0.0, copied: float | None = 3.0) -> dict[str, Any]:
    return one("wagma", "tensor", seconds, late_s, memory_copies_per_rank=copied, fresh_share=0.5, transport="shared memory")


def test_floor_and_bus_bandwidth_by_hand() -> None:
    # Eight ranks in two groups of four: each of eight models is read once, each of eight averages written once.
    assert collective.bytes_to_move(8, 1000, 4) == 2 * (2 * 4 * 1000 * 4) == 64_000
    # 4 GB in 2 s are 2 GB/s; times 2 * 3 / 4.
    assert collective.bus_bandwidth(4, 10**9, 4, 2.0) == 3e9
    assert collective.bus_bandwidth(2, 10**9, 4, 2.0) == 2e9


def test_groups_that_mpi_gets_are_those_of_version_0() -> None:
    assert collective.colours(4, 4) == [0, 0, 0, 0]
    groups = collective.colours(8, 4)
    assert sorted(groups.count(colour) for colour in set(groups)) == [4, 4]
    assert all(groups[colour] == colour for colour in groups)


def test_an_iteration_goes_from_the_first_call_to_the_last_return() -> None:
    begins, ends = np.array([[10, 0], [0, 5], [50, 40]]), np.array([[70, 30], [60, 95], [90, 50]])
    assert elapsed(begins, ends) == pytest.approx([90e-9, 95e-9])
    assert elapsed(begins, ends, sleeper=2) == pytest.approx([70e-9, 95e-9])  # that rank comes late and is not counted


def test_figures_by_hand() -> None:
    settings = Settings(2, 2, [1000], modes=["tensor"], repetitions=3, late_s=0.1)
    seconds = [2e-6, 4e-6, 3e-6]  # by repetition
    own = Variant("MPICH", False, False, [
        [*copies(1e-3, 2e-3), wagma([s, s, 9.0]), wagma([s * 1.5], 0.1), wagma([s * 3], 0.1) | {"rested": True},
         one("mpi", "tensor", [8e-6]), one("mpi", "resident", [9e-6]), one("mpi", "tensor", [0.1], 0.1)]
        for s in seconds
    ])  # fmt: skip
    other = Variant("Open MPI", True, True, [[one("mpi", "resident", [s])] for s in (5e-6, 7e-6, 6e-6)])
    found = collective.document(settings, [own, other])
    assert found["schema"] == 1
    assert found["bandwidth_bytes_per_s"] == pytest.approx(8e9)  # of the faster way
    rows = {(row["kernel"], row["mode"], row["late_s"]): row for row in found["results"]}
    assert list(rows) == [
        ("wagma", "tensor", 0.0), ("mpi", "tensor", 0.0), ("mpi", "resident", 0.0), ("wagma", "tensor", 0.1), ("mpi", "tensor", 0.1),
    ]  # fmt: skip
    assert all(set(row) >= REQUIRED for row in rows.values())
    mine = rows["wagma", "tensor", 0.0]
    assert mine["median_s"] == 3e-6
    # The best of all libraries and forms, repetition by repetition: 2/5, 4/7, 3/6.
    assert mine["ratio_to_mpi"] == pytest.approx(0.5)
    assert mine["ratio_to_mpi_spread"] == pytest.approx([0.4, 4 / 7])
    # 16 kB at 8 GB/s are 2 microseconds.
    assert mine["bytes_over_bandwidth"] == pytest.approx(1.5)
    assert mine["busbw_bytes_per_s"] == pytest.approx(4000 / 3e-6)
    assert (mine["memory_copies_per_rank"], mine["fresh_share"], mine["transport"]) == (3.0, 0.5, "shared memory")
    assert rows["mpi", "resident", 0.0]["library"] == "Open MPI"
    assert rows["mpi", "resident", 0.0]["ratio_to_mpi"] == 1
    late = rows["wagma", "tensor", 0.1]
    assert (late["median_s"], late["iterations"]) == (pytest.approx(4.5e-6), 3)
    assert (late["late_over_balanced"], late["late_over_rested"]) == (pytest.approx(1.5), pytest.approx(0.5))
    assert late["ratio_to_mpi"] == pytest.approx(4.5e-5)
    assert "memory: 8.0 GB/s" in bench_ranks.describe_collective(found)


def test_iterations_become_fewer_for_larger_models() -> None:
    assert [collective.most_iterations(4 * count) for count in (1000, 4_000_000, 25_559_081)] == [100, 25, 5]


def test_what_drawn_initiators_predict() -> None:
    # Four ranks come at steps 1, 2, 3, 4. Initiator 2: rank 0 waits for two steps, rank 1 for one.
    assert partial.waits(4, 2) == 3 / 4
    assert partial.predicted(4, [2, 0])["steps"] == 3 / 8
    assert partial.predicted(4, [2, 0])["nap"] == 2  # three have come, and one
    assert partial.predicted(4, [2])["ratio"] == (3 + 2 + 1) / 4 / (3 / 4)
    whole = partial.expected(32)
    assert whole["steps"] == pytest.approx((32**2 - 1) / (6 * 32))
    assert whole["ratio"] == pytest.approx(2.909, abs=1e-3)
    assert whole["nap"] == 16.5


def test_a_library_far_behind_is_not_tried_again() -> None:
    def blocks(seconds: float) -> list[dict[str, Any]]:
        return [{"seconds": [seconds, seconds]}]

    found = {
        ("mpi", 64): blocks(1.0), ("mpi 0", 64): blocks(1.9), ("mpi 1", 64): blocks(2.1), ("mpi 2", 64): blocks(2.1),
        ("mpi", 128): blocks(3.0), ("mpi 0", 128): blocks(9.0), ("mpi 2", 128): blocks(2.9),
        ("solo", 64): blocks(0.01), ("solo", 128): blocks(0.01),
    }  # fmt: skip
    # 1 was behind at 64 bytes, and so slow that it was not tried at 128; 2 is the fastest there.
    assert [partial.contends(found, f"mpi {number}", [64, 128]) for number in range(3)] == [True, False, True]


def test_seeds_are_those_whose_initiators_are_spread_evenly() -> None:
    seeds = partial.even_seeds(32, 64, 3)
    assert len(set(seeds)) == 3
    for seed in seeds:
        drawn = partial.initiators(32, seed, 64)
        counts = [sum(partial.stratum(32, rank) == s for rank in drawn) for s in range(8)]
        assert sum(counts) == 64
        assert max(counts) - min(counts) <= 4
        assert partial.predicted(32, drawn)["ratio"] == pytest.approx(partial.expected(32)["ratio"], rel=0.1)


def test_latencies_of_activations_by_hand() -> None:
    def rank(arrivals: dict[int, int], starts: dict[int, int]) -> Any:
        executions = [{"version": version, "started_ns": ns} for version, ns in starts.items()]
        return executions, [{"iteration": version, "arrival_ns": ns} for version, ns in arrivals.items()]

    # Version 0: rank 0 activates at 100; 1 starts at 150, before it arrives; 2 at 170, after it has. Version 1: rank 2, at 900.
    records = [
        rank({0: 100, 1: 2000}, {0: 101, 1: 960}),
        rank({0: 400}, {0: 150, 1: 930}),
        rank({0: 160, 1: 900}, {0: 170, 1: 901}),
    ]
    assert latencies(records) == pytest.approx([60e-9, 50e-9, 30e-9])


def test_percentiles_are_of_what_was_measured() -> None:
    values = [float(v) for v in range(1, 201)]
    assert idle.percentile(values, 0.99) == 198
    assert idle.percentile([7.0], 0.99) == 7


def test_idle_rows() -> None:
    found = {
        "transport": "MPI",
        "computing": [0.01, 0.03],
        "waiting": [0.0, 0.0],
        "callers": [0.5],
        "latencies_s": [1e-4, 3e-4, 2e-4],
    }
    row = idle.row(found, {"longest_nap_s": 1e-3}, 2)
    assert row["computing_share"] == pytest.approx(0.02)
    assert (row["computing_share_largest"], row["latency_median_s"], row["latency_p99_s"]) == (0.03, 2e-4, 3e-4)
    text = bench_ranks.describe_idle({"results": [row, idle.row(found | {"latencies_s": []}, {}, 2)]})
    assert "2.00 % (3.00 %)" in text


def test_libraries_yield_by_their_own_variables() -> None:
    assert "MPIR_CVAR_POLLS_BEFORE_YIELD" in (job.waits("MPICH 5.0.2", yielding=True) or {})
    assert job.waits("MPICH 5.0.2", yielding=False) is None
    for yielding in (True, False):
        assert job.waits("Open MPI v5.0.8", yielding=yielding) == {"OMPI_MCA_mpi_yield_when_idle": str(int(yielding))}
    assert job.waits("Another MPI", yielding=True) is None
    assert not job.yields("Another MPI")


def test_each_python_is_asked_once_for_its_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environments beside this one those without MPI are left out; one that was named has to have it."""
    asked = tmp_path / "asked"
    for name, says in (("", "echo Own MPI 1.0"), ("-with", "echo Some MPI 2.1"), ("-without", "exit 1")):
        python = tmp_path / f"env{name}" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\necho env{name} >> {asked}\n{says}\n")
        python.chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "bin" / "python"))
    assert [one.name for one in collective.libraries(None)] == ["Own MPI 1.0", "Some MPI 2.1"]
    assert asked.read_text().split() == ["env", "env-with", "env-without"]
    with pytest.raises(InputError, match=r"env-without.*: must have mpi4py and numpy"):
        collective.libraries([python])


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    settings = Settings(2, 2, [1000], modes=["tensor"], repetitions=1)
    blocks = [*copies(1e-3, 1e-3), wagma([1e-6, 2e-6]), one("mpi", "tensor", [3e-6]), one("gloo", "tensor", [4e-6])]
    found = collective.document(settings, [Variant("MPICH", False, False, [blocks])])
    plot_collective(found["results"], tmp_path / "time.png")
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collective", "--against", "nccl"], "'nccl': must be of mpi, gloo"),
        (["collective", "--mode", "private"], "'private': must be of tensor, resident"),
        (["collective", "-n", "4", "--group-size", "8"], "--group-size 8: must be from 2 to --ranks 4"),
        (["collective", "-n", "4", "--group-size", "2", "--syncs"], "--syncs: all ranks take part in a sync"),
        (["collective", "-n", "1"], "--ranks 1: must be at least 2"),
        (["collective", "--count", "0"], "'0': must be different whole numbers, at least 1"),
        (["collective", "--late", "-0.1"], "--late -0.1: must be from 0 to 10 seconds"),
        (["collective", "--late", "nan"], "--late nan: must be from 0 to 10 seconds"),
        (["collective", "--repetitions", "0"], "--repetitions 0: must be at least 1"),
        (["collective", "--mode", "tensor", "--plot", "time.txt"], "must end in .png"),
        (["collective", "--json", "no/such/folder/x"], "there is no folder"),
        (
            ["collective", "--mode", "tensor", "--mpi-python", "/no/python"],
            "--mpi-python /no/python: must be the file of a Python",
        ),
        (["partial", "--bytes", "63"], "--bytes 63: must be a multiple of 4"),
        (["partial", "--step", "0"], "--step 0: must be above 0"),
        (["idle", "--naps", "0.1,x"], "'0.1,x': must be seconds above 0"),
        (["idle", "--transport", "pigeon"], "'pigeon': must be of auto, shm, mpi"),
        (["idle", "--activations", "0"], "--activations 0: must be at least 1"),
    ],
)
def test_benchmarks_refuse_nonsense(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "collective", "--mode", "tensor", "--against", "gloo"]
    monkeypatch.setattr(bench_ranks, "require", lambda **_: None)
    monkeypatch.setattr(bench_ranks, "find_spec", lambda _: None)
    assert main(command) == 2
    assert "--against gloo needs torch" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(launch, "find_mpiexec", lambda: None)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "mpiexec" in error
    assert error.count("\n") == 1


def test_an_option_that_this_kernel_lacks_is_said_before_any_rank_starts() -> None:
    with pytest.raises(InputError, match="GroupAllreduce has no option telepathy in this build of wagma"):
        kernels.options_of({"telepathy": True})


def test_inside_mpiexec_it_starts_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    assert main(["bench", "idle"]) == 2
    assert "starts its ranks itself" in capsys.readouterr().err


def test_a_python_without_mpi_is_no_python_to_compare_with(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'no module named mpi4py' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(InputError, match="must have mpi4py and numpy, with an MPI library: no module named mpi4py"):
        job.library_of(script)


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The document of a benchmark."""
    status = main(["bench", *arguments, "--json", "-"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


@pytest.mark.mpi
def test_the_collective_is_measured_beside_mpi(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(
        capsys, "collective", "-n", "2", "--count", "1000", "--mode", "tensor", "--iterations", "3", "--repetitions", "1",
        "--late", "0.06",
    )  # fmt: skip
    rows = found["results"]
    assert {(row["kernel"], row["late_s"]) for row in rows} == {("wagma", 0.0), ("mpi", 0.0), ("wagma", 0.06), ("mpi", 0.06)}
    assert all(set(row) >= REQUIRED and row["median_s"] > 0 and row["bytes_over_bandwidth"] > 0 for row in rows)
    assert min(row["ratio_to_mpi"] for row in rows if row["kernel"] == "mpi") == 1
    assert {variant["alone"] for variant in found["mpi_variants"]} == {True, False}
    assert all(row["median_s"] > 0.01 for row in rows if row["kernel"] == "mpi" and row["late_s"])  # it waits for the late one


@pytest.mark.mpi
def test_partial_collectives_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, "partial", "-n", "3", "--bytes", "64", "--iterations", "4", "--repetitions", "1", "--step", "0.005")
    rows = {row["kernel"]: row for row in found["results"]}
    assert list(rows) == ["mpi", "solo", "majority"]
    assert rows["mpi"]["nap"] == 3
    assert all(1 <= row["nap"] <= 3 and math.isfinite(row["mpi_over_this"]) for row in rows.values())
    assert sum(stratum["iterations"] for stratum in rows["majority"]["strata"]) == 4
    assert sum(found["initiators_by_stratum"]) == 4


@pytest.mark.mpi
def test_idle_threads_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, "idle", "-n", "2", "--transport", "auto", "--seconds", "0.2", "--activations", "4")
    (row,) = found["results"]
    assert 0 <= row["computing_share"] <= 1
    assert 0 <= row["waiting_share"] <= 1
    assert row["activations"] > 0
    assert row["latency_median_s"] > 0


@pytest.mark.mpi
def test_what_a_rank_refuses_is_one_line() -> None:
    what = {"ranks": 2, "seconds": 0.1, "activations": 1, "options": {"telepathy": 1}, "group_size": 2}
    with pytest.raises(WagmaError, match=r"wagma.real.bench.idle on 2 ranks: .*no option telepathy") as caught:
        job.run(job.Job(2, ["-m", "wagma.real.bench.idle"], what), 60)
    assert "\n" not in str(caught.value)


@pytest.mark.mpi
def test_ranks_that_do_not_know_of_each_other_measure_nothing() -> None:
    with pytest.raises(WagmaError, match="has 2 ranks instead of 3: mpiexec is another library's"):
        job.run(job.Job(2, [str(job.ROUNDS)], {"benchmark": "collective", "ranks": 3}), 60)


@pytest.mark.mpi
def test_a_job_that_does_not_end_is_ended() -> None:
    what = {
        "benchmark": "collective",
        "ranks": 2,
        "colours": [0, 0],
        "counts": [[1000, 10**6]],
        "dtype": "float32",
        "blocks": 10**6,
        "late_s": 0,
    }
    with pytest.raises(WagmaError, match="not done after 2 s"):
        job.run(job.Job(2, [str(job.ROUNDS)], what), 2.0)


def test_what_a_job_says_is_read_before_its_pipes_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is ended at its limit has said more than is read by then."""
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text("#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $i >&2; done\nexec sleep 60\n")
    mpiexec.chmod(0o755)
    monkeypatch.setattr(job.Manager, "says", lambda *_: time.sleep(0.1))
    broken: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    with pytest.raises(WagmaError, match=r"not done after 0\.5 s"):
        job.run(job.Job(1, ["program"], {}, python=tmp_path / "python"), 0.5)
    for thread in threading.enumerate():
        if "(_keep)" in thread.name:
            thread.join(20.0)
    assert broken == []


def test_rounds_need_no_wagma() -> None:
    """Any Python with numpy and mpi4py can run the baseline: this one without a way to import wagma."""
    code = (
        "import sys; sys.modules['wagma'] = None; sys.modules['wagma.errors'] = None; import runpy;"
        f"print(sorted(runpy.run_path({str(job.ROUNDS)!r})['Rounds'].__dict__)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip()


def test_what_cannot_be_measured_against_mpi_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measured(settings: Settings, others: list[Any], _: Any) -> dict[str, Any]:
        asked.append((settings.specification()["against"], others))
        return {"schema": 1, "results": []}

    monkeypatch.setattr(collective, "measure", measured)
    monkeypatch.setattr("wagma.commands.bench_ranks.require", lambda **_: None)
    assert main(["bench", "collective", "--dtype", "bfloat16", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == "wagma: --dtype bfloat16: MPI cannot add it, so nothing is measured against mpi"
    assert json.loads(said.out) == {"schema": 1, "results": []}
    assert asked == [([], [])]
