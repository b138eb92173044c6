"""How fast the engines are, and what a simulation costs: `wagma bench`.

The yardstick is what any event-driven simulator written in Python has to do at least, a heap of (time, sequence, rank) tuples with one pop
and one push for each message; it runs between the others, so that a slow machine slows all of them alike. Rates are per second of
processor time, which is the same as time where nothing else runs: all of it is one thread. A message is one that the SimPy engine
delivers in that scenario, activations included.
"""

from __future__ import annotations

import heapq
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wagma.api import choose_engine, figures
from wagma.errors import InputError, WagmaError
from wagma.scenario import Scenario, read
from wagma.sim.capacity import check_memory

#: What is benchmarked: a model of 100 MB, a tenth of a second, a rank in fifty late by half of that; S = sqrt(P), a sync in every tenth
#: iteration. The base model, in round figures.
TABLE: dict[str, Any] = {
    "name": "benchmark",
    "model": {"parameters": 25_000_000},
    "work": {"per_rank": 1, "unit": "steps"},
    "compute": {"kind": "constant", "seconds": 0.1},
    "imbalance": [{"kind": "independent", "probability": 0.02, "delay_s": 0.05}],
    "network": {"latency_ns": 1000, "overhead_ns": 500, "gap_ns": 500, "gap_per_byte_ns": 0.1},
    "algorithm": {"group_size": "sqrt", "sync_period": 10},
}
YARDSTICK_MESSAGES = 300_000


@dataclass(frozen=True, slots=True)
class Rates:
    """Messages per second of one algorithm on both engines, and of the yardstick beside them; one item for each repetition."""

    algorithm: str
    ranks: int
    messages_per_iteration: float
    yardstick: list[float]
    simpy: list[float]
    fast: list[float]

    def relative(self, engine: str) -> tuple[float, float, float]:
        """(median, smallest, largest) of an engine's rate over that of the yardstick in the same repetition."""
        ratios = [rate / beside for rate, beside in zip(getattr(self, engine), self.yardstick, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


@dataclass(frozen=True, slots=True)
class Cost:
    """What runs took in a process of their own: processor seconds of the simulations and their figures, peak bytes of all of it."""

    algorithms: list[str]
    ranks: int
    iterations: int
    seconds: float
    peak_bytes: int


def scenario(ranks: int, iterations: int) -> Scenario:
    """The scenario of the benchmarks."""
    return read(TABLE | {"ranks": ranks, "iterations": iterations}, "benchmark")


def fast_algorithms(chosen: Sequence[str]) -> list[str]:
    """Those that the fast engine covers."""
    small = scenario(2, 1)
    return [name for name in chosen if choose_engine(small, name) == "fast"]


def yardstick(ranks: int, messages: int = YARDSTICK_MESSAGES) -> float:
    """Messages per second of a plain heapq loop with one event in the heap for each rank."""
    heap = [(rank * 7919 % 1000, rank, rank) for rank in range(ranks)]
    heapq.heapify(heap)
    pop, push = heapq.heappop, heapq.heappush
    began = time.process_time()
    for sequence in range(ranks, ranks + messages):
        now, _, rank = pop(heap)
        push(heap, (now + 1000 + rank * 7919 % 1000, sequence, rank))
    return messages / (time.process_time() - began)


def measure_engines(
    algorithms: Sequence[str], ranks: int, simpy_iterations: int, fast_iterations: int, repetitions: int,
    progress: Callable[[int, int], None],
) -> Iterator[Rates]:  # fmt: skip
    """The rates of each algorithm. The SimPy engine counts the messages of its iterations, of which the fast one does more."""
    from wagma.sim import fast
    from wagma.sim.driver import Run
    from wagma.sim.numerics import Nothing

    few, many = scenario(ranks, simpy_iterations), scenario(ranks, fast_iterations)
    done, total = 0, len(algorithms) * repetitions
    for algorithm in algorithms:
        check_memory(few, algorithm, "simpy")
        check_memory(many, algorithm, "fast")
    for algorithm in algorithms:
        rates = Rates(algorithm, ranks, 0.0, [], [], [])
        for _ in range(repetitions):
            rates.yardstick.append(yardstick(ranks))
            began = time.process_time()
            run = Run(few, algorithm, Nothing(), None)
            run.execute()
            took = time.process_time() - began
            messages = run.collective.network.messages / simpy_iterations
            rates.simpy.append(messages * simpy_iterations / took)
            del run
            began = time.process_time()
            fast.simulate(many, algorithm)
            rates.fast.append(messages * fast_iterations / (time.process_time() - began))
            done += 1
            progress(done, total)
        yield Rates(algorithm, ranks, messages, rates.yardstick, rates.simpy, rates.fast)


def measure_cost(algorithms: Sequence[str], ranks: int, iterations: int) -> Cost:
    """Simulate on the fast engine in a new process. Raises InputError if it would not fit in memory, WagmaError if it fails."""
    arguments = [",".join(algorithms), str(ranks), str(iterations)]
    command = [sys.executable, "-m", "wagma.studies.benchmark", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise InputError(done.stderr.strip())
    if done.returncode:
        raise WagmaError(f"a simulation of {ranks} ranks ended with status {done.returncode}: {done.stderr.strip()[-200:]}")
    return Cost(**json.loads(done.stdout))


def _cost(algorithms: list[str], ranks: int, iterations: int) -> Cost:
    """The same in this process."""
    chosen = scenario(ranks, iterations)
    figures(scenario(2, 1), algorithms[0], "fast")  # imports what is needed
    began = time.process_time()
    for algorithm in algorithms:
        figures(chosen, algorithm, "fast")
    seconds = time.process_time() - began
    return Cost(algorithms, ranks, iterations, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def as_json(results: Sequence[Rates | Cost]) -> list[dict[str, Any]]:
    """Plain data."""
    return [asdict(result) for result in results]


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(_cost(sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3])))))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
