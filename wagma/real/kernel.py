"""The native engine for Python: which transport, which checks come first, and how a process ends that has one.

Loading order matters: `_native_mpi` names no search path for libmpi, so mpi4py has to have opened its own first; both then call
one library. Ending matters too: a progress thread that still makes MPI calls when MPI finalizes hangs or crashes the job, so open
engines are closed (or, after an uncaught exception, aborted) by an exit handler, which runs before mpi4py finalizes MPI.
"""

from __future__ import annotations

import atexit
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import numpy.typing as npt

from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.errors import MissingDependencyError, PeerFailed, WagmaError
from wagma.real import library
from wagma.real.limited import agree, check_watchdog, is_local
from wagma.real.node import Transport, check_transport, share_memory

if TYPE_CHECKING:
    from wagma import _native

Array = npt.NDArray[Any]
#: Executions and iterations, with the names of wagma.trace; digests are 16 hexadecimal digits, None where they are off.
Records = tuple[list[dict[str, Any]], list[dict[str, Any]]]

#: A peer's failure is raised this much later than it is heard of, so that the rank that failed prints its error first.
ORIGIN_FIRST_S = 0.25
#: After a failure a process stays this long, so that its peers can say what they saw before the job is taken down.
FAREWELL_S = 2.0


@dataclass(slots=True)
class _ExitState:
    registered: bool = False
    created: int = 0
    failed_at: float | None = None
    by_exit: SystemExit | None = None  # the last call of sys.exit


# By creation, which is collective: at exit all ranks close theirs in the same order. A set's order would make one rank wait in one
# engine for a peer that waits in another.
_open: dict[int, Engine] = {}
_exit = _ExitState()


def native() -> Any:
    """The module wagma._native. Raises MissingDependencyError."""
    try:
        return import_module("wagma._native")
    except ImportError as error:
        raise MissingDependencyError(
            f"the native kernel wagma._native cannot be imported ({error}): build wagma again, with a C++ compiler (docs/install.md)"
        ) from error


def _mpi4py() -> Any:
    try:
        return import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(library.why_no_mpi(error)) from error


def mpi_native() -> Any:
    """The module wagma._native_mpi, on the MPI library of mpi4py. Raises MissingDependencyError."""
    mpi = _mpi4py()
    native()
    try:
        module = import_module("wagma._native_mpi")
    except ImportError as error:
        raise MissingDependencyError(library.why_not_imported(error, mpi)) from error
    wrong = library.difference(module, mpi) or library.too_few_threads(mpi)
    if wrong is not None:
        raise MissingDependencyError(wrong)
    return module


def require(comm: Any, transport: Transport = "auto", watchdog_s: float = 0.0) -> None:
    """Raise MissingDependencyError if there is no kernel for this communicator; InputError for options that no engine has."""
    check_transport(transport)
    check_watchdog(watchdog_s)
    native()
    if transport == "mpi" and not is_local(comm):
        mpi_native()


def _connect(
    comm: Any, config: _native.EngineConfig, transport: Transport, timeout_s: float, longest_nap_s: float | None
) -> Any:
    """This rank's transport. Collective."""
    if is_local(comm):
        return comm.make_transport(config.buffers, config.buffer_bytes)
    if transport != "mpi":
        shared = share_memory(comm, native().Node, config, timeout_s, required=transport == "shm")
        if shared is not None:
            return shared

    def describe() -> str:
        mpi_native()
        return "MPI"

    agree(comm, describe, timeout_s)
    naps = {} if longest_nap_s is None else {"longest_nap_s": longest_nap_s}
    return mpi_native().connect(comm.py2f(), config.buffers, config.buffer_bytes, timeout_s, **naps)


def world() -> Any:
    """mpi4py's COMM_WORLD. Raises MissingDependencyError."""
    return _mpi4py().COMM_WORLD


