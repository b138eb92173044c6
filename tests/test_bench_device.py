"""`wagma bench collective|training --device`: what the figures are made of, and that ranks measure and tell. No time is judged here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wagma._native")

from devices import why_no_gpu
from test_bench_collective import REQUIRED, one

from wagma.cli import main
from wagma.commands import bench_device
from wagma.real.bench import device as ranks
from wagma.real.launching.channel import RANK_VARIABLES
from wagma.report.collective import plot_collective
from wagma.studies import collective_device
from wagma.studies.collective import Settings, Variant

HERE = [{"kind": "cuda", "index": 0, "name": "NVIDIA H200", "identity": "one"}] * 4
TWO = [*HERE[:2], *({**HERE[0], "identity": "other"} for _ in range(2))]


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def copied(seconds: list[float]) -> dict[str, Any]:
    return {"kernel": "copy", "mode": "device", "bytes": 2 * 10**9, "late_s": 0.0, "rested": False, "seconds": seconds}


def averaged(seconds: list[float], reduction_s: list[float]) -> dict[str, Any]:
    more = {"fresh_share": 0.5, "transport": "CUDA IPC on NVIDIA H200", "reduction_s": reduction_s, "rested": False}
    return one("wagma", "tensor", seconds, **more)


def repetition(scale: float) -> list[dict[str, Any]]:
    """One job's blocks; `scale` slows down what is compared, and not the copy."""
    return [
        copied([1e-3, 2e-3, 5e-3]),  # 1 TB/s in the median
        one("publish", "tensor", [6e-9, 9e-9]), one("publish_copy", "tensor", [5e-9]),
        averaged([scale * 90e-9, scale * 100e-9, 1.0], [scale * 60e-9, 1.0, 0.0]),
        one("mpi", "tensor", [2e-6]), one("mpi", "resident", [1e-6]),
    ]  # fmt: skip


def found_of(devices: list[dict[str, Any]], repetitions: int = 3) -> dict[str, Any]:
    settings = Settings(4, 4, [1000], modes=["tensor"], repetitions=repetitions, device="cuda")
    own = Variant("MPICH", False, False, [repetition(1 + n) for n in range(repetitions)])
    return collective_device.document(settings, own, devices)


def test_figures_by_hand() -> None:
    found = found_of(HERE)
    assert found["bandwidth_bytes_per_s"] == pytest.approx(1e12)
    mine, staged, in_place = found["results"]
    assert set(mine) >= REQUIRED | {"algbw_bytes_per_s", "reduction_s", "reduction_over_bandwidth"}
    # By repetition 100, 200 and 300 ns, beside 1 us in place, the better of both.
    assert mine["median_s"] == pytest.approx(200e-9)
    assert (mine["ratio_to_mpi"], mine["ratio_to_mpi_spread"]) == (pytest.approx(0.2), pytest.approx([0.1, 0.3]))
    assert [row["ratio_to_mpi"] for row in (staged, in_place)] == pytest.approx([2.0, 1.0])
    # Four models of 4 kB are read and four averages written: 32 kB, which take 32 ns.
    assert mine["bytes_over_bandwidth"] == pytest.approx(200 / 32)
    assert mine["bytes_over_bandwidth_spread"] == pytest.approx([100 / 32, 300 / 32])
    assert mine["reduction_s"] == pytest.approx(120e-9)
    assert mine["reduction_over_bandwidth"] == pytest.approx(120 / 32)
    assert mine["algbw_bytes_per_s"] == pytest.approx(4000 / 200e-9)
    assert mine["busbw_bytes_per_s"] == pytest.approx(1.5 * 4000 / 200e-9)
    (published,) = found["publish"]
    assert published["publish_over_copy"] == pytest.approx(1.5)
    assert found["device"] == {"kind": "cuda", "names": ["NVIDIA H200"], "devices": 1, "ranks_on_a_device": 4}


def test_ranks_on_several_devices_have_no_floor() -> None:
    found = found_of(TWO, 1)
    (mine, *_), device = found["results"], found["device"]
    assert (device["devices"], device["ranks_on_a_device"]) == (2, 2)
    assert (mine["bytes_over_bandwidth"], mine["reduction_over_bandwidth"]) == (None, None)
    assert mine["reduction_s"] == pytest.approx(60e-9)
    assert "no floor: ranks are on several devices" in bench_device.describe(found)


def test_a_table_says_what_there_is() -> None:
    text = bench_device.describe(found_of(HERE))
    assert "NVIDIA H200: 1000.0 GB/s (1000.0 to 1000.0), read and written by a copy within the device" in text
    assert "MPI_Allreduce, staged, in place" in text
    assert "emulated" not in text
    emulated = [{**one, "kind": "emulated", "name": "emulated"} for one in HERE]
    assert "no time here says anything of a GPU" in bench_device.describe(found_of(emulated))


