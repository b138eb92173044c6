"""`wagma train --device` as one job of processes: they share an emulated device's memory, and the trace proves what they averaged."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("wagma._native")

from devices import DEVICES

from wagma.cli import main
from wagma.trace import load_trace
from wagma.validate import validate


@pytest.mark.mpi
@pytest.mark.parametrize("device", DEVICES)
def test_four_processes_on_one_device(device: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    command = ["train", "digits", "-n", "4", "--iterations", "12", "--sync-period", "5", "--delay", "0.02", "--device", device]
    assert main([*command, "--trace", str(path), "--limit", "60"]) == 0
    out, _ = capfd.readouterr()
    assert f"trained on 4 real ranks, on {device}, through " in out
    assert "IPC on " in out
    trace = load_trace(path)
    assert validate(trace) == []
    assert len({record.rank for record in trace.iterations}) == 4
    assert all(("device" in start.environment) == (device != "emulated") for start in trace.starts)
    assert trace.header.score is not None
