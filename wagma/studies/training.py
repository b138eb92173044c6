"""What distributing an optimizer costs a training loop: `wagma bench training`, and what becomes of the ranks' times.

Everything is a ratio within one job. overhead: one rank's iteration, distributed over bare; a repetition's figure is the median of its
iterations. A rank alone exchanges nothing: of models on a device EXCHANGING, which does, is measured, too. balanced: ranks that have
equally much to do; an iteration over that of DistributedDataParallel with gloo on the same ranks, and a repetition's figure is the
mean of a block. A ratio is the median of the repetitions' ratios, its spread the least and the most of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wagma.errors import InputError
from wagma.real.bench import job

SCHEMA = 1
PARTS = ("overhead", "balanced")
#: The bare loop, and in each iteration a collective of one rank's whole model on its device.
EXCHANGING = "exchanging"
ALONE = ("bare", "wagma_sgd", "wagma_sgd, resident", "wagma_sgd, recorded")
#: ... with the model on a device: what several ranks do there is another loop, which says where the time goes.
ALONE_ON_DEVICE = ("bare", "wagma_sgd", "wagma_sgd, recorded", EXCHANGING)
ITERATION_S = {"host": 0.2, "device": 0.1}
TOGETHER = ("bare", "wagma_sgd", "wagma_sgd, resident", "allreduce_sgd", "ddp")
SYNC_PERIOD = 10
START_LIMIT_S = 120.0
SLOW = 20  # an iteration may take so many times what is expected of it before the job is ended
SLOWEST_S = 10.0  # ... and this, of ranks that share cores

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure. parameters, iteration_s, device: of the one rank; counts, batch, ranks: of the balanced ranks.

    iteration_s None: ITERATION_S. device: "cuda", "cuda:N" or "emulated", where model and data are; None: the host's memory.
    """

    ranks: int = 4
    parts: Sequence[str] = PARTS
    parameters: int = 25_000_000
    iteration_s: float | None = None
    counts: Sequence[int] = (100_000, 1_000_000, 25_000_000)
    batch: int = 32
    iterations: int | None = None
    repetitions: int = 5
    device: str | None = None

    @property
    def seconds(self) -> float:
        """That the one rank's bare iteration is to take."""
        return ITERATION_S["device" if self.device else "host"] if self.iteration_s is None else self.iteration_s

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        if self.ranks < 2:
            raise InputError(f"--ranks {self.ranks}: must be at least 2, or there is nothing to average with")
        if not 0 < self.seconds <= 10:
            raise InputError(f"--iteration {self.seconds:g}: must be above 0 and at most 10 seconds")
        for name, value in (("parameters", self.parameters), ("batch", self.batch)):
            if value < 1:
                raise InputError(f"--{name} {value}: must be at least 1")
        if self.iterations is not None and self.iterations % SYNC_PERIOD and "balanced" in self.parts:
            raise InputError(f"--iterations {self.iterations}: must be a multiple of sync_period, {SYNC_PERIOD}")
        if self.device is not None and list(self.parts) != ["overhead"]:
            raise InputError(f"--part {','.join(self.parts)}: with --device one rank is measured (overhead)")

    def specification(self, part: str) -> dict[str, Any]:
        """For the ranks."""
        common = {"part": part, "sync_period": SYNC_PERIOD, "repetitions": self.repetitions}
        if part == "overhead":
            return common | {
                "ranks": 1, "loops": list(ALONE_ON_DEVICE if self.device else ALONE), "parameters": self.parameters,
                "iteration_s": self.seconds, "iterations": self.iterations or 10, "device": self.device,
            }  # fmt: skip
        counts = [(count, self.iterations or most_iterations(count)) for count in self.counts]
        return common | {"ranks": self.ranks, "loops": list(TOGETHER), "counts": counts, "batch": self.batch}

    def limit_s(self, part: str) -> float:
        """Until a part's job has to be done."""
        what = self.specification(part)
        if part == "overhead":
            iterations: int = (self.repetitions * what["iterations"] + 20) * len(what["loops"])
            return START_LIMIT_S + SLOW * max(self.seconds, 0.1) * iterations
        iterations = sum(each + 2 for _, each in what["counts"]) * self.repetitions * len(TOGETHER)
        return START_LIMIT_S + SLOWEST_S * iterations


def most_iterations(count: int) -> int:
    """Of one block, for a model of so many parameters: more of small ones, whose iterations are short."""
    return SYNC_PERIOD * min(10, max(1, 10_000_000 // count))


def measure(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Start the jobs, one for each part, and make the document of them. Raises WagmaError if one fails."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "benchmark": "training",
        "sync_period": SYNC_PERIOD,
        "repetitions": settings.repetitions,
    }
    for number, part in enumerate(settings.parts):

        def heard(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(settings.parts) * total)

        what = settings.specification(part)
        # The one rank has all cores, as it would have without wagma; several share them, by the launcher's default.
        variables = job.all_cores() if part == "overhead" else {}
        started = job.Job(what["ranks"], ["-m", "wagma.real.bench.training"], what, variables=variables)
        result = job.run(started, settings.limit_s(part), heard)
        found[part] = {"overhead": overhead_of, "balanced": balanced_of}[part](result, what)
    return found


def overhead_of(result: Mapping[str, Any], what: Mapping[str, Any]) -> dict[str, Any]:
    """Of each loop an iteration's median and middle half, and its overhead over the bare one: 0.03 is 3 % more."""
    blocks = result["blocks"]
    medians = {name: [statistics.median(one["seconds"]) for one in blocks if one["loop"] == name] for name in what["loops"]}
    rows = []
    for name in what["loops"]:
        every = [seconds for one in blocks if one["loop"] == name for seconds in one["seconds"]]
        low, _, high = statistics.quantiles(every, n=4, method="inclusive") if len(every) > 1 else every * 3
        over = [mine / bare - 1 for mine, bare in zip(medians[name], medians["bare"], strict=True)]
        rows.append({
            "loop": name, "median_s": statistics.median(medians[name]), "quartiles_s": [low, high], "iterations": len(every),
            "overhead": statistics.median(over), "overhead_spread": [min(over), max(over)],
        })  # fmt: skip
    settings = ("parameters", "batch", "threads", "library", "device", "transport")
    return {key: result[key] for key in settings} | {"results": rows}


def balanced_of(result: Mapping[str, Any], what: Mapping[str, Any]) -> dict[str, Any]:
    """Of each size and loop an iteration's time, and its ratio to DistributedDataParallel's."""
    rows = []
    for count, _ in what["counts"]:
        found = {
            name: [one for one in result["blocks"] if (one["loop"], one["count"]) == (name, count)] for name in what["loops"]
        }
        for name, blocks in found.items():
            taken = [one["seconds"] for one in blocks]
            ratios = [mine / other["seconds"] for mine, other in zip(taken, found["ddp"], strict=True)]
            rows.append({
                "loop": name, "ranks": what["ranks"], "parameters": blocks[0]["parameters"], "batch": what["batch"],
                "iterations": sum(one["iterations"] for one in blocks), "median_s": statistics.median(taken),
                "spread_s": [min(taken), max(taken)], "ratio_to_ddp": statistics.median(ratios),
                "ratio_to_ddp_spread": [min(ratios), max(ratios)],
            })  # fmt: skip
    return {"threads": result["threads"], "library": result["library"], "results": rows}