def test_why_it_is_no_better_transport_is_said_once() -> None:
    """Not in the table, which would be as wide as the reasons are long."""
    found = found_of(HERE)
    reasons = "no ipc: rank 0: process 4711 (of GPU-0815) is not permitted; no cuda-mpi: the MPI library does not say so"
    own = next(row for row in found["results"] if row["kernel"] == "wagma")
    own["transport"] = f"shared memory, through pinned host memory ({reasons})"
    found["results"].append(own | {"late_s": 0.1, "transport": own["transport"].replace("4711", "4712")})
    found["results"][-1].update(late_over_balanced=1.0)
    text = bench_device.describe(found)
    assert text.count("no ipc") == 1
    assert f"\nshared memory, through pinned host memory: {reasons}\n" in text + "\n"
    assert "4712" not in text
    assert text.count("shared memory, through pinned host memory") == 3


@pytest.mark.parametrize("kind", ["collective", "training"])
@pytest.mark.parametrize("said", ["x: must be a whole number from 0 to 16", "0 says that there is none: must be at least 1"])
def test_emulated_devices_that_there_are_not(
    kind: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"WAGMA_EMULATED_DEVICES = {said}"

    def devices() -> int:  # the environment is read once in a process
        if said.startswith("0"):
            return 0
        raise ValueError(message)

    monkeypatch.setattr("wagma._native.emulated_devices", devices)
    assert main(["bench", kind, "--device", "emulated"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"wagma: error: (rank 0: )?--device emulated: {message}\n", error), error


def test_what_was_not_measured_is_not_there() -> None:
    blocks = [copied([1e-3]), averaged([1e-6], [])]
    settings = Settings(4, 4, [1000], modes=["tensor"], repetitions=1, device="cuda")
    found = collective_device.document(settings, Variant("MPICH", False, False, [blocks]), HERE)
    (row,) = found["results"]
    assert (row["reduction_s"], row["reduction_over_bandwidth"], row["ratio_to_mpi"]) == (None, None, None)
    assert found["publish"] == []
    assert "wagma" in bench_device.describe(found)


def test_reductions_by_hand() -> None:
    first = ranks.FIRST_VERSION
    one_rank = {first - 1: (5, 9), first: (100, 400), first + 1: (900, 1000), first + 2: (2000, 2100)}
    other = {first - 1: (5, 9), first: (150, 350), first + 1: (700, 1050)}
    # The version before does not count, and of the last a rank has no sum.
    assert ranks.reductions([one_rank, other]) == pytest.approx([250e-9, 150e-9])
    assert ranks.reductions([one_rank]) == pytest.approx([300e-9, 100e-9, 100e-9])


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    plot_collective(found_of(HERE)["results"], tmp_path / "time.png")
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "rocm"], "'rocm': must be cpu, cuda, cuda:N or emulated"),
        (
            ["--device", "emulated", "--mode", "tensor,resident", "--transport", "shm"],
            "--mode tensor,resident: with --device and --transport shm it must be tensor",
        ),
        (["--device", "emulated", "--against", "mpi,gloo"], "--against gloo: with --device the only other kernel is mpi"),
        (["--device", "emulated", "--mpi-python", "/no/python"], "--mpi-python /no/python: with --device MPI_Allreduce is"),
        (["--transport", "ipc"], "--transport ipc: it is for models on a device"),
        (["--device", "emulated", "-n", "1"], "--ranks 1: must be at least 2"),
    ],
)
def test_it_refuses_nonsense(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "collective", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not why_no_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("kind", ["collective", "training"])
def test_without_a_gpu_it_says_why(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", kind, "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"wagma: error: (rank 0: )?--device cuda: .{10,}\n", error), error


@pytest.mark.mpi
def test_tensors_of_an_emulated_device_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "-n",
        "2",
        "--count",
        "1000",
        "--iterations",
        "3",
        "--repetitions",
        "1",
        "--late",
        "0.06",
        "--device",
        "emulated",
        "--mode",
        "tensor,resident",
    ]
    status = main(["bench", "collective", *arguments, "--json", "-"])
    out, err = capsys.readouterr()
    assert status == 0, err
    found = json.loads(out)
    rows = {(row["kernel"], row["mode"], row["late_s"]): row for row in found["results"]}
    assert set(rows) == {
        (kernel, mode, s) for kernel in ("wagma", "mpi") for mode in ("tensor", "resident") for s in (0.0, 0.06)
    }
    assert all(set(row) >= REQUIRED and row["median_s"] > 0 and row["bytes_over_bandwidth"] > 0 for row in rows.values())
    assert all("emulated" in rows["wagma", mode, 0.0]["transport"] for mode in ("tensor", "resident"))
    assert all(row["median_s"] > 0.01 for key, row in rows.items() if key[0] == "mpi" and key[2])  # it waits for the late one
    assert found["device"]["kind"] == "emulated"
    assert all(rows["wagma", mode, 0.0]["reduction_over_bandwidth"] > 0 for mode in ("tensor", "resident"))
    (published,) = found["publish"]
    assert published["publish_over_copy"] > 0
