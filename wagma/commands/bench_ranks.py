"""The benchmarks of `wagma bench` that start ranks: collective, partial, idle."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wagma.commands import bench_device
from wagma.commands.bench_device import with_spread
from wagma.commands.options import add_output_options, check_writable, parse_ranks, prints_table, write_text
from wagma.errors import InputError, MissingDependencyError
from wagma.progress import Progress
from wagma.real.devices.choice import device_option
from wagma.real.launching.launch import require, under_mpiexec
from wagma.real.node import TRANSPORTS
from wagma.report.collective import plot_collective
from wagma.report.style import check_picture
from wagma.studies import collective, collective_device, idle, partial
from wagma.text import seconds, table

COUNTS = [1000, 1_000_000, 25_559_081]
SIZES = [64, 1 << 10, 1 << 14, 1 << 18, 1 << 22]
NAPS = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3]
HOST_TRANSPORTS = ("auto", "shm", "mpi")  # a progress thread has as little to do for models on a device
KINDS = ("collective", "partial", "idle")


def configure(kinds: Any) -> None:
    """Add the subcommands."""
    one = kinds.add_parser("collective", help="the collective beside MPI_Allreduce, gloo and the memory's rate")
    one.add_argument("-n", "--ranks", type=int, default=4, metavar="N", help="ranks to start (default: 4)")
    one.add_argument("--group-size", type=int, metavar="N", help="ranks in a group (default: all, but at most 4)")
    one.add_argument("--count", type=parse_ranks, default=COUNTS, metavar="N,M", help=f"elements (default: {listed(COUNTS)})")
    one.add_argument("--dtype", choices=list(collective.ITEM_BYTES), default="float32", help="of an element (default: float32)")
    one.add_argument(
        "--mode", type=choices(collective.MODES), metavar="tensor,resident",
        help="from the caller's array to the caller's array, or in the library's buffers (default: both; with --device: tensor)",
    )  # fmt: skip
    one.add_argument(
        "--device", type=device, metavar="DEVICE",
        help="where models are: cpu; cuda, the machine's GPUs in turns; cuda:N; emulated (default: cpu)",
    )  # fmt: skip
    one.add_argument(
        "--against", type=choices(collective.AGAINST), default=["mpi"], metavar="mpi,gloo", help="other kernels (default: mpi)"
    )
    one.add_argument(
        "--late", type=float, default=0.0, metavar="SECONDS", help="let the last rank sleep so long in every iteration, too"
    )
    one.add_argument(
        "--iterations", type=int, metavar="N", help="most iterations of a block (default: fewer for larger models)"
    )
    one.add_argument("--transport", choices=TRANSPORTS, default="auto", help="of the collective (default: auto)")
    one.add_argument("--syncs", action="store_true", help="make every call a sync, which waits for all ranks (default: none)")
    one.add_argument("--plot", metavar="FILE", help="draw time against size")
    two = kinds.add_parser("partial", help="latency of solo and majority where ranks come one by one")
    two.add_argument("-n", "--ranks", type=int, default=32, metavar="N", help="ranks to start (default: 32)")
    two.add_argument("--bytes", type=parse_ranks, default=SIZES, metavar="N,M", help=f"sizes (default: {listed(SIZES)})")
    two.add_argument("--iterations", type=int, default=32, metavar="N", help="of each kernel and size (default: 32)")
    two.add_argument("--step", type=float, default=1e-3, metavar="SECONDS", help="from a rank to the next one (default: 0.001)")
    for each in (one, two):
        each.add_argument("--repetitions", type=int, default=3, metavar="N", help="of everything (default: 3)")
        each.add_argument(
            "--mpi-python", type=Path, action="append", metavar="FILE",
            help="a Python whose mpi4py has another MPI library to compare with; several times"
            " (default: environments beside this one called like it, with a suffix)",
        )  # fmt: skip
    three = kinds.add_parser("idle", help="what idle progress threads cost, and how soon they start")
    three.add_argument("-n", "--ranks", type=int, metavar="N", help="ranks to start (default: two for each core)")
    three.add_argument(
        "--transport", type=choices(HOST_TRANSPORTS), default=["shm", "mpi"], metavar="shm,mpi", help="default: both"
    )
    three.add_argument("--naps", type=_numbers, metavar="SECONDS,...", help=f"longest naps, of mpi (default: {listed(NAPS)})")
    three.add_argument("--seconds", type=float, default=2.0, metavar="SECONDS", help="to compute, and to wait (default: 2)")
    three.add_argument("--activations", type=int, default=200, metavar="N", help="default: 200")
    for each in (one, two, three):
        add_output_options(each)


def listed(values: Sequence[float]) -> str:
    """Numbers with commas between."""
    return ",".join(f"{value:.9g}" for value in values)


def choices(allowed: Sequence[str]) -> Any:
    """A parser of some of `allowed`, with commas between."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r}: must be of {', '.join(allowed)}, with commas between")
        return list(dict.fromkeys(chosen))

    return parse


