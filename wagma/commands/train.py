"""Train a scenario on real ranks, with its delays injected.

Starts the ranks through mpiexec, unless it is run by mpiexec already. `mpiexec -n 4 python -m mpi4py -m wagma train ...` does by
hand what `wagma train -n 4 ...` does.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from wagma import workloads
from wagma.algorithms import specification
from wagma.api import plan, select_algorithms
from wagma.commands.options import (
    add_run_options,
    check_writable,
    load_scenarios,
    overview,
    prints_table,
    trace_path,
    write_json,
)
from wagma.core.schedule import NEVER
from wagma.errors import CollectiveTimeout, InputError, MissingDependencyError, PeerFailed, WagmaError
from wagma.files import why_no_folder
from wagma.progress import REDRAW_S, Progress
from wagma.real.algorithms import check_transport_of, has_syncs, require_models
from wagma.real.checkpoints.files import find_checkpoint
from wagma.real.devices.choice import ALLOWED as DEVICES
from wagma.real.devices.choice import Choice, choose, device_option
from wagma.real.launching.announced import announced, check_world
from wagma.real.launching.channel import Sender, stack_file
from wagma.real.launching.hosts import check_hosts
from wagma.real.launching.launch import require, run_ranks, under_mpiexec
from wagma.real.launching.ranks import local_rank
from wagma.real.limited import LONGEST_TIMEOUT_S
from wagma.real.node import ON_DEVICE, TRANSPORTS
from wagma.report.tables import results_table
from wagma.report.times import write_times
from wagma.results import Result, summarize
from wagma.scenario import Scenario, require_changing_groups
from wagma.seeing import Summary, summary_of

HEARD_S = 0.1  # for the launcher to hear of a failure before the process manager kills everybody
SECONDARY_S = 2.0  # for the rank that failed first to say so, if another one complains of it earlier
CHECKPOINT_EVERY = 100

Runs = list[tuple[Scenario, str]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("-n", "--ranks", type=_one_number, metavar="N", help="ranks to start (default: the scenario's)")
    parser.add_argument("--hosts", metavar="NAME:RANKS,...", help="where (default: mpiexec's list of hosts, or this one)")
    add_run_options(parser, engines=["real"], algorithms="wagma_sgd")
    parser.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default="auto",
        help="how models travel; auto: through shared memory if all ranks are on one machine, else MPI; of models on a device the first "
        "of ipc, cuda-mpi, shm and mpi that all ranks can have (default: auto)",
    )
    parser.add_argument(
        "--device", type=_device, default="cpu", metavar="DEVICE",
        help=f"where models and data are: {DEVICES}; cuda: each rank the GPU of its number on its machine, modulo those it sees, so that "
        "ranks may share one; emulated: host memory, taken for an emulated device's (default: cpu)",
    )  # fmt: skip
    parser.add_argument(
        "--resident", action="store_true", help="parameters live in the kernel's buffers: averaging copies none of them"
    )
    parser.add_argument(
        "--report-every", type=_seconds, default=10.0, metavar="SECONDS",
        help="a progress line that often where standard error is no terminal (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--tensorboard",
        metavar="FOLDER",
        help="write scalars for TensorBoard; of several algorithms, to a folder of its name in it",
    )
    parser.add_argument(
        "--no-digests",
        action="store_true",
        help="no digests in the trace: it then costs no more than microseconds an iteration, but cannot prove what models were averaged",
    )
    parser.add_argument(
        "--checkpoint", type=_folder, metavar="FOLDER", help="save checkpoints there, at syncs, the two newest stay"
    )
    parser.add_argument(
        "--checkpoint-every", type=_one_number, metavar="N",
        help=f"save at the first sync N or more iterations after the last one, and at the end (default: {CHECKPOINT_EVERY})",
    )  # fmt: skip
    parser.add_argument(
        "--resume", type=_folder, metavar="FOLDER", help="go on from the newest checkpoint there; may be the same folder"
    )
    parser.add_argument(
        "--every",
        type=_one_number,
        metavar="N",
        help="judge the model after every N iterations, too, when the run is over; for --trace",
    )
    parser.add_argument(
        "--times",
        metavar="FILE",
        help='write compute times as CSV, for [compute] kind = "trace"; of several runs as --trace does',
    )
    parser.add_argument(
        "--limit", type=_seconds, metavar="SECONDS", help="end all runs with an error if they take longer in all"
    )
    parser.add_argument("--launched", help=argparse.SUPPRESS)  # by run_ranks: where to report


def run(options: argparse.Namespace) -> int:
    """Train, on ranks that are started here or on this rank."""
    if options.launched is not None or under_mpiexec():
        return _on_this_rank(options)
    started = announced()
    if started is not None and started.size > 1:
        raise InputError(
            f"{started.launcher} started {started.size} processes: wagma train starts its ranks itself;"
            f" run it once, without {started.launcher}, with -n {started.size}"
        )
    runs = _plan(options, options.ranks)
    require(transport=options.transport)
    ranks = runs[0][0].ranks
    with Progress(f"training on {ranks} ranks", options.quiet, every_s=options.report_every) as progress:
        return run_ranks(ranks, ["wagma", *options.argv], progress, options.hosts)


def _plan(options: argparse.Namespace, ranks: int | None, writes: bool = True) -> Runs:
    """writes: this process is the launcher, or rank 0; on the hosts of others there need not be the same folders."""
    if writes:
        check_writable(trace=options.trace, json=options.json, times=options.times)
    check_hosts(options.hosts)
    if options.every is not None and options.trace is None:
        raise InputError(f"--every {options.every}: only with --trace, which has the scores")
    if options.no_digests and options.trace is None:
        raise InputError("--no-digests: only with --trace")
    if options.tensorboard is not None and find_spec("tensorboard") is None:
        raise MissingDependencyError("--tensorboard: needs TensorBoard, which is not installed: pip install tensorboard")
    if options.resident and options.device != "cpu" and options.transport in ("shm", "mpi"):
        raise InputError(
            f"--resident with --transport {options.transport}: on --device {options.device} it must be auto, ipc or cuda-mpi"
        )
    if options.transport in ON_DEVICE and options.device == "cpu":
        raise InputError(
            f"--transport {options.transport}: of models on a device; with --device cpu it must be auto, shm or mpi"
        )
    scenario = load_scenarios(options, None if ranks is None else [ranks])[0]
    if scenario.training.workload == "none":
        raise InputError(f'{scenario.source}: training.workload = "none": there is nothing to train; wagma simulate can run it')
    workloads.require(scenario.training.workload)
    names = select_algorithms(options.algorithms)
    for name in names:
        check_transport_of(specification(name), options.transport)
        if options.resident:
            require_models(specification(name))
    runs = list(plan([scenario], names))
    _check_folders(options, runs)
    for own, algorithm in runs:
        require_changing_groups(scenario, algorithm)
        if options.every is not None and options.every > own.iterations:
            raise InputError(
                f"--every {options.every}: must be at most the number of iterations of {algorithm}, {own.iterations}"
            )
    return runs


def _check_folders(options: argparse.Namespace, runs: Runs) -> None:
    """Before any rank starts: what is to be saved at a sync would else be found out at the first one."""
    scenario, algorithm = runs[0]
    for option, folder in (("--checkpoint", options.checkpoint), ("--resume", options.resume)):
        if folder is None:
            continue
        if len(runs) > 1:
            raise InputError(f"{option} {folder}: of one run; --algorithms names {len(runs)}")
        never = has_syncs(algorithm) and scenario.schedule(algorithm).sync_period == NEVER
        if never or not has_syncs(algorithm):
            why = ' with sync_period = "never"' if never else ""
            raise InputError(
                f"{option} {folder}: {algorithm}{why} has no syncs, at which all ranks hold one model; it has no checkpoints"
            )
    if options.resume is not None and find_checkpoint(options.resume) is None:
        raise InputError(f"--resume {options.resume}: no complete checkpoint there")
    if options.checkpoint is None and options.checkpoint_every is not None:
        raise InputError(f"--checkpoint-every {options.checkpoint_every}: only with --checkpoint, which says where")
    for option, folder in (("--checkpoint", options.checkpoint), ("--tensorboard", options.tensorboard)):
        if folder is not None and (reason := why_no_folder(folder)) is not None:
            raise InputError(f"{option} {folder}: no folder that can be written: {reason}")


def _on_this_rank(options: argparse.Namespace) -> int:
    """The whole command as one rank of a job sees it; rank 0 writes and prints. Does not return if anything fails."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise MissingDependencyError(f"a real run needs mpi4py, with an MPI library: {error}") from error
    comm = MPI.COMM_WORLD
    if options.launched is not None:
        try:
            stack = open(stack_file(options.launched, comm.rank), "w")  # noqa: SIM115 - it stays open
            faulthandler.enable(stack)
        except OSError:  # on another host than the launcher's
            faulthandler.enable()
    sender = Sender(options.launched, comm.rank)
    sender.send("begun", pid=os.getpid())
    transports: list[str] = []  # of each run
    try:
        local = local_rank() if options.device == "cuda" else 0  # the ranks may have to tell each other
        runs = _agree(options, comm, local)
        if runs is None:
            return 2
        with Progress("training", options.quiet or comm.rank != 0, every_s=options.report_every) as line:
            device = choose(options.device, comm.rank, local)
            results = _train(runs, options, comm, _progress(sender, len(runs), line), device, transports.append)
        if comm.rank == 0:
            _write(options, runs, results, transports)
    except BaseException as error:
        _abort(error, sender, comm, isinstance(error, MPI.Exception))
    sender.send("ended")
    return 0


