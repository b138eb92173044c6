"""Show WAGMA-SGD beat synchronous training under imbalance, simulated and on real ranks.

1. Simulates ResNet-50 on ImageNet at 16 and 64 ranks, beside the paper's figures.
2. Trains on handwritten digits with 4 real ranks and injected delays.
3. Predicts that training by simulation, from a single rank's compute times and a ping-pong alone.
4. Checks the promises on all traces and draws a timeline.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wagma import workloads
from wagma.api import run as simulate
from wagma.commands import options as shared
from wagma.commands.simulate import describe
from wagma.errors import InputError, MissingDependencyError, WagmaError
from wagma.progress import Progress
from wagma.real.launching.launch import output_of, require, run_ranks, under_mpiexec
from wagma.report.paper import published
from wagma.report.tables import results_table
from wagma.report.timeline import draw
from wagma.results import Result, summarize, to_json
from wagma.scenario import Scenario, as_table, load
from wagma.text import number, ratio, table
from wagma.trace import Trace, load_trace
from wagma.validate import PROMISES, report, validate

SIMULATED, SIMULATED_RANKS = "resnet50_imagenet", (16, 64)
TRAINED = "digits"
SYNCHRONOUS, WAITLESS = "allreduce_sgd", "wagma_sgd"
COMPARED = (SYNCHRONOUS, WAITLESS)
SINGLE_RANK_ITERATIONS = 100
PING_PONG_LIMIT_S = 60.0
DRAWN = 21  # iterations in the timeline: two syncs

FOLDER = "wagma-demo"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--output", metavar="DIR", default=FOLDER, help=f"where traces and pictures go (default: {FOLDER})")
    parser.add_argument("--iterations", type=int, metavar="N", help="of every run, for a quick look (default: the scenarios')")
    shared.add_output_options(parser)


def run(options: argparse.Namespace) -> int:
    """All four steps; status 1 if a promise is violated."""
    shared.check_writable(json=options.json)
    demo = Demo(options)
    simulated = demo.simulate()
    trained = demo.train()
    predicted = demo.predict(trained)
    violated = demo.check(simulated, trained, predicted)
    demo.say(verdict(demo.paper_ratio(), simulated, trained, predicted, violated))
    shared.write_text(options.json, json.dumps(demo.as_json(simulated, trained, predicted, violated), allow_nan=False))
    return 1 if violated else 0


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one scenario, with their figures."""

    scenario: str
    traces: list[Trace]
    results: list[Result]

    def result(self, algorithm: str, ranks: int | None = None) -> Result:
        """The result of an algorithm."""
        return next(r for r in self.results if r.algorithm == algorithm and ranks in (None, r.ranks))

    def speed_up(self, ranks: int | None = None) -> float:
        """Throughput of WAGMA-SGD over that of synchronous SGD."""
        return self.result(WAITLESS, ranks).throughput / self.result(SYNCHRONOUS, ranks).throughput


