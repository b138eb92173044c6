"""Starts the ranks of a run through mpiexec, and sees to it that they end: all of them, whatever happens to one.

Each rank is `python -m mpi4py -m MODULE ...`, so that an exception in one of them ends the job. MPI's process managers tell little of
who failed, and less of why: ranks report to a channel, and each has a supervisor that reports its end.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from wagma.errors import MissingDependencyError, WagmaError
from wagma.real import library
from wagma.real.launching.channel import RANK_VARIABLES, Receiver, stack_file
from wagma.real.launching.hosts import several, words
from wagma.real.launching.manager import Manager
from wagma.real.launching.relay import Relay
from wagma.real.node import Transport

START_LIMIT_S = 120.0  # until every rank has begun
FAILURE_LIMIT_S = 5.0  # from the first failure to the end of the job
END_LIMIT_S = 60.0  # from the last rank's good end: Python and torch take their time to leave where cores are busy
#: Promised: from the first failure to the end of all ranks, where they have cores.
OVER_WITHIN_S = 10.0
STOP_LIMITS_S = ((signal.SIGINT, 1.5), (signal.SIGTERM, 1.0), (signal.SIGKILL, 1.0))
POLL_S = 0.2
RANK = re.compile(r"^rank \d+: ")  # how a message begins that says itself whose error it is

#: Cores are for ranks: threads of a library on top of them would only take turns.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: Open MPI refuses to run as root, or more ranks than cores, unless told so. It ties a rank to one core, which the rank's progress
#: thread would have to share, and spins while it waits. Up to version 4 OMPI_MCA_ is the prefix of all, later PRTE_MCA_ that of what
#: its launcher reads. Other libraries read none of these. "slot": or else it has all ranks that it may oversubscribe on the first host.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
#: Called with how many of how many parts are done, and what they show.
Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class Failure:
    """Why a rank, or the job, ended. secondary: the rank only reports that another one failed."""

    rank: int | None
    message: str
    status: int = 1
    secondary: bool = False

    def __str__(self) -> str:
        named = self.rank is None or RANK.match(self.message)  # the message says itself whose error it is
        return f"wagma: {'' if named else f'rank {self.rank}: '}{self.message}"


def under_mpiexec() -> bool:
    """Whether this process is a rank of a job already."""
    return any(name in os.environ for name in RANK_VARIABLES)


def find_mpiexec() -> Path | None:
    """The mpiexec of the MPI that mpi4py uses here."""
    return library.find_mpiexec(library.library_of_mpi4py())


def require(*, training: bool = True, transport: Transport = "auto") -> Path:
    """The mpiexec to use. Raises MissingDependencyError, naming all that is missing for a real run, before any rank starts.

    What a workload needs beside torch is asked for by `wagma.workloads.require`. The part of the kernel that calls MPI is asked for by
    transport = "mpi" only: ranks on one machine share memory, and those that are not say themselves that they lack it.
    """
    needed = [("mpi4py", "mpi4py"), ("wagma._native", "the native kernel wagma._native (a C++ compiler builds it)")]
    if transport == "mpi":
        needed.append(("wagma._native_mpi", "the kernel's part wagma._native_mpi (a C++ compiler and MPI build it)"))
    if training:
        needed.append(("torch", "torch"))
    missing = [what for module, what in needed if find_spec(module) is None]
    mpiexec = find_mpiexec()
    if mpiexec is None:
        mpi = library.library_of_mpi4py()
        missing.append("mpiexec" if mpi is None else f"the mpiexec of {mpi} on PATH")
    if missing or mpiexec is None:
        raise MissingDependencyError(
            f"a real run needs {', '.join(missing)}: docs/install.md says how to install it; simulating needs none of it"
        )
    return mpiexec


def run_ranks(ranks: int, arguments: Sequence[str], progress: Progress | None = None, hosts: str | None = None) -> int:
    """Run `python -m mpi4py -m ARGUMENTS --launched CHANNEL` on so many ranks; returns the exit status of the job.

    hosts: NAME:RANKS,...; else mpiexec's own list, a resource manager's, or this machine. Output is passed on. If a rank fails, its error
    goes to standard error first, as `wagma: rank 2: ...`, and the job is over within OVER_WITHIN_S where ranks have cores. Ctrl-C and
    SIGTERM end all ranks before KeyboardInterrupt is raised.
    """
    mpiexec = require()
    with tempfile.TemporaryDirectory(prefix="wagma-") as folder:
        receiver = Receiver(Path(folder))
        relay = Relay(str(receiver.path)) if several(hosts, os.environ) else None
        try:
            channel = str(receiver.path if relay is None else relay.address)
            rank = [sys.executable, "-m", "mpi4py", "-m", *arguments, "--launched", channel]
            supervisor = [sys.executable, "-m", "wagma.real.launching.supervise", channel]
            command = [str(mpiexec), *chosen(hosts), "-n", str(ranks), *supervisor, *rank]
            job = Job(command, ranks, receiver, progress, "" if relay is None else f", or could not say so to {relay.place}")
            with terminated_like_interrupted():
                job.run()
            return job.report()
        finally:
            if relay is not None:
                relay.close()
            receiver.close()


def chosen(hosts: str | None) -> list[str]:
    """mpiexec's options where ranks may be on several hosts; none on one."""
    if not several(hosts, os.environ):
        return []
    found = library.library_of_mpi4py()
    return words(hosts, environment(), None if found is None else found.family)