def _agree(options: argparse.Namespace, comm: Any, local: int) -> Runs | None:
    """The runs, on all ranks; None if the input is bad for any of them, which is said once."""
    from mpi4py import MPI

    runs, problem = None, None
    try:
        check_world(comm.size, MPI.Get_library_version())
        if options.ranks not in (None, comm.size):
            raise InputError(f"-n {options.ranks}: mpiexec started {comm.size} ranks")
        if options.hosts is not None and options.launched is None:
            raise InputError(f"--hosts {options.hosts}: mpiexec has started the ranks already; tell it where")
        runs = _plan(options, comm.size, writes=comm.rank == 0)
        choose(options.device, comm.rank, local)
    except (InputError, MissingDependencyError) as error:
        problem = str(error)
    problems = [text for text in comm.allgather(problem) if text is not None]
    if problems:
        if comm.rank == 0 and options.launched is not None:
            raise InputError(problems[0])  # the launcher says it
        if comm.rank == 0:
            print(f"wagma: error: {problems[0]}", file=sys.stderr, flush=True)
        comm.barrier()  # an exit status other than 0 ends the job, rank 0 included
        return None
    return runs


def _train(
    runs: Runs,
    options: argparse.Namespace,
    comm: Any,
    progress: Callable[[int, int, str], None],
    device: Choice,
    told: Callable[[str], object],
) -> list[tuple[Result, Summary]]:
    """The results, on rank 0."""
    # What is imported stays: to look through it for garbage again and again takes a sixth of a rank's start, and more at each later look.
    gc.disable()
    try:
        from wagma.real.checkpoints.run import Saving
        from wagma.real.train import train

        gc.freeze()
    finally:
        gc.enable()
    saving = Saving(options.checkpoint, options.checkpoint_every or CHECKPOINT_EVERY, options.resume)

    results = []
    several = len(runs) > 1
    over = None if options.limit is None else time.monotonic() + options.limit
    # Digests are read for `wagma validate` alone.
    digests = options.trace is not None and not options.no_digests
    for number, (scenario, algorithm) in enumerate(runs):

        def report(done: int, total: int, text: str, before: int = number) -> None:
            progress(before * total + done, total, text)
            if over is not None and time.monotonic() > over:
                raise WagmaError(
                    f"--limit {options.limit:g}: {before} of {len(runs)} runs, and {done} of {total} iterations of the next"
                )

        scalars = options.tensorboard and Path(options.tensorboard, algorithm if several else "")
        seen: dict[str, Any] = {"tensorboard": scalars, "digests": digests, "every": options.every}

        trace = train(
            scenario, algorithm, comm, report, transport=options.transport, resident=options.resident, saving=saving,
            device=device, told=told, **seen,
        )  # fmt: skip
        if trace is not None:
            if options.trace is not None:
                trace.write(trace_path(options.trace, algorithm, scenario.ranks, several))
            if options.times is not None:
                write_times(trace, trace_path(options.times, algorithm, scenario.ranks, several))
            result = summarize(trace)
            results.append((result, summary_of(trace, result.staleness_bound)))
    return results


