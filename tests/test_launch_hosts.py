"""Launching over several hosts, without any: who names them, and what ranks of another host tell the launcher."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wagma.cli import main
from wagma.errors import InputError
from wagma.real import library
from wagma.real.launching.channel import Address, Receiver, Sender, stack_file, wait_until_unread
from wagma.real.launching.hosts import check_hosts, several, words
from wagma.real.launching.relay import Relay

LIMIT_S = 20.0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"HYDRA_HOST_FILE": "hosts"}, True),
        ({"PRTE_MCA_prte_default_hostfile": "hosts"}, True),
        ({"SLURM_JOB_NUM_NODES": "1"}, False),
        ({"SLURM_JOB_NUM_NODES": "2"}, True),
        ({"SLURM_NNODES": "many"}, False),
        ({"LSB_MCPU_HOSTS": "a 4"}, False),
        ({"LSB_MCPU_HOSTS": "a 4 b 4"}, True),
        ({"PBS_NODEFILE": "a\na\n\n"}, False),
        ({"PBS_NODEFILE": "a\nb\n"}, True),
        ({"PE_HOSTFILE": "a 4 all.q@a UNDEFINED\nb 4 all.q@b UNDEFINED\n"}, True),
    ],
)
def test_who_may_have_ranks_elsewhere(environment: dict[str, str], expected: bool, tmp_path: Path) -> None:
    for name in environment.keys() & {"PBS_NODEFILE", "PE_HOSTFILE"}:
        (tmp_path / name).write_text(environment[name])
        environment = {**environment, name: str(tmp_path / name)}
    assert several(None, environment) is expected
    assert several("node0:2,node1", environment)


def test_a_list_that_is_not_there_names_no_hosts(tmp_path: Path) -> None:
    assert not several(None, {"PBS_NODEFILE": str(tmp_path / "nothing")})


def test_options_of_each_mpiexec() -> None:
    environment = {"HOME": "/", "OMP_NUM_THREADS": "1", "PYTHONPATH": "here"}
    assert words("a:2,b:2", environment, library.MPICH) == ["-hosts", "a:2,b:2"]
    assert words("a:2,b:2", environment, library.OPEN_MPI) == ["--host", "a:2,b:2", "-x", "OMP_NUM_THREADS", "-x", "PYTHONPATH"]
    assert words(None, environment, library.MPICH) == []


@pytest.mark.parametrize("hosts", ["node0", "node0:2,node1.cluster:16", "10.0.0.1:2"])
def test_hosts_that_are_taken(hosts: str) -> None:
    check_hosts(hosts)


@pytest.mark.parametrize("hosts", ["", "node0,", "node0:0", "node0:two", "-x", "node0 node1", "a;b"])
def test_hosts_that_are_refused(hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="must be NAME or NAME:RANKS, with commas between them"):
        check_hosts(hosts)
    assert main(["train", "digits", f"--hosts={hosts}"]) == 2
    assert capsys.readouterr().err.startswith(f"wagma: error: --hosts {hosts}: ")


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Receiver, Relay]]:
    """A launcher's end, on a host whose name everybody can look up."""
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    receiver = Receiver(tmp_path)
    relay = Relay(str(receiver.path))
    yield receiver, relay
    relay.close()
    receiver.close()


def elsewhere(relay: Relay, **changes: Any) -> str:
    """The channel as a rank of another machine sees it."""
    return str(replace(relay.address, machine="another machine", **changes))


def heard(receiver: Receiver, number: int) -> list[dict[str, Any]]:
    """So many events."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + LIMIT_S
    while len(found) < number and time.monotonic() < deadline:
        found += receiver.events()
        time.sleep(0.01)
    return found


def test_an_address_is_one_word(channel: tuple[Receiver, Relay]) -> None:
    _, relay = channel
    assert Address.read(str(relay.address)) == relay.address
    assert len(str(relay.address).split()) == 1
    assert Address.read("/a,b,c,d,e/events") == Address("/a,b,c,d,e/events")  # a folder with commas is no address
    assert stack_file(str(relay.address), 3) == Path(relay.address.path).with_name("stack.3")


def test_ranks_of_another_machine_are_heard(channel: tuple[Receiver, Relay]) -> None:
    """Whole, in order, without their process ids, which here belong to others."""
    receiver, relay = channel
    near, far = Sender(str(relay.address), 0), Sender(elsewhere(relay), 1)
    assert near.send("begun", pid=17)
    assert far.send("begun", pid=17)
    assert far.send("failed", message="é" * 300, status=1, secondary=False)
    events = heard(receiver, 3)
    assert [event for event in events if event["rank"] == 0] == [{"event": "begun", "rank": 0, "pid": 17}]
    begun, failed = (event for event in events if event["rank"] == 1)
    assert begun == {"event": "begun", "rank": 1}
    assert failed["message"] == "é" * 300


def test_strangers_are_cut_off(channel: tuple[Receiver, Relay]) -> None:
    receiver, relay = channel
    Sender(elsewhere(relay, token="0" * 32), 1).send("failed", message="not so", status=0, secondary=False)
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"x" * 100_000, relay.address.token.encode() + b"\nnonsense\n[1]\n{}\n"):
        with socket.create_connection(("localhost", relay.address.port), timeout=LIMIT_S) as connection:
            connection.sendall(said)
    assert Sender(elsewhere(relay), 2).send("begun")
    assert heard(receiver, 1) == [{"event": "begun", "rank": 2}]
    assert list(receiver.events()) == []


def test_the_end_of_the_launcher_is_noticed_elsewhere(channel: tuple[Receiver, Relay]) -> None:
    _, relay = channel
    told: list[bool] = []
    thread = threading.Thread(target=lambda: told.append(wait_until_unread(elsewhere(relay))))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    relay.close()
    thread.join(LIMIT_S)
    assert told == [True]
    assert not wait_until_unread(elsewhere(relay))  # out of reach: nothing can be said of it
    assert not Sender(elsewhere(relay), 1).send("begun")


def test_events_are_lines(channel: tuple[Receiver, Relay]) -> None:
    """In pieces as TCP may deliver them."""
    receiver, relay = channel
    with socket.create_connection(("localhost", relay.address.port), timeout=LIMIT_S) as connection:
        for byte in f"{relay.address.token}\n{json.dumps({'event': 'begun', 'rank': 5})}\n".encode():
            connection.send(bytes([byte]))
        assert heard(receiver, 1) == [{"event": "begun", "rank": 5}]