class Demo:
    """The steps, with the folder that their files go to."""

    def __init__(self, options: argparse.Namespace) -> None:
        if under_mpiexec():
            raise InputError("demo: starts its ranks itself; run it without mpiexec")
        require()
        if find_spec("matplotlib") is None:
            raise MissingDependencyError("demo: the timeline needs matplotlib: pip install matplotlib")
        self._changes = {} if options.iterations is None else {"iterations": options.iterations}
        self._quiet = options.quiet
        self._talks = shared.prints_table(options)
        self._paper = published(load(SIMULATED))
        # Read both before the first step takes its time.
        self._simulated, self._trained = load(SIMULATED, self._changes), load(TRAINED, self._changes)
        workloads.require(self._trained.training.workload)
        self.folder = _make_folder(options.output)
        self.timeline = self.folder / "timeline.png"
        self._alone: list[Trace] = []  # the single rank's, which the prediction is made of

    def say(self, text: str) -> None:
        """Print, unless only JSON may be printed."""
        if self._talks:
            print(text, flush=True)

    def simulate(self) -> Runs:
        """Step 1."""
        self.say("1. ResNet-50 on ImageNet in a simulated cluster, ranks delayed at random\n")
        scenarios = [self._simulated.replace({"ranks": ranks}) for ranks in SIMULATED_RANKS]
        algorithms = sorted({algorithm for _, algorithm in self._paper.points} & {*COMPARED, "local_sgd", "ideal"})
        runs = self._simulate(scenarios, algorithms, "simulated")
        self.say(describe(scenarios, runs.results) + "\n")
        return runs

    def train(self) -> Runs:
        """Step 2."""
        scenario = self._trained
        self.say(f"2. Handwritten digits on {scenario.ranks} real ranks of this machine, delayed at random\n")
        traces = self._launch(scenario, COMPARED, "real")
        runs = Runs(scenario.name, traces, [summarize(trace) for trace in traces])
        synchronous = runs.result(SYNCHRONOUS)
        self.say(shared.overview(scenario, f"trained on {scenario.ranks} real ranks"))
        self.say(results_table(runs.results))
        ideal = ratio(synchronous.ideal_throughput, synchronous.throughput)
        self.say(f"An algorithm without communication, waiting and delays would be {ideal} times as fast as {SYNCHRONOUS}.\n")
        return runs

    def predict(self, measured: Runs) -> Runs:
        """Step 3: nothing of the predicted runs goes into the prediction."""
        self.say("3. The same by simulation, from compute times of a single rank and a ping-pong between two\n")
        single = self._trained.replace({"ranks": 1, "iterations": min(SINGLE_RANK_ITERATIONS, self._trained.iterations)})
        network = json.loads(output_of(2, "wagma.real.measure", PING_PONG_LIMIT_S))
        self._alone = self._launch(single, ["ideal"], "single")
        seconds = [record.computed_ns * 1e-9 for record in self._alone[0].iterations]
        scenario = prediction(self._trained, seconds, network)
        runs = self._simulate([scenario], COMPARED, "predicted")
        latency = (network["latency_ns"] + 2 * network["overhead_ns"]) / 1e3
        rate = 1 / max(network["gap_per_byte_ns"], 1e-9)
        mean_ms = 1e3 * sum(seconds) / len(seconds)
        self.say(f"a rank computes for {mean_ms:.1f} ms on average; messages take {latency:.3g} us, then {rate:.3g} GB/s")
        self.say(compare(measured.results, runs.results) + "\n")
        return runs

    def check(self, *all_runs: Runs) -> int:
        """Step 4; returns the number of violations."""
        self.say("4. Promises and timeline\n")
        traces = [trace for runs in all_runs for trace in runs.traces] + self._alone
        violations = validate(*traces)
        text = report(traces, violations)
        (self.folder / "promises.txt").write_text(text + "\n", encoding="utf-8")
        if violations:
            self.say(text)
        else:
            self.say(f"All {len(PROMISES)} promises hold in all {len(traces)} traces, as far as a trace can show them.")
        _, trained, predicted = all_runs
        first = min(DRAWN // 2, max(0, trained.results[0].iterations - DRAWN))
        drawn = [runs.traces[COMPARED.index(name)] for name in COMPARED for runs in (trained, predicted)]
        draw(drawn, self.timeline, first, min(DRAWN, trained.results[0].iterations))
        self.say(f"Timeline: {self.timeline}\nPromises: {self.folder / 'promises.txt'}\nTraces:   {self.folder / '*.jsonl'}\n")
        return len(violations)

    def paper_ratio(self) -> float:
        """The speed-up that the paper published for the largest simulated scale."""
        points, ranks = self._paper.points, SIMULATED_RANKS[-1]
        return points[ranks, WAITLESS].throughput / points[ranks, SYNCHRONOUS].throughput

    def as_json(self, simulated: Runs, trained: Runs, predicted: Runs, violations: int) -> dict[str, Any]:
        """What --json writes: the document of simulate and train for each step, and what the steps found together."""
        steps = {"simulated": simulated, "trained": trained, "predicted": predicted}
        documents = {name: json.loads(to_json(runs.scenario, runs.results)) for name, runs in steps.items()}
        speed_up = {"simulated": simulated.speed_up(SIMULATED_RANKS[-1])}
        speed_up |= {"trained": trained.speed_up(), "predicted": predicted.speed_up(), "paper": self.paper_ratio()}
        return {
            "schema": 1, **documents, "speed_up": speed_up, "violations": violations, "folder": str(self.folder),
            "timeline": str(self.timeline),
        }  # fmt: skip

    def _simulate(self, scenarios: Sequence[Scenario], algorithms: Sequence[str], prefix: str) -> Runs:
        traces = []
        for scenario in scenarios:
            for algorithm in algorithms:
                with Progress(f"simulating {algorithm} on {scenario.ranks} ranks", self._quiet) as progress:
                    trace = simulate(scenario, algorithm, digests=True, progress=progress)
                trace.write(self.folder / f"{prefix}.{algorithm}.{scenario.ranks}.jsonl")
                traces.append(trace)
        return Runs(scenarios[0].name, traces, [summarize(trace) for trace in traces])

    def _launch(self, scenario: Scenario, algorithms: Sequence[str], prefix: str) -> list[Trace]:
        """Train on real ranks, in one job for all algorithms, and read its traces."""
        path, ranks = self.folder / f"{prefix}.jsonl", scenario.ranks
        arguments = ["wagma", "train", TRAINED, "-q", "--algorithms", ",".join(algorithms), "--trace", str(path)]
        arguments += ["-n", str(ranks), "--iterations", str(scenario.iterations)]
        with Progress(f"training on {ranks} rank{'s' if ranks > 1 else ''}", self._quiet) as progress:
            status = run_ranks(ranks, arguments, progress)
        if status != 0:
            raise WagmaError(f"demo: training on {ranks} ranks ended with status {status}")
        several = len(algorithms) > 1
        return [load_trace(shared.trace_path(str(path), algorithm, ranks, several)) for algorithm in algorithms]


def prediction(scenario: Scenario, compute_s: Sequence[float], network: Mapping[str, float]) -> Scenario:
    """`scenario` with compute times and network as they were measured, and its timing alone."""
    changes: dict[str, Any] = {f"network.{key}": value for key, value in network.items()}
    changes["compute"] = {"kind": "samples", "seconds": list(compute_s)}
    changes["training"] = {**as_table(scenario).get("training", {}), "workload": "none"}
    return scenario.replace(changes)


def compare(measured: Sequence[Result], predicted: Sequence[Result]) -> str:
    """Predicted beside measured throughput."""
    header = ["algorithm", "ranks", f"predicted {measured[0].unit}/s", f"measured {measured[0].unit}/s", "predicted / measured"]
    rows = [
        [m.algorithm, str(m.ranks), number(p.throughput), number(m.throughput), ratio(p.throughput, m.throughput)]
        for m, p in zip(measured, predicted, strict=True)
    ]
    return table(header, rows)


def verdict(paper: float, simulated: Runs, trained: Runs, predicted: Runs, violations: int) -> str:
    """What came out, in measured numbers."""
    ranks = SIMULATED_RANKS[-1]
    accuracy = " and ".join(f"{100 * (trained.result(name).accuracy or 0):.1f} %" for name in COMPARED)
    broken = "No promise is violated." if not violations else f"PROMISES ARE VIOLATED ({violations} times): see promises.txt."
    return (
        f"Under imbalance, WAGMA-SGD was {simulated.speed_up(ranks):.2f} times as fast as synchronous SGD on {ranks} simulated "
        f"ranks (the paper: {paper:.2f}),\nand {trained.speed_up():.2f} times on {trained.results[0].ranks} real ranks "
        f"(predicted: {predicted.speed_up():.2f}) with accuracies of {accuracy} (synchronous, WAGMA). {broken}"
    )


def _make_folder(name: str) -> Path:
    """The folder for the files; those of an earlier demo are overwritten. Raises InputError if it cannot be made."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {name}: cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--output {name}: no permission to write there")
    return folder
