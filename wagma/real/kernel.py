"""The native engine for Python. How its ranks reach each other: wagma.real.connect; how a process with one ends: wagma.real.exits."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt

from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.core.symbols import NULL
from wagma.errors import PeerFailed, WagmaError
from wagma.real.connect import connect
from wagma.real.devices.place import Place
from wagma.real.devices.resident import DeviceBuffer
from wagma.real.exits import forget, note_failure, serve_until_exit
from wagma.real.limited import is_local
from wagma.real.modules import native
from wagma.real.node import Transport

if TYPE_CHECKING:
    from wagma import _native

Array = npt.NDArray[Any]
#: A rank's model or gradient as an engine reads and writes it: an array in host memory, tensors on a device, or, None, its own buffers.
Own: TypeAlias = "Array | _native.DeviceParts | None"
#: Executions and iterations, with the names of wagma.trace; digests are 16 hexadecimal digits, None where they are off.
Records = tuple[list[dict[str, Any]], list[dict[str, Any]]]


class Engine:
    """One rank's engine on a communicator: an mpi4py one or that of `wagma.real.local`. Collective: all its ranks make one.

    `arrive` publishes a model and returns when there is something to merge; the progress thread answers for the rank in
    between. `initial`: 1-D C-contiguous array, the model that is contributed until the first arrival: float32, float64, float16, or
    16-bit integers that are bfloat16s if `dtype` says so. `resident`: the model lives in the engine's buffers (`buffer`, `device_buffer`),
    and is None in every call, or on a device DeviceParts without tensors, which have the stream. `mean_when_fresh`: the only rule of a
    fresh rank is sum / |G|, which is then written at once.
    place: where this rank's model is (None, on all ranks: nobody's is on a device); on a device it comes as DeviceParts, but `initial`.
    longest_nap_s: how long an idle rank goes without looking at MPI, where that is the transport.
    Waits end after `timeout_s` seconds with CollectiveTimeout; after `watchdog_s` without anything that moves, where something is due, each
    rank says on standard error what stands (0: never). `record` keeps records, `digests` of all that is moved.

    Every rank has to give the same length, dtype, schedule and options: `wagma.real.limited.agree` first.
    """

    def __init__(
        self,
        comm: Any,
        schedule: Schedule,
        initial: Array,
        *,
        dtype: str | None = None,
        merge_once: bool = False,
        resident: bool = False,
        mean_when_fresh: bool = False,
        transport: Transport = "auto",
        place: Place | None = None,
        longest_nap_s: float | None = None,
        timeout_s: float = 300.0,
        watchdog_s: float = 60.0,
        record: bool = False,
        digests: bool = False,
    ) -> None:
        report_on_signal()
        self._separate = not is_local(comm)  # ranks are processes
        config = native().EngineConfig(
            world_size=schedule.world_size,
            group_size=schedule.group_size,
            sync_period=schedule.sync_period,
            count=initial.size,
            dtype=initial.dtype.name if dtype is None else dtype,
            grouped=schedule.grouped,
            fixed=schedule.fixed,
            initiators=schedule.initiators,
            seed=schedule.seed,
            accumulate=schedule.accumulate,
            merge_once=merge_once,
            resident=resident,
            mean_when_fresh=mean_when_fresh,
            timeout_s=timeout_s,
            watchdog_s=watchdog_s,
            record=record,
            digests=digests,
            begin=schedule.begin,
        )
        connected = connect(comm, config, transport, timeout_s, longest_nap_s, place)
        own_way = () if connected.models is None else (connected.models,)
        self._engine: _native.Engine = native().Engine(config, connected.transport, initial, *own_way)
        #: And how models on a device get there, in words; "" where it has no model, but a number in its place (a rank alone).
        self.transport: str = connected.name
        self.buffers: int = config.buffers
        self.copies: int = self.buffers - resident  # of the model, beyond the caller's own
        self.schedule = schedule
        self._count = initial.size
        self._digests = digests
        self.rank: int = connected.transport.rank
        self._gradients = Gradients(schedule) if schedule.accumulate else None
        #: Where gradients accumulate and there are syncs: the model that goes into those that are left when this rank closes.
        self.last_model: Callable[[], Own] | None = None
        self.ended = False
        self.error: WagmaError | None = None  # why the last call failed, if the engine has not ended
        if self._separate:
            self._number = serve_until_exit(self)

    def begin_at(self, iteration: int, initial: Array) -> None:
        """Of a run that is resumed: its first iteration, and what is contributed until the first arrival. Raises ProtocolError after one.

        Every rank calls it before any of them arrives: so a barrier has to follow.
        """
        self._engine.begin_at(iteration, initial)
        self.schedule = replace(self.schedule, begin=iteration)

    def arrive(self, version: int, own: Own) -> _native.Outcome:
        """Publish `own` for `version` and wait until there is something to merge.

        Raises CollectiveTimeout, PeerFailed, ProtocolError.
        """
        if self._gradients is not None:
            self._gradients.published(version)
        with self._noting_failure():
            return self._engine.arrive(version, own)

    def average(self, version: int, own: Own) -> _native.Outcome:
        """arrive, and what follows in W algorithm 2, in one call: see `wagma.core.averaging.merge_rule`. Raises as arrive does."""
        try:
            return self._engine.average(version, own)
        except BaseException:  # cheaper than a context manager where nothing is raised, which counts for small models
            with self._noting_failure():
                raise

    def merge(self, own: Own, own_weight: int, divisor: int) -> None:
        """own = (sum + own_weight * own) / divisor, in place. Raises as arrive does, of models on a device, which is waited for."""
        with self._noting_failure():
            self._engine.merge(own, own_weight, divisor)

    def copy_result(self, own: Own) -> None:
        """own = result; at a sync the result is the mean. Raises as merge does."""
        with self._noting_failure():
            self._engine.copy_result(own)

    def retract(self, own: Own) -> bool:
        """own += what no version has taken yet, where contributions accumulate: before each arrive. Whether there was something."""
        assert own is not None  # a model may be resident, gradients are not
        before = time.monotonic_ns()
        with self._noting_failure():
            taken = self._engine.retract(own)
        if taken and self._gradients is not None:
            self._gradients.retracted(before)
        return taken

    @property
    def model_index(self) -> int:
        """The buffer with the resident model: another one after each merge or copy_result."""
        return self._engine.live_index

    def buffer(self, index: int) -> Array:
        """A buffer as an array: the model, if `index` is model_index. It stays valid as long as anybody refers to it."""
        return self._engine.buffer(index)

    def device_buffer(self, index: int, typestr: str) -> DeviceBuffer:
        """The same of a model that is resident on a device, for other libraries."""
        return DeviceBuffer(self._engine, self._engine.buffer_address(index), self._count, typestr)

    def take_records(self) -> Records:
        """What was recorded since the last call; complete after `close`."""
        records = self._engine.take_records()
        text = _hexadecimal if self._digests else _no_digest
        executions = [_execution(self.rank, record, text) for record in records.executions]
        iterations = [_iteration(self.rank, record, text) for record in records.iterations]
        if self._gradients is not None:
            self._gradients.complete(executions, iterations)
        return executions, iterations

    def close(self) -> None:
        """Serve the other ranks until all have closed; again: nothing. Raises CollectiveTimeout, PeerFailed."""
        if self.ended:
            return
        with self._noting_failure():
            self._engine.close(None if self.last_model is None else self.last_model())
        self._forget()

    def abort(self, message: str) -> None:
        """Tell the peers, who raise PeerFailed, and stop without waiting for them; again or after close: nothing."""
        if self.ended:
            return
        self._engine.abort(message)
        self._failed(wait=False)

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except PeerFailed:
            self._failed(wait=True)
            raise
        except WagmaError as error:
            self.error = error
            raise

    def _failed(self, wait: bool) -> None:
        self._forget()
        if self._separate:
            note_failure(wait)

    def _forget(self) -> None:
        self.ended = True
        if self._separate:
            forget(self._number)


class Gradients:
    """What the records of a rank lack where gradients accumulate: which of them are in what was published, and when it took some back.

    Of the application's thread, like the engine's calls. The engine says which sum a version took; that all of them arrive is for the
    checkers to see, from what the rank has put into each.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._last = self._oldest = NONE  # what was published last, and the oldest gradient in it
        self._oldest_of: dict[int, int] = {}
        self._retracted_ns: int | None = None
        self._retracted_at: dict[int, int] = {}

    def retracted(self, at_ns: int) -> None:
        """What was published last goes into what is next; at_ns: from when on no version could take it."""
        self._retracted_ns = at_ns
        self._oldest_of.pop(self._last, None)

    def published(self, iteration: int) -> None:
        """The sum of what was retracted and of the iteration's gradient, or at a sync the model."""
        if self._retracted_ns is None or self._schedule.is_sync(iteration):
            self._oldest = iteration
        if self._retracted_ns is not None:
            self._retracted_at[iteration] = self._retracted_ns
        if not self._schedule.is_sync(iteration):
            self._oldest_of[iteration] = self._oldest
        self._last, self._retracted_ns = iteration, None

    def complete(self, executions: list[dict[str, Any]], iterations: list[dict[str, Any]]) -> None:
        """Put it into records, in order."""
        for values in executions:
            version, stamp = values["version"], values["own_stamp"]
            sync = self._schedule.is_sync(version)
            values["oldest_stamp"] = version if sync else self._oldest_of.pop(stamp, NONE)
            if stamp == NONE and values["contribution_digest"] is not None:
                values["contribution_digest"] = NULL
        for values in iterations:
            values["retracted_ns"] = self._retracted_at.pop(values["iteration"], None)