def _progress(sender: Sender, runs: int, line: Progress) -> Callable[[int, int, str], None]:
    """A callback of (iterations done in all runs, iterations of one run): to the launcher, else to this rank's own line."""
    next_report = 0.0

    def report(done: int, total: int, text: str) -> None:
        nonlocal next_report
        now = time.monotonic()
        if now >= next_report:
            next_report = now + REDRAW_S
            if not sender.send("progress", done=done, total=runs * total, text=text):
                line(done, runs * total, text)

    return report


def _write(options: argparse.Namespace, runs: Runs, found: list[tuple[Result, Summary]], transports: list[str]) -> None:
    """transports: how models have travelled in each run."""
    scenario, results = runs[0][0], [result for result, _ in found]
    if prints_table(options):
        on = "" if options.device == "cpu" else f", on {options.device}"
        through = "".join(f", through {one}" for one in dict.fromkeys(transports) if one)
        if scenario.ranks == 1 and not through:
            through = ", alone: nothing travels"
        print(overview(scenario, f"trained on {scenario.ranks} real ranks{on}{through}"))
        print(results_table(results, verbose=options.verbose))
        for _, summary in found:
            if options.verbose:
                print(f"{summary.algorithm}:\n{summary.table()}")
            for text in summary.stragglers():
                print(f"{summary.algorithm}: {text}")
    write_json(options.json, scenario.name, results)
    sys.stdout.flush()


