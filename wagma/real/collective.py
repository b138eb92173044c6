"""The wait-avoiding group average for mpi4py users: numpy in, numpy out, no torch; or an array on a device, which stays there.

    with GroupAllreduce(MPI.COMM_WORLD, model) as collective:
        for t in range(iterations):
            model -= learning_rate * gradient(model)
            collective.average()

A rank that is late is not waited for: its progress thread contributes the model it published last, and the rank merges
the newest sum when it comes (WAGMA-SGD: Li et al., TPDS 2021, algorithm 2). Every sync_period-th call is a global mean.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from wagma.core.protocol import NONE
from wagma.core.schedule import EVERYBODY, Schedule
from wagma.errors import CollectiveTimeout, InputError
from wagma.real.devices.callers import CallersArray
from wagma.real.devices.resident import ResidentArrays
from wagma.real.exits import is_orderly
from wagma.real.kernel import Engine, Records
from wagma.real.limited import agree, gather_text
from wagma.real.modules import require
from wagma.real.node import Transport
from wagma.scenario import resolve_group_size, resolve_sync_period


class AverageOutcome(NamedTuple):
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

    comm: an mpi4py intracommunicator (it is duplicated), or one of `wagma.real.local`. buffer: the model, of the same length and dtype on
    all ranks: a 1-D C-contiguous numpy array of float32, float64 or float16 (or 16-bit integers that hold bfloat16, with
    dtype="bfloat16"); or such an array on a CUDA device, of torch (bfloat16 as it is), cupy, numba or whatever has
    `__cuda_array_interface__`. group_size: 1 to the number of ranks, or "sqrt". sync_period: a global mean in every sync_period-th
    iteration, or "never".
    initiators: who may activate a version: "solo", everybody; "majority", one rank drawn from `seed` for each version; or how many are
    drawn (E). begin: the first iteration, of a run that goes on from a model that was saved after iteration begin - 1, a sync
    (docs/checkpoints.md).
    merge_once: merge no sum twice. device: None, where the buffer is; "cuda" or "cuda:N": it has to be there; "emulated": host memory
    that is taken for a device's (docs/devices.md). transport: "shm", "mpi", "ipc", "cuda-mpi", or "auto": shared memory where all ranks
    are on one machine, that of their devices if they have any. longest_nap_s: over MPI, how long an idle rank goes without looking (0
    to 1; None: 2 ms); the shorter, the more it costs.
    timeout_s: limit of every wait. watchdog_s: after so long without anything that moves, where something is due, each rank says on
    standard error what stands (0: never); SIGUSR1 makes it say so at any time. record, digests: keep records for a trace
    (`take_records`).

    resident: the model lives in the library's buffers, where publishing and averaging copy nothing. `buffer` is then only its first
    value; work on `model`, which is another array after each `average`, and leave the ones before it alone: peers read and write there.
    On a device with transports ipc and cuda-mpi; `model` is then a tensor of torch, if the first value was one, or else an object with
    `__cuda_array_interface__`.

    Raises InputError, on every rank and naming the rank at fault, MissingDependencyError, CollectiveTimeout, WagmaError if there is
    not enough memory to share; DeviceError, OutOfDeviceMemory.
    """

    def __init__(
        self,
        comm: Any,
        buffer: Any,
        group_size: int | Literal["sqrt"] = "sqrt",
        sync_period: int | Literal["never"] = 10,
        *,
        dtype: Literal["bfloat16"] | None = None,
        initiators: int | Literal["solo", "majority"] = "solo",
        seed: int = 0,
        begin: int = 0,
        merge_once: bool = False,
        resident: bool = False,
        device: str | None = None,
        transport: Transport = "auto",
        longest_nap_s: float | None = None,
        timeout_s: float = 300.0,
        watchdog_s: float = 60.0,
        record: bool = False,
        digests: bool = False,
    ) -> None:
        def settings() -> Schedule:
            size = resolve_group_size(group_size, comm.size, "group_size")
            period = resolve_sync_period(sync_period)
            _check_seed(seed, "seed")
            _check_seed(begin, "begin")
            return Schedule(comm.size, size, period, initiators=_initiators(initiators, comm.size), seed=seed, begin=begin)

        found: list[CallersArray] = []

        def describe() -> str:
            require(comm, transport, watchdog_s)
            schedule = settings()
            own = CallersArray(buffer, dtype, device, comm.rank)
            found.append(own)
            _check_truths(merge_once=merge_once, resident=resident)
            if longest_nap_s is not None and not 0 <= longest_nap_s <= 1:
                raise InputError(f"longest_nap_s = {longest_nap_s}: must be from 0 to 1 second")
            return (
                f"{own}, group_size = {schedule.group_size},"
                f" sync_period = {schedule.sync_period or 'never'}, initiators = {initiators}, seed = {seed},"
                f" begin = {begin}, merge_once = {merge_once}, resident = {resident}, transport = {transport}"
            )

        agree(comm, describe, timeout_s)
        (own,) = found
        kinds = gather_text(comm, own.place.kind, timeout_s)
        self._array = None if resident else buffer  # what the engine is handed; a first value is not kept
        self._schedule = settings()
        self._next = begin
        self._limit: CollectiveTimeout | None = None
        self._engine = Engine(
            comm, self._schedule, own.initial(), dtype=own.dtype, merge_once=merge_once, resident=resident, mean_when_fresh=True,
            transport=transport, longest_nap_s=longest_nap_s, timeout_s=timeout_s, watchdog_s=watchdog_s, record=record, digests=digests,
            place=None if set(kinds) == {"cpu"} else own.place,
        )  # fmt: skip
        self._on_device: CallersArray | ResidentArrays | None = own if own.place.on_device else None
        self._models = self._buffers(own) if resident else []
        self._attach()

    def _buffers(self, own: CallersArray) -> list[Any]:
        if not own.place.on_device:
            return [self._engine.buffer(index) for index in range(self._engine.buffers)]
        self._on_device = arrays = ResidentArrays(own, self._engine)
        return arrays.models

    @property
    def model(self) -> Any:
        """The array to work on until the next `average`: the caller's own, or, if it is resident, one of the library's."""
        return self._model

    def _attach(self) -> None:
        # Once for each collective: while one is under way, or was given up, no buffer is the application's, and it looks at the old one.
        self._model = self._models[self._engine.model_index] if self._models else self._array

    @property
    def transport(self) -> str:
        """How the ranks reach each other: "shared memory", "MPI", "CUDA IPC on NVIDIA H200", ..."""
        return self._engine.transport

    @property
    def copies(self) -> int:
        """Copies of the model that this rank holds beyond the caller's own."""
        return self._engine.copies

    @property
    def schedule(self) -> Schedule:
        """Groups, syncs and staleness bounds of this collective."""
        return self._schedule

    def average(self, iteration: int | None = None, stream: Any = None) -> AverageOutcome:
        """Publish the buffer's content, join the next version, write the average into the buffer.

        `iteration`, where it is given, must be the next one: begin, begin + 1, ... stream, of an array on a device: what that stream (or
        its handle) has been given so far is published, and what it is given afterwards finds the average; None: the current stream of
        the array's library; of a resident model torch's current stream, in other libraries the default one.

        Raises CollectiveTimeout, PeerFailed, ProtocolError, DeviceError; ModelChanged if the array has moved to another device.
        """
        t = self._next if iteration is None else iteration
        if self._on_device is not None:
            own = self._on_device.own(stream)
        elif stream is None:
            own = self._array
        else:
            raise InputError(f"stream = {stream!r}: the model is in host memory, which has none")
        try:
            outcome = self._engine.average(t, own)
        except CollectiveTimeout as error:
            self._limit = error
            raise
        if self._on_device is not None:
            self._on_device.written()
        self._attach()
        self._next = t + 1
        merged = outcome.merged_version
        synced = self._schedule.is_sync(t)
        return AverageOutcome(t, outcome.fresh, None if merged == NONE else merged, outcome.group_length, synced)

    def take_records(self) -> Records:
        """(executions, iterations) since the last call, with the names of wagma.trace; complete after `close`."""
        return self._engine.take_records()

    def close(self) -> None:
        """This rank averages no more: serve the others until all have closed. Uneven numbers of iterations are legal.

        Raises CollectiveTimeout if the run shows no sign of life for timeout_s, PeerFailed; once more what `average` raised, if a program
        has caught its CollectiveTimeout: this rank still stands in that version, so that the others are told instead of served.
        """
        if self._limit is not None and not self._engine.ended:
            self.abort(f"{type(self._limit).__name__}: {self._limit}")
            raise self._limit
        self._engine.close()

    #: For `wagma.together`: nothing of it is more than waiting.
    serve = close

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


def _initiators(initiators: object, world_size: int) -> int:
    if initiators == "solo":
        return EVERYBODY
    chosen = 1 if initiators == "majority" else initiators
    if not isinstance(chosen, int) or isinstance(chosen, bool) or not 1 <= chosen <= world_size:
        raise InputError(f"initiators = {initiators!r}: must be 'solo', 'majority' or 1 to {world_size}")
    return chosen


def _check_truths(**options: object) -> None:
    for name, given in options.items():
        if not isinstance(given, bool):
            raise InputError(f"{name} = {given!r}: must be True or False")


def _check_seed(seed: object, name: str) -> None:
    if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise InputError(f"{name} = {seed!r}: must be a whole number from 0 to 2^63 - 1")