def output_of(ranks: int, module: str, limit_s: float) -> str:
    """Standard output of `python -m mpi4py -m module` on so many ranks. Raises WagmaError if it fails or takes longer than limit_s."""
    command = [str(require(training=False)), *chosen(None), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", module]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise WagmaError(f"{module} on {ranks} ranks: not done after {limit_s:g} s") from None
        finally:
            stop(process)
    if process.returncode != 0:
        manager = Manager(blocks=True)
        lines = [line for line in errors.splitlines() if not manager.says(line) and line.strip()]
        raise WagmaError(f"{module} on {ranks} ranks: {lines[-1] if lines else f'status {process.returncode}'}")
    return output


def environment() -> Mapping[str, str]:
    """The ranks' environment: this one, with one thread a rank unless the user has chosen."""
    # The folder that it runs in must not hide the installed package: a clone has one of the same name, without its kernel.
    return {**OPEN_MPI, **dict.fromkeys(THREAD_VARIABLES, "1"), **os.environ, "PYTHONSAFEPATH": "1"}


class Job:
    """One mpiexec with its ranks. unheard: why a rank that has begun may not have been heard."""

    def __init__(
        self, command: Sequence[str], ranks: int, receiver: Receiver, progress: Progress | None, unheard: str = ""
    ) -> None:
        self._ranks = ranks
        self._receiver = receiver
        self._progress = progress
        self._unheard = unheard
        self._begun: dict[int, int | None] = {}  # rank -> process id, None on another host
        self._ended: set[int] = set()  # ranks that said how they ended
        self._exited: set[int] = set()
        self._failures: list[Failure] = []
        self._texts: dict[int, str] = {}
        self._noise: list[str] = []
        self._deadline = time.monotonic() + START_LIMIT_S
        self._selector = selectors.DefaultSelector()
        self._selector.register(receiver, selectors.EVENT_READ)
        self._mpiexec = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
            start_new_session=True,
        )  # fmt: skip

    def run(self) -> None:
        """Pass everything on until the job is over, or has to be stopped."""
        outputs = [(self._mpiexec.stdout, sys.stdout), (self._mpiexec.stderr, sys.stderr)]
        threads = [threading.Thread(target=self._pass_on, args=one, daemon=True) for one in outputs]
        for thread in threads:
            thread.start()
        try:
            while self._mpiexec.poll() is None and time.monotonic() < self._deadline:
                self._watch(POLL_S)
            if self._mpiexec.poll() is None:
                self._give_up()
        finally:
            with _uninterrupted():
                self._end(threads)

    def report(self) -> int:
        """Print why the job failed, if it did; returns its exit status."""
        code = self._mpiexec.returncode
        if not self._failures and code == 0:
            sys.stderr.write("".join(self._noise))  # no failure that it could be about: a warning
            return 0
        failures = [failure for failure in self._failures if not failure.secondary] or self._failures
        if not failures:
            failures = [Failure(None, f"error: the ranks ended with status {code}")]
            sys.stderr.write("".join(self._noise))
        once = {RANK.sub("", failure.message, count=1): failure for failure in reversed(failures)}  # ranks often fail alike
        for own, failure in once.items():
            if any(message != own and message in own for message in once):
                continue  # it says that a peer has failed, and how, which that one has said itself
            print(failure, file=sys.stderr)
        stacks = [self._stack(failure.rank) for failure in failures if failure.rank is not None]
        print(next(filter(None, stacks), ""), end="", file=sys.stderr)  # one will do: ranks often fail alike
        return failures[0].status

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        stop(self._mpiexec)
        self._watch(0)
        for rank in self._begun.keys() - self._exited:
            if (process := self._begun[rank]) is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
        for thread in threads:
            thread.join(timeout=1)
        self._selector.close()
        for pipe, thread in zip((self._mpiexec.stdout, self._mpiexec.stderr), threads, strict=True):
            if pipe is not None and not thread.is_alive():
                pipe.close()

    def _stack(self, rank: int) -> str:
        with suppress(OSError):
            return self._texts.get(rank) or stack_file(self._receiver.path, rank).read_text()
        return ""

    def _watch(self, timeout_s: float) -> None:
        """Take in what the ranks and their supervisors say."""
        self._selector.select(timeout_s)
        for event in self._receiver.events():
            self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        rank = event["rank"]
        match event["event"]:
            case "begun":
                self._begun[rank] = event.get("pid")
                if len(self._begun) == self._ranks and not self._failures:
                    self._deadline = float("inf")
            case "progress" if self._progress is not None:
                self._progress(event["done"], event["total"], event.get("text", ""))
            case "text":
                self._texts[rank] = self._texts.get(rank, "") + event["text"]
            case "failed":
                self._ended.add(rank)
                self._fail(Failure(rank, event["message"], event["status"], event["secondary"]))
            case "ended":
                self._ended.add(rank)
                if len(self._ended) == self._ranks:
                    self._deadline = time.monotonic() + END_LIMIT_S
            case "exited":
                self._exited.add(rank)
                # Once a rank has failed, the process manager kills the others.
                if rank not in self._ended and not self._failures:
                    self._fail(Failure(rank, _last_words(event["code"])))

    def _fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._deadline = min(self._deadline, time.monotonic() + FAILURE_LIMIT_S)

    def _give_up(self) -> None:
        if not self._failures:
            missing = sorted(set(range(self._ranks)) - self._begun.keys())
            late = (
                f"ranks {missing} did not begin within {START_LIMIT_S:g} s{self._unheard}"
                if missing
                else "the ranks ended, mpiexec did not"
            )
            self._failures.append(Failure(None, f"error: {late}"))

    def _pass_on(self, source: Any, target: Any) -> None:
        """A thread: lines from the job to here; those of the process manager are kept for later."""
        manager = Manager(blocks=target is sys.stderr)
        for data in source:
            line = data.decode(errors="replace")
            if manager.says(line) or (self._failures and not line.strip()):
                self._noise.append(line)
                continue
            try:
                target.write(line)
                target.flush()
            except BrokenPipeError:
                pass  # whoever read it has seen enough
            except OSError as error:
                self._fail(Failure(None, f"error: the ranks' output cannot be written: {error.strerror}"))


def _last_words(code: int) -> str:
    """What an exit status says of a rank that said nothing itself."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (by the system, if memory ran out)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"left with exit status {code}, without a word"


def stop(process: subprocess.Popen[Any]) -> None:
    """End mpiexec, politely at first."""
    for number, limit_s in STOP_LIMITS_S:
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that the ranks are ended in both cases."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with _handler(signal.SIGTERM, interrupt):
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore further interrupts: ending the ranks takes seconds at most, and must not be left half done."""
    with _handler(signal.SIGINT, signal.SIG_IGN), _handler(signal.SIGTERM, signal.SIG_IGN):
        yield


@contextmanager
def _handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python has signals handled by the main thread only
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
