"""wagma on two hosts of tools/hosts.py, joined by a link of known latency and rate: who is where, exact averages, every bad end."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import two_hosts
from mpi_launch import PROGRAMS, executable

from wagma.real.launching.launch import OVER_WITHIN_S
from wagma.trace import load_trace

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

LATENCY_S, RATE = 1e-3, 25e6
LINK = ("--latency", str(LATENCY_S), "--rate", str(RATE))
MIB = 1 << 20
#: A link cannot be faster than it is; how much slower the machine makes it depends on what else runs here.
SLOWER = 10


def test_two_ranks_on_each_of_two_hosts(tmp_path: Path) -> None:
    """One job: ranks know their hosts, data goes over the link, at its rate, averages are exact, nobody waits for who is late."""
    traffic = tmp_path / "traffic.json"
    command = (executable(), "-n", "4", sys.executable, "-m", "mpi4py", str(PROGRAMS / "hosts.py"))
    # --traffic is written by the first process of all, which has the folders of this one.
    job = two_hosts.run(*command, options=(*LINK, "--traffic", str(traffic)), OMPI_MCA_hwloc_base_binding_policy="none")
    assert job.returncode == 0, job.output
    for rank in range(4):
        assert f"rank {rank}: host node{rank // 2}, local rank {rank % 2}, MPI, []" in job.output
    assert job.output.count("averages are exact") == 4

    least = [float(text) for text in re.findall(r"least ([\d.]+) s", job.output)]
    for size, fastest in zip((1, MIB), least, strict=True):
        given = LATENCY_S + size / RATE
        assert given <= fastest < SLOWER * given

    late = {rank: re.search(rf"rank {rank}: fresh (\d+) of 12 in ([\d.]+) s", job.output) for rank in range(4)}
    assert all(late.values()), job.output
    assert int(late[3][1]) < 6 <= max(int(late[rank][1]) for rank in (0, 1, 2))
    assert max(float(late[rank][2]) for rank in (0, 1, 2)) < 0.75 * float(late[3][2])

    carried = {(row["from"], row["to"]): row["bytes"] for row in json.loads(traffic.read_text())}
    # Nine ping-pongs, and twelve versions of 300,001 float32 of which each host has to get the other's half at least.
    assert min(carried[way] for way in (("node0", "node1"), ("node1", "node0"))) > 9 * MIB + 12 * 2 * 300_001


@pytest.mark.long
@pytest.mark.parametrize(
    ("failure", "status", "first"),
    [
        ("raises", 1, r"wagma: rank 3: ZeroDivisionError: by zero\nTraceback"),
        ("input", 2, r"wagma: rank 3: no such digit\n"),
        ("SIGKILL", 1, r"wagma: rank 3: killed by SIGKILL"),
        ("SIGSEGV", 1, r"(?s:.*)wagma: rank 3: killed by SIGSEGV"),  # its stack is on the other host: it is written first
        (
            "link",
            1,
            r"wagma: rank [0-3]: version \d+ \(.*\) is not complete after 2 s; version \d+ lacks the part of ranks? \d.*\n$",
        ),
        ("nothing", 0, r"$"),
    ],
)
def test_bad_ends_of_a_rank_on_another_host(failure: str, status: int, first: str) -> None:
    """Through wagma's own launcher, which is on the first host: said once, as if it were here, and the job is over soon."""
    program = str(PROGRAMS / "hosts_failing.py")
    job = two_hosts.run(sys.executable, program, options=LINK, WAGMA_TEST_FAILURE=failure)
    assert job.returncode == status, job.output
    threads, said = job.output.split("\n", 1)
    assert threads == "threads ['1', '1', '1', '1']"  # Open MPI hands on nothing that it is not told of
    assert re.match(first, said), job.output
    assert said.count("wagma:") == (failure != "nothing")
    assert job.seconds < 10 + OVER_WITHIN_S + 10 * (failure == "nothing")


@pytest.mark.long
@pytest.mark.parametrize("named", [False, True])
def test_train_across_hosts(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By wagma's own launcher; `named`: it is told the hosts, else mpiexec has a list. All promises are held, over both hosts."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    wagma = (sys.executable, "-m", "wagma")
    # The trace goes to a folder that the first host alone has.
    own = ("sh", "-c", 'mkdir /tmp/own && "$@" --trace /tmp/own/t.jsonl && cp /tmp/own/t.jsonl .', "sh")
    command = [*own, *wagma, "train", "digits", "-n", "4", "--iterations", "20", "--delay", "0.02"]
    if named:
        command = [
            "env",
            "-u",
            "HYDRA_HOST_FILE",
            "-u",
            "PRTE_MCA_prte_default_hostfile",
            *command,
            "--hosts",
            "node0:1,node1:3",
        ]
    job = two_hosts.run(*command, options=LINK)
    assert job.returncode == 0, job.output
    trace = load_trace(tmp_path / "t.jsonl")
    hosts = [start.host for start in sorted(trace.starts, key=lambda start: start.rank)]
    assert hosts == (["node0"] + ["node1"] * 3 if named else ["node0"] * 2 + ["node1"] * 2)
    judged = two_hosts.run(*wagma, "validate", "t.jsonl")
    assert (judged.returncode, judged.output.count("held")) == (0, 8), judged.output


@pytest.mark.long
def test_hosts_of_a_job_that_mpiexec_has_started() -> None:
    command = (
        executable(),
        "-n",
        "2",
        sys.executable,
        "-m",
        "mpi4py",
        "-m",
        "wagma",
        "train",
        "digits",
        "--hosts",
        "node0,node1",
    )
    job = two_hosts.run(*command)
    assert job.returncode == 2
    assert job.output.count("wagma: error: --hosts node0,node1: mpiexec has started the ranks already") == 1, job.output
