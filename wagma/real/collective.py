"""The wait-avoiding group average for mpi4py users: numpy in, numpy out, no torch.

    with GroupAllreduce(MPI.COMM_WORLD, model) as collective:
        for t in range(iterations):
            model -= learning_rate * gradient(model)
            collective.average()

A rank that is late is not waited for: its progress thread contributes the model it published last, and the rank merges
the newest sum when it comes (WAGMA-SGD: Li et al., TPDS 2021, algorithm 2). Every sync_period-th call is a global mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from wagma.core.averaging import merge_rule
from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.real.kernel import Engine, Records, is_orderly, require
from wagma.real.limited import agree
from wagma.scenario import resolve_group_size, resolve_sync_period


@dataclass(frozen=True, slots=True)
class AverageOutcome:
    """What one call of `average` did.

    fresh: the model published for this iteration is in the sum. merged_version: the iteration whose sum was merged, None for
    none (merge_once). group_length: number of its members, 0 for none. synced: the mean over all ranks has replaced the model.
    """

    iteration: int
    fresh: bool
    merged_version: int | None
    group_length: int
    synced: bool


class GroupAllreduce:
    """Averages `buffer` in place, in changing groups without waiting for late members. Collective: all ranks create it.

    comm: an mpi4py intracommunicator (it is duplicated), or one of `wagma.real.local`. buffer: the model, 1-D C-contiguous
    float32 or float64, of the same length and dtype on all ranks. group_size: 1 to the number of ranks, or "sqrt". sync_period: a
    global mean in every sync_period-th iteration, or "never". merge_once: merge no sum twice. timeout_s: limit of every wait.
    record, digests: keep records for a trace (`take_records`).

    Raises InputError, on every rank and naming the rank at fault, MissingDependencyError, CollectiveTimeout.
    """

    def __init__(
        self,
        comm: Any,
        buffer: npt.NDArray[Any],
        group_size: int | Literal["sqrt"] = "sqrt",
        sync_period: int | Literal["never"] = 10,
        *,
        merge_once: bool = False,
        timeout_s: float = 300.0,
        record: bool = False,
        digests: bool = False,
    ) -> None:
        def describe() -> str:
            require(comm)
            size = resolve_group_size(group_size, comm.size, "group_size")
            period = resolve_sync_period(sync_period)
            _check_buffer(buffer)
            return (
                f"{buffer.size} elements of {buffer.dtype}, group_size = {size}, sync_period = {period or 'never'},"
                f" merge_once = {merge_once}"
            )

        agree(comm, describe, timeout_s)
        self._buffer = buffer
        self._schedule = Schedule(
            comm.size, resolve_group_size(group_size, comm.size, "group_size"), resolve_sync_period(sync_period)
        )
        self._next = self._schedule.first
        self._engine = Engine(
            comm, self._schedule, buffer, merge_once=merge_once, timeout_s=timeout_s, record=record, digests=digests
        )

    @property
    def schedule(self) -> Schedule:
        """Groups, syncs and staleness bounds of this collective."""
        return self._schedule

    def average(self, iteration: int | None = None) -> AverageOutcome:
        """Publish the buffer's content, join the next version, write the average into the buffer.

        `iteration`, where it is given, must be the next one: 0, 1, 2, ... Raises CollectiveTimeout, PeerFailed, ProtocolError.
        """
        t = self._next if iteration is None else iteration
        outcome = self._engine.arrive(t, self._buffer)
        self._next = self._schedule.next(t)
        synced = self._schedule.is_sync(t)
        if synced:
            self._engine.copy_result(self._buffer)
        elif outcome.group_length:
            self._engine.merge(self._buffer, *merge_rule(int(outcome.fresh), outcome.group_length))
        merged = None if outcome.merged_version == NONE else outcome.merged_version
        return AverageOutcome(t, outcome.fresh, merged, outcome.group_length, synced)

    def take_records(self) -> Records:
        """(executions, iterations) since the last call, with the names of wagma.trace; complete after `close`."""
        return self._engine.take_records()

    def close(self) -> None:
        """This rank averages no more: serve the others until all have closed. Uneven numbers of iterations are legal.

        Raises CollectiveTimeout if the run shows no sign of life for timeout_s, PeerFailed.
        """
        self._engine.close()

    def abort(self, message: str) -> None:
        """Give up: the peers raise PeerFailed with this message instead of waiting for this rank."""
        self._engine.abort(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if is_orderly(error):
            self.close()
        else:
            self.abort(f"{type(error).__name__}: {error}")


def _check_buffer(buffer: Any) -> None:
    if not isinstance(buffer, np.ndarray):
        raise InputError(f"buffer is a {type(buffer).__name__}: must be a numpy array")
    if buffer.dtype not in (np.float32, np.float64) or not buffer.dtype.isnative:
        raise InputError(f"buffer has dtype {buffer.dtype}: must be float32 or float64")
    if buffer.ndim != 1 or not buffer.flags.c_contiguous or not buffer.flags.writeable or buffer.size == 0:
        raise InputError(f"buffer has shape {buffer.shape}: must be 1-D, C-contiguous, writeable and not empty")
