"""Ranks as threads of one process, without MPI: for tests, of wagma's and of users' own programs.

`run_local(4, program)` calls `program(comm)` in four threads; `comm` goes where an mpi4py communicator would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from wagma.errors import CollectiveTimeout, InputError, PeerFailed
from wagma.real.exits import FAREWELL_S
from wagma.real.gossip.letters import LocalPost, Office
from wagma.real.modules import native

T = TypeVar("T")


class _World:
    """What the ranks share. `lock` protects `hubs`, `offices` and `errors`; the barrier's two passes protect `slots`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size
        self.lock = threading.Lock()
        self.hubs: list[Any] = []
        self.offices: list[Office] = []
        self.errors: list[tuple[int, BaseException]] = []  # in the order in which they were raised

    def end(self, message: str, rank: int = 0) -> None:
        """Have everyone who waits raise."""
        with self.lock:
            hubs = [*self.hubs, *self.offices]
        self.barrier.abort()
        for hub in hubs:
            hub.fail(rank, message)


class LocalCommunicator:
    """One rank of `run_local`: as much of a communicator as wagma needs."""

    def __init__(self, world: _World, rank: int) -> None:
        self._world = world
        self._transports = self._posts = 0
        self.rank = rank
        self.size = world.size

    def allgather(self, value: Any, timeout_s: float = 60.0) -> list[Any]:
        """Every rank's value, by rank. Raises PeerFailed if a rank has failed or does not come."""
        world = self._world
        try:
            world.slots[self.rank] = value
            world.barrier.wait(timeout_s)
            values = list(world.slots)
            world.barrier.wait(timeout_s)  # nobody writes its slot again before all have read
        except threading.BrokenBarrierError:
            with world.lock:
                first = world.errors[0] if world.errors else None
            if first is not None:
                raise PeerFailed(f"rank {first[0]} failed: {first[1]}") from None
            raise CollectiveTimeout(
                f"rank {self.rank}: not all {self.size} ranks came to allgather within {timeout_s:g} s"
            ) from None
        return values

    def make_transport(self, buffers: int, buffer_bytes: int) -> Any:
        """The transport of this rank's next engine; the n-th engines of all ranks share a hub, with buffers of the same size."""
        return self._next_hub().transport(self.rank, buffers, buffer_bytes)

    def make_device_transport(self, own: Any, addresses: list[str]) -> Any:
        """The same for models on a device. own: this rank's wagma._native.DeviceBuffers; addresses: of all ranks' ones."""
        return self._next_hub().device_transport(self.rank, own, addresses)

    def _next_hub(self) -> Any:
        with self._world.lock:
            if self._transports == len(self._world.hubs):
                self._world.hubs.append(native().LocalHub(self.size))
            self._transports += 1
            return self._world.hubs[self._transports - 1]

    def make_post(self) -> LocalPost:
        """This rank's next letter box; the n-th ones of all ranks belong together."""
        with self._world.lock:
            if self._posts == len(self._world.offices):
                self._world.offices.append(Office(self.size))
            office = self._world.offices[self._posts]
            self._posts += 1
        return office.post(self.rank)


def run_local(world_size: int, program: Callable[[LocalCommunicator], T], timeout_s: float = 60.0) -> list[T]:
    """Run `program` in one thread a rank; what each returned, by rank.

    Raises the first error of any rank, with a note that names the rank (errors that merely report another rank's failure
    come last), and CollectiveTimeout if a rank is not back after `timeout_s` seconds; its thread is then left behind.
    """
    if world_size < 1:
        raise InputError(f"world_size = {world_size}: must be at least 1")
    world = _World(world_size)
    results: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        try:
            results[rank] = program(LocalCommunicator(world, rank))
        except BaseException as error:  # it is raised again in the caller's thread
            with world.lock:
                world.errors.append((rank, error))
            # The traceback keeps this rank's engine alive, so nobody else would tell the peers.
            world.end(f"{type(error).__name__}: {error}", rank)

    threads = [threading.Thread(target=run, args=(r,), name=f"rank {r}", daemon=True) for r in range(world_size)]
    for thread in threads:
        thread.start()
    try:
        _join(threads, timeout_s)
    finally:  # Ctrl-C, too: a thread still inside the kernel when Python ends would bring the process down
        late = [thread.name for thread in threads if thread.is_alive()]
        with world.lock:
            errors = sorted(world.errors, key=lambda pair: isinstance(pair[1], PeerFailed))
        if late:
            world.end(f"{', '.join(late)} did not return in time")
            _join(threads, FAREWELL_S)
    if errors:
        rank, error = errors[0]
        error.add_note(f"raised by rank {rank} of {world_size}")
        raise error
    if late:
        raise CollectiveTimeout(f"run_local: {', '.join(late)} did not return within {timeout_s:g} s")
    return results


def _join(threads: list[threading.Thread], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
