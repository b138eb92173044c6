"""Run a scenario on real ranks and in the simulator, and tell how far apart the two are.

Both have the same seeds, settings and injected delays. The simulator knows of this machine what `wagma measure` finds, and from a
rehearsal, in which every rank works alone, what iterations take beside their gradient; nothing of the runs that it is compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wagma import workloads
from wagma.api import plan, select_algorithms
from wagma.commands.options import (
    add_output_options,
    add_scenario_options,
    check_writable,
    forwarded,
    load_scenarios,
    overview,
    prints_table,
    trace_path,
    write_text,
)
from wagma.errors import InputError, WagmaError
from wagma.progress import Progress
from wagma.real.launching.launch import require, run_ranks, under_mpiexec
from wagma.real.node import TRANSPORTS
from wagma.report.style import check_picture
from wagma.report.worlds import Shown, draw_worlds
from wagma.scenario import Scenario, require_changing_groups
from wagma.studies import machine, worlds
from wagma.studies.worlds import Line, Worlds
from wagma.text import number, table
from wagma.trace import Trace, load_trace

REPETITIONS = 2
#: Of a histogram on one line.
MOST_SHOWN = 6


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("-n", "--ranks", type=int, metavar="N", help="ranks to start (default: the scenario's)")
    add_scenario_options(parser, None)
    parser.add_argument(
        "--network", metavar="FILE", help="a TOML file with [network], as wagma measure writes it (default: measured now)"
    )
    parser.add_argument(
        "--transport", choices=TRANSPORTS, default="auto",
        help="of the real ranks' collectives; auto: shared memory (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, metavar="N",
        help=f"runs of each algorithm, each with a seed of its own, from the scenario's on (default: {REPETITIONS})",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="draw the distributions of both worlds")
    add_output_options(parser, columns=False)


def run(options: argparse.Namespace) -> int:
    """Measure, rehearse, run, simulate, then print. The status is 0 however far apart the worlds are."""
    scenario, names = _plan(options)
    with tempfile.TemporaryDirectory(prefix="wagma-") as folder:
        found = _Comparison(options, scenario, names, Path(folder)).run()
    if options.plot is not None:
        shown = [
            Shown(line.algorithm, (line.seconds(0), line.seconds(1)), (line.staleness(0), line.staleness(1)))
            for line in found.lines
        ]
        draw_worlds(shown, options.plot)
    if prints_table(options):
        print(describe(found))
    write_text(options.json, json.dumps(worlds.to_json(found), allow_nan=False))
    return 0


def _plan(options: argparse.Namespace) -> tuple[Scenario, list[str]]:
    """Raises for whatever would fail, before any rank starts."""
    if under_mpiexec():
        raise InputError("wagma compare-worlds starts its ranks itself: run it without mpiexec")
    check_writable(json=options.json)
    if options.plot is not None:
        check_picture(options.plot)
    if options.repetitions < 1:
        raise InputError(f"--repetitions {options.repetitions}: must be at least 1")
    for setting in options.set:
        if setting.partition("=")[0].split(".")[0].strip() == "network":
            raise InputError(f"--set {setting}: the network is measured, or that of --network FILE; change it in such a file")
    scenario = load_scenarios(options, None if options.ranks is None else [options.ranks])[0]
    if scenario.ranks < 2:
        raise InputError(
            f"{scenario.source}: ranks = {scenario.ranks}: must be at least 2, or there is nothing to compare but compute"
        )
    if scenario.training.workload == "none":
        raise InputError(f'{scenario.source}: training.workload = "none": real ranks need something to train')
    names = select_algorithms(options.algorithms or "all")
    for one, name in plan([scenario], names):
        require_changing_groups(one, name)
    if options.network is not None:
        _check(scenario, read_network(options.network), options.network)
    workloads.require(scenario.training.workload)
    require(transport=options.transport)
    return scenario, names


def read_network(name: str) -> dict[str, Any]:
    """The table `[network]` of a file. Raises InputError if there is none."""
    try:
        document = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--network {name}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--network {name}: no TOML: {error}") from error
    network = document.get("network")
    if not isinstance(network, dict):
        raise InputError(f"--network {name}: has no [network]; wagma measure --write FILE makes one")
    return network


def _check(scenario: Scenario, network: Mapping[str, Any], name: str) -> None:
    try:
        scenario.replace({"network": dict(network)})
    except InputError as error:
        raise InputError(f"--network {name}: {error}") from error


class _Comparison:
    """The steps, with the folder that traces go to."""

    def __init__(self, options: argparse.Namespace, scenario: Scenario, names: list[str], folder: Path) -> None:
        self._options = options
        self._scenario = scenario
        self._names = names
        self._folder = folder
        self._regime = worlds.regime(scenario, len(os.sched_getaffinity(0)))

    def run(self) -> Worlds:
        """Everything, repetition by repetition, so that a machine that slows down slows all algorithms."""
        work_s = worlds.gradient_s(self._scenario)
        network = self._measured(work_s) if self._options.network is None else read_network(self._options.network)
        rehearsals: list[Trace] = []
        runs: dict[str, list[worlds.Run]] = {name: [] for name in self._names}
        for repetition in range(self._options.repetitions):
            scenario = self._scenario.replace({"seed": self._scenario.seed + repetition})
            alone = self._rehearse(scenario)
            rehearsals.append(alone[worlds.REHEARSED])
            for name, real in self._train(scenario).items():
                simulated = worlds.simulate(scenario, name, network, alone)
                runs[name].append(worlds.pair(scenario.seed, real, simulated))
        lines = tuple(Line(name, tuple(own)) for name, own in runs.items())
        return Worlds(self._scenario, self._regime, network, work_s, worlds.beside_of(self._scenario, rehearsals), lines)

    def _measured(self, work_s: float) -> dict[str, Any]:
        transport = "mpi" if self._options.transport == "mpi" else "shared"
        settings = machine.Settings(self._scenario.ranks, (transport,), self._scenario.model_bytes, work_s)
        with Progress(f"measuring the machine on {self._scenario.ranks} ranks", self._options.quiet) as progress:
            found = machine.measure(settings, progress)
        return found.network(transport, "sleeping" if self._regime.name == "paced" else "computing")

    def _rehearse(self, scenario: Scenario) -> dict[str, Trace]:
        longest = max(scenario.tuned(name).iterations for name in self._names)
        changes = {**worlds.ALONE, "iterations": longest, "training.iterations": {}}
        settings = [text for key, value in changes.items() for text in ("--set", f"{key}={_toml(value)}")]
        needed = dict.fromkeys([worlds.REHEARSED, *map(worlds.rehearsal_of, self._names)])
        return self._launch(scenario, list(needed), settings, "rehearsing")

    def _train(self, scenario: Scenario) -> dict[str, Trace]:
        return self._launch(scenario, self._names, [], "training")

    def _launch(self, scenario: Scenario, names: list[str], settings: list[str], what: str) -> dict[str, Trace]:
        """One job for all these algorithms; their traces."""
        file, ranks = self._folder / f"{what}.jsonl", scenario.ranks
        given = ["wagma", "train", self._options.scenario, "-n", str(ranks), "--algorithms", ",".join(names)]
        given += [*forwarded(self._options), *settings, "--seed", str(scenario.seed), "--transport", self._options.transport]
        with Progress(f"{what} on {ranks} ranks, seed {scenario.seed}", self._options.quiet) as line:
            status = run_ranks(ranks, [*given, "--trace", str(file), "--no-digests", "-q"], line)
        if status:
            raise WagmaError(f"compare-worlds: the ranks failed, {what} with seed {scenario.seed}")
        return {name: load_trace(trace_path(str(file), name, ranks, len(names) > 1)) for name in names}


def _toml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else str(value)


def describe(found: Worlds) -> str:
    """What regime it is, a line for each algorithm, the histograms side by side, and what came out."""
    rows = []
    for line in found.lines:
        low, high = line.spread
        real, simulated = (sum(run.results[world].throughput for run in line.runs) / len(line.runs) for world in (0, 1))
        rows.append([
            line.algorithm, number(real), number(simulated), f"{line.ratio:.3f}" + ("" if low == high else f" ({low:.3f} to {high:.3f})"),
            *(f"{1e3 * line.seconds(world).mean():.3g}" for world in (0, 1)), f"{100 * line.wasserstein:.1f} %",
            f"{line.kolmogorov_smirnov:.2f}", *("" if (share := line.fresh(w)) is None else f"{100 * share:.0f} %" for w in (0, 1)),
        ])  # fmt: skip
    unit = found.lines[0].runs[0].results[0].unit
    header = [
        "algorithm", f"real {unit}/s", f"simulated {unit}/s", "simulated / real", "real ms", "simulated ms", "W1 / mean", "KS",
        "fresh, real", "simulated",
    ]  # fmt: skip
    text = [overview(found.scenario, f"{found.scenario.ranks} ranks in both worlds"), found.regime.text, table(header, rows)]
    stale = [[line.algorithm, *(_histogram(line.staleness(world)) for world in (0, 1))] for line in found.lines]
    if any(any(row[1:]) for row in stale):
        text += ["", table(["staleness: share", "real", "simulated"], [row for row in stale if any(row[1:])])]
    return "\n".join([*text, "", verdict(found)])


def _histogram(shares: Mapping[int, float]) -> str:
    """0: 62 %, 1: 30 %, ...; the largest in one."""
    values = list(shares)
    parts = [f"{value}: {100 * shares[value]:.0f} %" for value in values[:MOST_SHOWN]]
    if rest := values[MOST_SHOWN:]:
        parts.append(
            f"{rest[0] if len(rest) == 1 else f'{rest[0]} to {rest[-1]}'}: {100 * sum(shares[value] for value in rest):.0f} %"
        )
    return ", ".join(parts)


def verdict(found: Worlds) -> str:
    """How near it is, and whether that was to be expected."""
    worst, low_high = found.worst, found.beside_s
    within = sum(abs(line.ratio - 1) <= worlds.AIM for line in found.lines)
    aim = (
        f"throughput is within {100 * worlds.AIM:.0f} % for {within} of {len(found.lines)} algorithms, furthest off for {worst.algorithm}"
        f" ({100 * (worst.ratio - 1):+.1f} %)"
    )
    what = "beside their pace" if found.scenario.training.paced else "in all"
    low, median, high = (1e3 * value for value in low_high)
    return (
        f"{aim}{'' if found.regime.aimed else '; where ranks share cores nothing is promised'}\n"
        f"a gradient takes {1e3 * found.work_s:.3g} ms of a processor; rehearsed iterations took {median:.3g} ms {what}"
        f" (middle half {low:.3g} to {high:.3g}); {len(found.seeds)} seeds"
    )