def _hexadecimal(digest: int) -> str | None:
    return f"{digest:016x}"


def _no_digest(_: int) -> None:
    return None


def _execution(rank: int, record: _native.ExecutionRecord, text: Callable[[int], str | None]) -> dict[str, Any]:
    return {
        "rank": rank,
        "sequence": record.sequence,
        "version": record.version,
        "group": list(record.members),
        "activator": record.activator,
        "activated_ns": record.activated_ns,
        "started_ns": record.started_ns,
        "completed_ns": record.completed_ns,
        "own_stamp": record.own_stamp,
        "contribution_digest": text(record.contribution_digest),
        "sum_digest": text(record.sum_digest),
        "read_ns": record.read_ns if record.read_ns > record.completed_ns else None,
    }


def _iteration(rank: int, record: _native.IterationRecord, text: Callable[[int], str | None]) -> dict[str, Any]:
    return {
        "rank": rank,
        "sequence": record.sequence,
        "iteration": record.iteration,
        "arrival_ns": record.arrival_ns,
        "return_ns": record.return_ns,
        "fresh": record.fresh,
        "merged_version": record.merged_version,
        "published_digest": text(record.published_digest),
        "merged_digest": None if record.merged_version == NONE else text(record.merged_digest),
        "model_digest": text(record.model_digest),
    }


def report_on_signal() -> None:
    """Have SIGUSR1 print where each engine and each Python thread stands, unless the program uses that signal.

    MPICH handles it, too, which Python does not know of: it still gets the signal.
    """
    main = threading.current_thread() is threading.main_thread()  # nobody else may ask Python about signals
    if main and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL and native().report_on(signal.SIGUSR1):
        with suppress(OSError, ValueError, RuntimeError):  # notebooks have a standard error that is no file
            faulthandler.register(signal.SIGUSR1, file=sys.__stderr__ or sys.stderr, chain=True)
