"""Runs the simulations of a sweep: in processes of this machine, in MPI ranks through mpi4py.futures, or in this process.

A worker is a Python of its own (`python -m wagma.studies.pool`) that reads a job per line and answers in lines of JSON: nothing is
inherited, so threads of the caller do no harm, and a worker that crashes takes only its own run with it. A worker writes
several times a second, so that it ends soon after a caller that was killed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from wagma.api import figures
from wagma.errors import InputError, WagmaError
from wagma.scenario import read

TELL_EVERY_S = 0.2
#: Cores are for runs: threads of a library on top of them would only take turns.
_SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MPI_COMMAND = "mpiexec -n 4 python -m mpi4py.futures -m wagma sweep ... --mpi"

Report = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One run, as plain data. table and source: what `wagma.scenario.read` takes.

    every: with the accuracy along virtual time, a point every so many iterations (`wagma.studies.compare`); 0: without. engine: as
    `wagma.api.figures` has it.
    """

    table: dict[str, Any]
    source: str
    algorithm: str
    every: int = 0
    engine: str = "auto"


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of job number `index`: the fields of its Result, or in one line why there are none."""

    index: int
    figures: dict[str, Any] | None
    error: str = ""


def run_here(jobs: Sequence[Job], report: Report) -> Iterator[Finished]:
    """One after the other in this process. report(index, share) as they go on."""
    for index, job in enumerate(jobs):
        yield _run(index, job, lambda done, total, index=index: report(index, done / total))  # type: ignore[misc]


def run_processes(jobs: Sequence[Job], count: int, report: Report) -> Iterator[Finished]:
    """In `count` processes; results as they come. The processes end when the iterator is closed."""
    waiting = deque(enumerate(jobs))
    busy: dict[int, _Worker] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or busy:
                while waiting and len(busy) < count:
                    worker = _Worker()
                    busy[worker.answers] = worker
                    selector.register(worker.answers, selectors.EVENT_READ)
                    worker.send(*waiting.popleft())
                for key, _ in selector.select():
                    worker = busy[key.fd]
                    finished = worker.receive(report)
                    if finished is None:
                        continue
                    if worker.ended or not waiting:
                        selector.unregister(key.fd)
                        busy.pop(key.fd).close()
                    else:
                        worker.send(*waiting.popleft())
                    yield finished
        finally:
            for worker in busy.values():
                worker.close()


def run_mpi(jobs: Sequence[Job], report: Report) -> Iterator[Finished]:
    """In the other ranks of the MPI job that this process is rank 0 of. Call `check_mpi` first."""
    from mpi4py.futures import MPIPoolExecutor, as_completed

    with MPIPoolExecutor() as pool:
        futures = [pool.submit(_run, index, job) for index, job in enumerate(jobs)]
        try:
            for future in as_completed(futures):
                finished = future.result()
                report(finished.index, 1.0)
                yield finished
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def check_mpi() -> None:
    """Raise InputError unless this is rank 0 of `python -m mpi4py.futures` with at least one other rank to work."""
    if "mpi4py.futures" not in sys.orig_argv:
        raise InputError(f"--mpi: this process was not started by mpi4py.futures; start it like this: {MPI_COMMAND}")
    from mpi4py import MPI

    if MPI.COMM_WORLD.size < 2:
        raise InputError(f"--mpi: this job has 1 rank; must be at least 2, one to hand out the work: {MPI_COMMAND}")


def _run(index: int, job: Job, progress: Callable[[int, int], None] | None = None) -> Finished:
    """One simulation; whatever goes wrong becomes a line of text."""
    try:
        if job.every:
            from wagma.studies.compare import learn

            return Finished(index, learn(read(job.table, job.source), job.algorithm, job.every, progress))
        return Finished(index, asdict(figures(read(job.table, job.source), job.algorithm, job.engine, progress)))
    except WagmaError as error:
        return Finished(index, None, " ".join(str(error).split()))
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:  # a defect; the other runs go on
        places = traceback.extract_tb(error.__traceback__)
        place = next((p for p in reversed(places) if f"{os.sep}wagma{os.sep}" in p.filename), places[-1])
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Finished(index, None, f"{text} ({os.path.basename(place.filename)}:{place.lineno})")


class _Worker:
    """One process and the job it is at."""

    def __init__(self) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by close
        # A session of its own: Ctrl-C is for the caller, who ends its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wagma.studies.pool"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env=os.environ | _SINGLE, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.answers = self._process.stdout.fileno()
        self.ended = False
        self._index = -1
        self._begun = b""

    def send(self, index: int, job: Job) -> None:
        """Hand out the next job. If the process is gone already, `receive` says so."""
        self._index = index
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, report: Report) -> Finished | None:
        """Read what is there; returns how the job ended, if it has."""
        data = os.read(self.answers, 1 << 16)
        if not data:
            self.ended = True
            return Finished(self._index, None, self._why())
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "share" in answer:
                report(self._index, answer["share"])
            else:
                report(self._index, 1.0)
                return Finished(self._index, answer["figures"], answer["error"])
        return None

    def close(self) -> None:
        """End the process, at once."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            assert file is not None
            with suppress(BrokenPipeError):  # a job that was never read
                file.close()

    def _why(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if status >= 0:
            how = f"its process ended with status {status}"
        else:
            how = f"its process was ended by {signal.Signals(-status).name}"
            if status == -signal.SIGKILL:
                how += ", perhaps for want of memory"
        return f"{how}: {last}" if last else how


def main() -> int:
    """The worker: jobs from standard input, answers to what was standard output; whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    told = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            answers.write(json.dumps({"share": done / total}) + "\n")

    try:
        for line in sys.stdin:
            finished = _run(0, Job(**json.loads(line)), tell)
            answers.write(json.dumps({"figures": finished.figures, "error": finished.error}) + "\n")
    except (BrokenPipeError, KeyboardInterrupt):  # nobody wants to know any more
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