class Engine:
    """One rank's engine on a communicator: an mpi4py one or that of `wagma.real.local`. Collective: all its ranks make one.

    `arrive` publishes a model and returns when there is something to merge; the progress thread answers for the rank in
    between. `initial`: 1-D C-contiguous array, the model that is contributed until the first arrival: float32, float64, float16, or
    16-bit integers that are bfloat16s if `dtype` says so. `resident`: the model lives in the engine's buffers (`model`), and is None
    in every call. `mean_when_fresh`: the only rule of a fresh rank is sum / |G|, which is then written at once.
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
        longest_nap_s: float | None = None,
        timeout_s: float = 300.0,
        watchdog_s: float = 60.0,
        record: bool = False,
        digests: bool = False,
    ) -> None:
        _report_on_signal()
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
        )
        connected = _connect(comm, config, transport, timeout_s, longest_nap_s)
        self._engine: _native.Engine = native().Engine(config, connected, initial)
        self.transport: str = connected.name
        self.buffers: int = config.buffers
        self.copies: int = self.buffers - resident  # of the model, beyond the caller's own
        self.schedule = schedule
        self._digests = digests
        self.rank = connected.rank
        self.ended = False
        self.error: WagmaError | None = None  # why the last call failed, if the engine has not ended
        if self._separate:
            # A strong reference: an engine that the program has dropped still answers for its rank until the process exits.
            self._number = _exit.created
            _open[self._number] = self
            _exit.created += 1
            _watch_exit()

    def arrive(self, version: int, own: Array | None) -> _native.Outcome:
        """Publish `own` for `version` and wait until there is something to merge.

        Raises CollectiveTimeout, PeerFailed, ProtocolError.
        """
        with self._noting_failure():
            return self._engine.arrive(version, own)

    def average(self, version: int, own: Array | None) -> _native.Outcome:
        """arrive, and what follows in W algorithm 2, in one call: see `wagma.core.averaging.merge_rule`. Raises as arrive does."""
        try:
            return self._engine.average(version, own)
        except BaseException:  # cheaper than a context manager where nothing is raised, which counts for small models
            with self._noting_failure():
                raise

    def merge(self, own: Array | None, own_weight: int, divisor: int) -> None:
        """own = (sum + own_weight * own) / divisor, in place."""
        self._engine.merge(own, own_weight, divisor)

    def copy_result(self, own: Array | None) -> None:
        """own = result; at a sync the result is the mean."""
        self._engine.copy_result(own)

    def retract(self, own: Array) -> bool:
        """own += what no version has taken yet, where contributions accumulate: before each arrive. Whether there was something."""
        return self._engine.retract(own)

    @property
    def model_index(self) -> int:
        """The buffer with the resident model: another one after each merge or copy_result."""
        return self._engine.live_index

    def buffer(self, index: int) -> Array:
        """A buffer as an array: the model, if `index` is model_index. It stays valid as long as anybody refers to it."""
        return self._engine.buffer(index)

    def take_records(self) -> Records:
        """What was recorded since the last call; complete after `close`."""
        records = self._engine.take_records()
        text = _hexadecimal if self._digests else _no_digest
        return (
            [_execution(self.rank, record, text) for record in records.executions],
            [_iteration(self.rank, record, text) for record in records.iterations],
        )

    def close(self) -> None:
        """Serve the other ranks until all have closed; again: nothing. Raises CollectiveTimeout, PeerFailed."""
        if self.ended:
            return
        with self._noting_failure():
            self._engine.close()
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
            if wait:
                time.sleep(ORIGIN_FIRST_S)
            _exit.failed_at = time.monotonic()

    def _forget(self) -> None:
        self.ended = True
        if self._separate:
            _open.pop(self._number, None)


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


def _report_on_signal() -> None:
    """Have SIGUSR1 print where each engine and each Python thread stands, unless the program uses that signal.

    MPICH handles it, too, which Python does not know of: it still gets the signal.
    """
    main = threading.current_thread() is threading.main_thread()  # nobody else may ask Python about signals
    if main and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL and native().report_on(signal.SIGUSR1):
        with suppress(OSError, ValueError, RuntimeError):  # notebooks have a standard error that is no file
            faulthandler.register(signal.SIGUSR1, file=sys.__stderr__ or sys.stderr, chain=True)


def is_orderly(error: BaseException | None) -> bool:
    """Whether a program that ends with `error` ends well: nothing raised, or an exit with status 0."""
    return error is None or (isinstance(error, SystemExit) and not error.code)


def _watch_exit() -> None:
    """Have `_end_all` called at exit, and let it know of sys.exit: Python tells an exit handler of no SystemExit."""
    if _exit.registered:
        return
    _exit.registered = True
    atexit.register(_end_all)
    exit_before = sys.exit

    def exit_and_note(status: Any = None) -> NoReturn:
        _exit.by_exit = SystemExit(status)
        exit_before(status)

    sys.exit = exit_and_note


def _end_all() -> None:
    """At exit, before MPI finalizes: stop every progress thread."""
    uncaught: BaseException | None = getattr(sys, "last_value", None) or _exit.by_exit
    orderly = is_orderly(uncaught)
    for engine in list(_open.values()):
        if orderly and engine.error is not None:
            orderly, uncaught = False, engine.error
        try:
            if orderly:
                engine.close()
            else:
                engine.abort(f"{type(uncaught).__name__}: {uncaught}")
        except BaseException as error:  # Ctrl-C, too: the other engines still have to be stopped before MPI finalizes
            orderly, uncaught = False, uncaught or error
            print(f"wagma: at exit: {error!r}", file=sys.stderr)
            engine.abort(f"{type(uncaught).__name__}: {uncaught}")
    if not orderly and _exit.failed_at is not None:
        sys.stderr.flush()
        time.sleep(max(0.0, _exit.failed_at + FAREWELL_S - time.monotonic()))
