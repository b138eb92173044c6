"""How the ranks of a communicator come to their transport: shared memory where they run on one machine, else MPI.

Shared memory is one memfd, made by rank 0 and opened by the others through its process. It needs no MPI but for this handshake.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from wagma.errors import InputError, WagmaError
from wagma.real.limited import gather_text

Transport = Literal["auto", "shm", "mpi", "ipc", "cuda-mpi"]
TRANSPORTS: tuple[Transport, ...] = ("auto", "shm", "mpi", "ipc", "cuda-mpi")
#: With buffers on the device, where the models have to be.
ON_DEVICE: tuple[Transport, ...] = ("ipc", "cuda-mpi")
#: For what is in host memory on the way, where models are not.
HOST_TRANSPORT: dict[Transport, Transport] = {"auto": "auto", "shm": "shm", "mpi": "mpi", "ipc": "auto", "cuda-mpi": "mpi"}

_CANNOT = "cannot: "


def check_transport(transport: object) -> None:
    """Raise InputError unless it is one of TRANSPORTS."""
    if transport not in TRANSPORTS:
        raise InputError(f"transport = {transport!r}: must be one of {', '.join(TRANSPORTS)}")


def share_memory(comm: Any, node: Any, config: Any, timeout_s: float, required: bool) -> Any | None:
    """The transport of this rank in shared memory; None, on every rank, if the ranks are not on one machine. Collective.

    node: the class wagma._native.Node. config: a wagma._native.EngineConfig. Raises WagmaError on every rank, naming one, if there is
    not enough memory, or, where shared memory is `required`, if the ranks cannot share any; CollectiveTimeout if a rank does not come.
    """
    other = on_other_machine(comm, timeout_s)
    if other is not None:
        if required:
            raise WagmaError(
                f"transport = 'shm': rank {other} is not on the machine (or in the container) of rank 0; use 'auto' or 'mpi'"
            )
        return None
    joined, reason = join_node(comm, node, (comm.size, config.buffers, config.buffer_bytes), timeout_s)
    if joined is None:
        if required:
            raise WagmaError(reason)
        return None
    transport = attempt(lambda: joined.transport(comm.rank))
    raise_first(gather_text(comm, say(transport), timeout_s))
    return transport


def on_other_machine(comm: Any, timeout_s: float) -> int | None:
    """The first rank that is not on rank 0's machine, or not in its container. Collective."""
    machines = gather_text(comm, machine(), timeout_s)
    return next((rank for rank, machine in enumerate(machines) if machine != machines[0]), None)


def join_node(comm: Any, node: Any, sizes: tuple[int, int, int], timeout_s: float) -> tuple[Any | None, str]:
    """The memory that all ranks of this machine share; (None, why not), on every rank, if one cannot open it. Collective.

    sizes: ranks, buffers, bytes of a buffer. Raises WagmaError on every rank if there is not enough memory.
    """
    made = attempt(lambda: node.create(*sizes)) if comm.rank == 0 else None
    told = say(made, lambda own: f"{os.getpid()} {own.descriptor} {own.identity}") if comm.rank == 0 else ""
    address = gather_text(comm, told, timeout_s)[0]
    raise_first([address])
    process, descriptor, identity = (int(word) for word in address.split())
    joined: Any = made if comm.rank == 0 else attempt(lambda: node.join(*sizes, process, descriptor, identity))
    reason = first_reason(gather_text(comm, say(joined), timeout_s))
    return (joined, "") if reason is None else (None, reason)


def machine() -> str:
    """What is the same for processes that can open each other's files under /proc, and differs between machines and containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{platform.node()} {os.getpid()}"  # no /proc: nobody can open it


def attempt(make: Callable[[], Any]) -> Any:
    """What it returns, or the WagmaError that it raises: each rank tries by itself, and `say` tells the others."""
    try:
        return make()
    except WagmaError as error:
        return error


def say(made: Any, describe: Callable[[Any], str] = lambda _: "here") -> str:
    """For gather_text: what has come of an attempt."""
    return f"{_CANNOT}{made}" if isinstance(made, WagmaError) else describe(made)


def first_reason(said: list[str]) -> str | None:
    """Why the first of those ranks failed that did, by name; None: none has."""
    for rank, text in enumerate(said):
        if text.startswith(_CANNOT):
            return f"rank {rank}: {text.removeprefix(_CANNOT).removeprefix(f'rank {rank}: ')}"
    return None


def raise_first(said: list[str], kind: type[WagmaError] = WagmaError) -> None:
    """Raise why the first rank failed that did."""
    if (reason := first_reason(said)) is not None:
        raise kind(reason)
