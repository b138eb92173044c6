"""Measure how fast the simulator and the collective are.

engines: messages per second of both engines, beside a plain heapq loop as a yardstick. cost: seconds and memory of the fast engine
against the number of ranks, with a picture if asked for. collective: the group average on real ranks, beside MPI_Allreduce, gloo and
what the memory allows. partial: latency of eager-SGD's collectives where ranks come one by one. idle: what progress threads cost that
have nothing to do. training: a torch loop, distributed, beside the bare one and DistributedDataParallel.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence

from wagma.api import select_algorithms
from wagma.commands import bench_ranks, bench_training
from wagma.commands.options import add_output_options, check_writable, parse_ranks, prints_table, write_text
from wagma.errors import InputError
from wagma.progress import Progress
from wagma.report.cost import plot_cost
from wagma.report.style import check_picture
from wagma.studies.benchmark import Cost, Rates, as_json, fast_algorithms, measure_cost, measure_engines
from wagma.text import seconds, table

#: (what it is called, algorithms or None for all fast ones, ranks, iterations, most seconds, most GiB); None: it has to complete.
LIMITS = (
    ("all fast algorithms", None, 1024, 1000, 20, 1),
    ("wagma_sgd", ["wagma_sgd"], 65_536, 100, 30, 4),
    ("wagma_sgd", ["wagma_sgd"], 1_048_576, 100, None, None),
)
CURVE = [64 << 2 * k for k in range(8)]
CURVE_ITERATIONS = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    engines = kinds.add_parser("engines", help="messages per second of both engines, beside a plain heapq loop")
    engines.add_argument("-n", "--ranks", type=int, default=1024, metavar="N", help="default: 1024")
    engines.add_argument("--iterations", type=int, default=1000, metavar="N", help="of the fast engine (default: 1000)")
    engines.add_argument(
        "--simpy-iterations",
        type=int,
        default=20,
        metavar="N",
        help="of the SimPy engine, which counts the messages (default: 20)",
    )
    engines.add_argument("--repetitions", type=int, default=3, metavar="N", help="of each measurement (default: 3)")
    cost = kinds.add_parser("cost", help="seconds and memory of the fast engine against ranks")
    cost.add_argument(
        "-n", "--ranks", type=parse_ranks, default=CURVE, metavar="N,M", help=f"default: {','.join(map(str, CURVE))}"
    )
    cost.add_argument(
        "--iterations", type=int, default=CURVE_ITERATIONS, metavar="N", help=f"of each rank (default: {CURVE_ITERATIONS})"
    )
    cost.add_argument("--plot", metavar="FILE", help="draw the curve")
    cost.add_argument("--no-limits", dest="limits", action="store_false", help="leave out the three sizes with a limit")
    for each in (engines, cost):
        each.add_argument("--algorithms", metavar="A,B|all", default="all", help="which to run (default: all fast ones)")
        add_output_options(each)
    bench_ranks.configure(kinds)
    bench_training.configure(kinds)


def run(options: argparse.Namespace) -> int:
    """Measure, then print."""
    if options.kind in bench_ranks.KINDS:
        return bench_ranks.run(options)
    if options.kind == "training":
        return bench_training.run(options)
    check_writable(json=options.json)
    if getattr(options, "plot", None) is not None:
        check_picture(options.plot)
    for name in ("iterations", "simpy_iterations", "repetitions"):
        if (value := getattr(options, name, 1)) < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    algorithms = fast_algorithms(select_algorithms(options.algorithms))
    if not algorithms:
        raise InputError(f"--algorithms {options.algorithms}: none of them runs on the fast engine")
    return _engines(options, algorithms) if options.kind == "engines" else _cost(options, algorithms)


def _engines(options: argparse.Namespace, algorithms: Sequence[str]) -> int:
    if options.ranks < 2:
        raise InputError(f"--ranks {options.ranks}: must be at least 2, or there are no messages")
    algorithms = [name for name in algorithms if name != "ideal"]  # it sends none
    if not algorithms:
        raise InputError(f"--algorithms {options.algorithms}: none of them sends messages")
    with Progress(f"measuring both engines on {options.ranks} ranks", options.quiet) as progress:
        measured = measure_engines(
            algorithms, options.ranks, options.simpy_iterations, options.iterations, options.repetitions, progress
        )
        results = list(measured)
    if prints_table(options):
        print(describe_engines(results))
    write_text(options.json, json.dumps({"benchmark": "engines", "results": as_json(results)}))
    return 0


def describe_engines(results: Sequence[Rates]) -> str:
    """A table, with the absolute rate of the yardstick below."""
    rows = []
    for rates in results:
        row = [rates.algorithm, f"{rates.messages_per_iteration:,.0f}"]
        for engine, digits in (("simpy", 3), ("fast", 1)):
            median, low, high = rates.relative(engine)
            row += [
                _millions(statistics.median(getattr(rates, engine))),
                f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})",
            ]
        rows.append(row)
    header = ["algorithm", "messages/iteration", "simpy M/s", "simpy / yardstick", "fast M/s", "fast / yardstick"]
    every = [rate for rates in results for rate in rates.yardstick]
    spread = f"{_millions(min(every))} to {_millions(max(every))}"
    below = (
        f"yardstick: {_millions(statistics.median(every))} million messages a second ({spread}); ratios: median (least to most)"
    )
    return f"{table(header, rows)}\n{below}"


def _cost(options: argparse.Namespace, algorithms: Sequence[str]) -> int:
    limits = LIMITS if options.limits else ()
    limited, curve = [], []
    with Progress("measuring the fast engine", options.quiet) as progress:
        total = len(limits) + len(options.ranks) * len(algorithms)
        for _, chosen, ranks, iterations, _, _ in limits:
            limited.append(measure_cost(chosen or list(algorithms), ranks, iterations))
            progress(len(limited), total)
        for ranks in options.ranks:
            for algorithm in algorithms:
                curve.append(measure_cost([algorithm], ranks, options.iterations))
                progress(len(limited) + len(curve), total)
    if options.plot is not None:
        plot_cost([(c.algorithms[0], c.ranks, c.seconds / c.iterations, c.peak_bytes) for c in curve], options.plot)
    if prints_table(options):
        print(describe_cost(limited, curve))
    write_text(options.json, json.dumps({"benchmark": "cost", "limits": as_json(limited), "curve": as_json(curve)}))
    return 0


def describe_cost(limited: Sequence[Cost], curve: Sequence[Cost]) -> str:
    """Two tables: the sizes with a limit, and the curve, ranks against algorithms."""
    text = []
    if limited:
        rows = [
            [
                name, f"{cost.ranks:,}", f"{cost.iterations:,}", seconds(cost.seconds), _limit(most, "s"),
                _gib(cost.peak_bytes), _limit(gib, "GiB"),
            ]
            for (name, _, _, _, most, gib), cost in zip(LIMITS, limited, strict=True)
        ]  # fmt: skip
        text.append(table(["run", "ranks", "iterations", "took", "limit", "memory", "at most"], rows))
    found = {(cost.ranks, cost.algorithms[0]): cost for cost in curve}
    names = list(dict.fromkeys(cost.algorithms[0] for cost in curve))
    rows = []
    for ranks in dict.fromkeys(cost.ranks for cost in curve):
        costs = [found[ranks, name] for name in names]
        most = max(cost.peak_bytes for cost in costs)
        rows.append([f"{ranks:,}", *(seconds(cost.seconds / cost.iterations) for cost in costs), _gib(most)])
    text.append(table(["ranks", *names, "memory of the largest"], rows))
    return "\n\n".join([*text, "seconds are those of an iteration of all ranks, on one core; memory includes the interpreter"])


def _millions(rate: float) -> str:
    return f"{rate / 1e6:.3g}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _limit(value: int | None, unit: str) -> str:
    return "" if value is None else f"{value} {unit}"