def device(text: str) -> str | None:
    """A parser of the devices that models may be on; None: the host's memory."""
    try:
        return None if device_option(text) == "cpu" else text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _numbers(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 < value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: must be seconds above 0 and up to 1, with commas between")
    return values


def run(options: argparse.Namespace) -> int:
    """Measure, then print."""
    check(options)
    return {"collective": _collective, "partial": _partial, "idle": _idle}[options.kind](options)


def check(options: argparse.Namespace) -> None:
    """Raise InputError for options that no benchmark on ranks can have."""
    check_writable(json=options.json)
    for name in ("iterations", "repetitions", "activations"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    for name in ("step", "seconds"):
        if not 0 < (value := getattr(options, name, 1.0)) <= 60:
            raise InputError(f"--{name} {value:g}: must be above 0 and at most 60 seconds")
    if under_mpiexec():
        raise InputError("wagma bench starts its ranks itself: run it without mpiexec")


def _collective(options: argparse.Namespace) -> int:
    group_size = min(4, options.ranks) if options.group_size is None else options.group_size
    modes = options.mode or (["tensor"] if options.device else list(collective.MODES))
    settings = collective.Settings(
        options.ranks, group_size, options.count, options.dtype, modes, options.against, options.late,
        options.iterations, options.repetitions, options.transport, options.syncs, options.device,
    )  # fmt: skip
    settings.check()
    if options.plot is not None:
        check_picture(options.plot)
    require(training=False, transport="mpi" if options.transport == "cuda-mpi" else options.transport)
    if options.device:
        collective_device.check(settings, options.mpi_python)
    elif "gloo" in options.against and find_spec("torch") is None:
        raise MissingDependencyError("--against gloo needs torch: pip install 'wagma[torch]'")
    beside_mpi = "mpi" in settings.specification()["against"]
    if "mpi" in options.against and not beside_mpi and not options.quiet:
        print(f"wagma: --dtype {options.dtype}: MPI cannot add it, so nothing is measured against mpi", file=sys.stderr)
    others = collective.libraries(options.mpi_python) if beside_mpi and not options.device else []
    with Progress(f"measuring the collective on {options.ranks} ranks", options.quiet) as progress:
        on_device = options.device is not None
        found = collective_device.measure(settings, progress) if on_device else collective.measure(settings, others, progress)
    if options.plot is not None:
        plot_collective(found["results"], options.plot)
    if prints_table(options):
        print(bench_device.describe(found) if on_device else describe_collective(found, options.verbose))
    write_text(options.json, json.dumps(found))
    return 0


def describe_collective(found: Mapping[str, Any], verbose: bool = False) -> str:
    """A table, and below it the memory's rate; verbose: and all that MPI_Allreduce was measured with."""
    rows = []
    for row in found["results"]:
        late = [row.get(f"late_over_{control}") for control in ("balanced", "rested")]
        copies = row.get("memory_copies_per_rank")
        rows.append([
            row["kernel"], row["mode"], f"{row['count']:,}", f"{row['late_s']:g} s" if row["late_s"] else "", seconds(row["median_s"]),
            f"{seconds(row['quartiles_s'][0])} to {seconds(row['quartiles_s'][1])}", with_spread(row, "ratio_to_mpi"),
            with_spread(row, "bytes_over_bandwidth"), f"{row['busbw_bytes_per_s'] / 1e9:.2f}",
            *("" if one is None else f"{one:.2f}" for one in late), "" if copies is None else f"{copies:.2f}",
            f"{100 * row['fresh_share']:.0f} %" if "fresh_share" in row else "", row.get("transport", ""),
            f"{row['library']}{', yielding' if row['yielding'] else ''}" if "library" in row else "",
        ])  # fmt: skip
    header = [
        "kernel", "mode", "elements", "late", "median", "middle half", "over MPI", "over floor", "bus GB/s", "over balanced", "over rested",
        "copies", "fresh", "transport", "library",
    ]  # fmt: skip
    low, high = (value / 1e9 for value in found["bandwidth_spread"])
    below = (
        f"memory: {found['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s ({low:.1f} to {high:.1f}), read and written by copies on all cores;"
        f" ratios: median of {found['repetitions']} repetitions (least to most)"
    )
    text = f"{table(header, rows)}\n{below}"
    return f"{text}\n\n{_variants(found)}" if verbose else text


def _variants(found: Mapping[str, Any]) -> str:
    """Every MPI library as it was tried; the best of them is what ratios are to."""
    rows = [
        [
            one["library"], "yes" if one["yielding"] else "no", "alone" if one["alone"] else "in turns with wagma", one["mode"],
            f"{one['count']:,}", f"{one['late_s']:g} s" if one["late_s"] else "", seconds(one["median_s"]),
        ]
        for one in found["mpi_variants"]
    ]  # fmt: skip
    return table(["MPI library", "yielding", "job", "mode", "elements", "late", "median"], rows)


def _partial(options: argparse.Namespace) -> int:
    for size in options.bytes:
        if size % 4:
            raise InputError(f"--bytes {size}: must be a multiple of 4, in which float32s come")
    require(training=False)
    others = collective.libraries(options.mpi_python)
    with Progress(f"measuring partial collectives on {options.ranks} ranks", options.quiet) as progress:
        found = partial.measure(
            options.ranks, options.bytes, options.iterations, options.step, options.repetitions, others, progress
        )
    if prints_table(options):
        print(describe_partial(found))
    write_text(options.json, json.dumps(found))
    return 0


def describe_partial(found: Mapping[str, Any]) -> str:
    """Measured beside predicted, and majority by who the initiator was."""
    rows, strata = [], []
    for row in found["results"]:
        low, high = row["mpi_over_this_spread"]
        ratio = row["predicted_mpi_over_this"]
        rows.append([
            row["kernel"], f"{row['bytes']:,}", seconds(row["mean_s"]), seconds(row["predicted_mean_s"]),
            f"{row['mpi_over_this']:.2f} ({low:.2f} to {high:.2f})", "" if ratio is None else f"{ratio:.2f}",
            f"{row['nap']:.1f}", f"{row['predicted_nap']:.1f}",
        ])  # fmt: skip
        for one in row.get("strata", []):
            between = "{} to {}".format(*one["initiators"])
            strata.append([
                f"{row['bytes']:,}", between, str(one["iterations"]), seconds(one["mean_s"]), seconds(one["predicted_mean_s"])
            ])  # fmt: skip
    header = ["kernel", "bytes", "mean latency", "predicted", "MPI over this", "predicted", "fresh ranks", "predicted"]
    by_initiator = table(["bytes", "initiators", "iterations", "mean latency", "predicted"], strata)
    return f"{table(header, rows)}\n\nmajority, by the rank that was drawn:\n{by_initiator}"


def _idle(options: argparse.Namespace) -> int:
    ranks = 2 * len(os.sched_getaffinity(0)) if options.ranks is None else options.ranks
    require(training=False, transport="mpi" if "mpi" in options.transport else "auto")
    naps = options.naps or (NAPS if idle.naps_known() else None)
    with Progress(f"measuring idle progress threads on {ranks} ranks", options.quiet) as progress:
        found = idle.measure(ranks, options.transport, naps, options.seconds, options.activations, progress)
    if prints_table(options):
        print(describe_idle(found))
    write_text(options.json, json.dumps(found))
    return 0


def describe_idle(found: Mapping[str, Any]) -> str:
    """One line for each transport and nap."""
    rows = [
        [
            row["transport"], "" if row[idle.NAP_OPTION] is None else seconds(row[idle.NAP_OPTION]),
            _share(row["computing_share"], row["computing_share_largest"]), _share(row["waiting_share"], row["waiting_share_largest"]),
            f"{100 * row['caller_waiting_share']:.2f} %", str(row["activations"]),
            "" if row["latency_median_s"] is None else seconds(row["latency_median_s"]),
            "" if row["latency_p99_s"] is None else seconds(row["latency_p99_s"]),
        ]
        for row in found["results"]
    ]  # fmt: skip
    header = [
        "transport", "longest nap", "while computing", "while waiting", "waiting caller", "activations", "latency, median", "99 %",
    ]  # fmt: skip
    return f"{table(header, rows)}\nshares of one core by a rank's progress thread: mean (largest)"


def _share(mean: float, largest: float) -> str:
    return f"{100 * mean:.2f} % ({100 * largest:.2f} %)"
