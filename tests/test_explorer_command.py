"""`wagma explore`: what it prints, its exit status, and what it says of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wagma.cli import main
from wagma.core.schedule import Schedule
from wagma.proof.exploring import Case, Limits, Reductions, explore

pytest.importorskip("wagma._proof")


def explored(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["explore", *arguments, "--json", "-"])
    return status, json.loads(capsys.readouterr().out)


def test_a_small_case(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = explored(capsys, "--ranks", "2", "--versions", "3")
    assert (status, found["result"], found["violation"], found["path"]) == (0, "ok", None, [])
    assert (found["group_size"], found["sync_period"], found["iterations"]) == (2, 3, [3, 3])
    assert found["symmetries"] == 2
    assert found["python_edges"] == found["local_edges"] > 100
    status, unreduced = explored(capsys, "--ranks", "2", "--versions", "3", "--no-order", "--no-symmetry", "--no-python")
    assert (status, unreduced["result"], unreduced["python_edges"]) == (0, "ok", 0)
    assert unreduced["states"] > 5 * found["states"]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["explore", "--ranks", "3", "--group-size", "3", "--iterations", "2,0,1", "--accumulate", "--initiators", "1"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "explore: 3 ranks, group size 3, iterations 2 0 1, sync period 2, 1 initiators of seed 0, accumulate"
    assert lines[1] == "no deadlock; promises 1 to 7 hold in every reachable state"
    assert "all of them the same in Python" in lines[-1]


def test_a_broken_promise(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = explored(capsys, "--ranks", "2", "--versions", "4", "--mutate", "greedy-live")
    assert (status, found["result"]) == (1, "violation")
    assert "no free buffer" in found["violation"]
    rank = found["violation"].split(":")[0]  # as the path names it, whatever symmetry made of it
    assert found["path"][-1].startswith(f"{rank}: ")


def test_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--ranks", "3", "--max-states", "100", "--json", "-"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["result"] == "incomplete"
    assert captured.err == "wagma: explore: incomplete, so nothing is proved: --max-states 100 reached at 100 states\n"


def test_edges_and_cross_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, found = explored(capsys, "--ranks", "2", "--resident", "--merge-once", "--edges", str(tmp_path / "edges"))
    assert status == 0
    assert len((tmp_path / "edges").read_text().splitlines()) == found["local_edges"]
    status, compared = explored(capsys, "--ranks", "2", "--resident", "--merge-once", "--cross-check")
    assert (status, compared["result"], compared["difference"]) == (0, "ok", "")
    assert compared["reduced_states"] == found["states"] < compared["states"]


@pytest.mark.parametrize(
    ("options", "status", "result"),
    [(("--mutate", "no-fence"), 1, "violation"), (("--max-states", "100"), 2, "incomplete")],
)
def test_searches_that_end_early_are_not_called_equal(
    options: tuple[str, ...], status: int, result: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, compared = explored(capsys, "--ranks", "3", "--cross-check", *options)
    assert (code, compared["result"]) == (status, result)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "9"], "--ranks 9: must be from 1 to 8"),
        (["--ranks", "2", "--cross-check", "--edges", "e.txt"], "--edges e.txt: --cross-check is given too"),
        (["--ranks", "4", "--group-size", "5"], "group_size = 5: must be from 1 to world_size = 4"),
        (["--ranks", "2", "--versions", "0"], "--versions 0: must be from 1 to 1000"),
        (["--ranks", "2", "--versions", str(10**22)], "must be from 1 to 1000"),
        (["--ranks", "2", "--iterations", f"1,{10**22}"], "from 0 to 1000, not all 0"),
        (["--ranks", "2", "--sync-period", str(10**22)], "at most 4611686018427387904, or never"),
        (["--ranks", "2", "--max-states", str(10**22)], "must be from 1 to 4611686018427387904, or 0 for no limit"),
        (["--ranks", "3", "--iterations", "3,1"], "--iterations 3,1: must be 3 whole numbers, one for each rank"),
        (["--ranks", "2", "--iterations", "0,0"], "--iterations 0,0: must be 2 whole numbers"),
        (["--ranks", "2", "--iterations", "1,2", "--versions", "2"], "--versions 2 is given too"),
        (
            ["--ranks", "2", "--sync-period", "0"],
            "--sync-period 0: must be a whole number, at least 1, at most 4611686018427387904, or never",
        ),
        (["--ranks", "2", "--sync-period", "never", "--no-groups"], "sync_period = 0"),
        (["--ranks", "2", "--initiators", "3"], "initiators = 3: must be from 0 (everybody) to world_size = 2"),
        (["--ranks", "2", "--resident", "--accumulate"], "--resident: --accumulate is given too"),
        (["--ranks", "2", "--mutate", "nonsense"], "--mutate 'nonsense': unknown; allowed: none, "),
        (["--ranks", "8", "--versions", "9"], "too large: at most 8 ranks and 64 possible messages; these are 8 and 216"),
        (["--ranks", "2", "--max-states", "-1"], "--max-states -1: must be from 1 to 4611686018427387904, or 0 for no limit"),
        (["--ranks", "2", "--max-memory", "0"], "--max-memory 0: must be from 1 to"),
        (["--ranks", "2", "--edges", "/nowhere/edges"], "--edges '/nowhere/edges': cannot be written"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["explore", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line


def test_progress_is_reported_and_may_end_the_search() -> None:
    class Enough(Exception):
        pass

    seen: list[tuple[int, int]] = []

    def progress(states: int, left: int) -> None:
        seen.append((states, left))
        if len(seen) == 5:
            raise Enough

    with pytest.raises(Enough):
        explore(Case(Schedule(4, 2, 3), (3,) * 4), Limits(), Reductions(), progress)
    assert seen[0] == (1, 1)
    assert all(0 < left <= states for states, left in seen)
    assert seen[-1][0] > 4 * 4096


def test_interrupting_is_one_line() -> None:
    """A search of hours; Ctrl-C is sent once it has begun, which the first line of the progress would say on a terminal."""
    command = "explore --ranks 4 --versions 6 --no-order --no-symmetry --max-memory 512"
    code = (
        "import sys, wagma.proof.exploring as e\n"
        "import wagma.commands.explore as c\n"
        "inner = e.explore\n"
        "def explore(case, limits, reductions, progress):\n"
        "    def told(states, left):\n"
        "        if states > 10000: print('begun', flush=True)\n"
        "        progress(states, left)\n"
        "    return inner(case, limits, reductions, told)\n"
        "c.explore = explore\n"
        "from wagma.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "wagma: interrupted\n")
