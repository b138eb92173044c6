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

Transport = Literal["auto", "shm", "mpi"]
TRANSPORTS: tuple[Transport, ...] = ("auto", "shm", "mpi")

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
    sizes = (comm.size, config.buffers, config.buffer_bytes)
    machines = gather_text(comm, machine(), timeout_s)
    if len(set(machines)) > 1:
        other = next(rank for rank, machine in enumerate(machines) if machine != machines[0])
        if required:
            raise WagmaError(
                f"transport = 'shm': rank {other} is not on the machine (or in the container) of rank 0; use 'auto' or 'mpi'"
            )
        return None
    made = _attempt(lambda: node.create(*sizes)) if comm.rank == 0 else None
    told = _say(made, lambda own: f"{os.getpid()} {own.descriptor} {own.identity}") if comm.rank == 0 else ""
    address = gather_text(comm, told, timeout_s)[0]
    _raise_first([address])
    process, descriptor, identity = (int(word) for word in address.split())
    joined: Any = made if comm.rank == 0 else _attempt(lambda: node.join(*sizes, process, descriptor, identity))
    said = gather_text(comm, _say(joined, lambda _: "here"), timeout_s)
    if any(text.startswith(_CANNOT) for text in said):
        if required:
            _raise_first(said)
        return None
    transport = _attempt(lambda: joined.transport(comm.rank))
    _raise_first(gather_text(comm, _say(transport, lambda _: "here"), timeout_s))
    return transport


def machine() -> str:
    """What is the same for processes that can open each other's files under /proc, and differs between machines and containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{platform.node()} {os.getpid()}"  # no /proc: nobody can open it


def _attempt(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except WagmaError as error:
        return error


def _say(made: Any, describe: Callable[[Any], str]) -> str:
    return f"{_CANNOT}{made}" if isinstance(made, WagmaError) else describe(made)


def _raise_first(said: list[str]) -> None:
    for rank, text in enumerate(said):
        if text.startswith(_CANNOT):
            raise WagmaError(f"rank {rank}: {text.removeprefix(_CANNOT)}")