def _abort(error: BaseException, sender: Sender, comm: Any, from_mpi: bool) -> NoReturn:
    """Say what happened here, then end the whole job: the other ranks may be waiting for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own = isinstance(error, WagmaError)
    message = " ".join(str(error).split()) if own else f"{type(error).__name__}: {error}"
    stack = "" if own or isinstance(error, KeyboardInterrupt) else "".join(traceback.format_exception(error))
    status = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, InputError | MissingDependencyError) else 1
    sender.send_text(stack)
    # Who complains of a peer, or of the MPI library, tells what followed from the failure rather than what it was.
    secondary = from_mpi or isinstance(error, PeerFailed | CollectiveTimeout)
    if not sender.send("failed", message=message[:1000], status=status, secondary=secondary):
        print(f"wagma: rank {comm.rank}: {message}\n{stack}", end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(SECONDARY_S if secondary else HEARD_S)
    comm.Abort(status)
    os._exit(status)  # MPI may return before it ends the process: nothing more must be said


def _device(text: str) -> str:
    try:
        return device_option(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _folder(text: str) -> Path:
    if not text:  # which Path takes for the current folder
        raise argparse.ArgumentTypeError("'': must be the name of a folder")
    return Path(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= LONGEST_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text!r}: must be seconds, above 0 and at most {LONGEST_TIMEOUT_S:g}")
    return value


def _one_number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 1")
    return int(text)
