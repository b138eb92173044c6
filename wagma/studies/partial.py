"""Latency of partial collectives where ranks come one after the other: `wagma bench partial`, after E's figures 8 and 9.

Rank r of P calls r + 1 steps after the start. MPI_Allreduce keeps it for P - 1 - r steps. A version whose candidate is rank c is
activated at step c + 1: rank r waits for c - r steps if it comes earlier, and not at all otherwise. That is the prediction; it has no
cost of messages or of processors that ranks share in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wagma.core.schedule import candidates
from wagma.errors import InputError
from wagma.real.bench import job
from wagma.real.bench.kernels import options_of
from wagma.real.bench.partial import FIRST_VERSION
from wagma.studies.collective import Library

KERNELS: Mapping[str, Mapping[str, Any]] = {
    "mpi": {},
    "solo": {"initiators": "solo"},
    "majority": {"initiators": "majority"},
}
STRATA = 8
SEEDS_TRIED = 2000
LIMIT_S = 300.0
#: What lining up costs in an iteration, of 32 ranks on two cores.
LINE_UP_S = 0.05
#: A library whose calls take so many times as long as the ranks' steps alone predict is tried with no larger size.
HOPELESS = 8
#: ... and one that was nowhere within so many times the fastest is not tried again in further repetitions.
CONTENDS = 2.0

Progress = Callable[[int, int], None]
#: By kernel (an MPI library in a job of its own: "mpi N") and bytes, the blocks of all repetitions.
Found = dict[tuple[str, int], list[dict[str, Any]]]


def initiators(ranks: int, seed: int, iterations: int) -> list[int]:
    """The candidate of every version that counts."""
    return [min(candidates(ranks, 1, seed, FIRST_VERSION + t)) for t in range(iterations)]


def waits(ranks: int, initiator: int) -> float:
    """The mean over ranks of what they wait until the initiator comes, in steps."""
    return initiator * (initiator + 1) / (2 * ranks)


def predicted(ranks: int, drawn: Sequence[int]) -> dict[str, float]:
    """What drawn initiators predict: mean latency in steps, over it that of MPI_Allreduce, and NAP, the mean number of fresh ranks."""
    steps = statistics.fmean(waits(ranks, rank) for rank in drawn)
    return {
        "steps": steps,
        "ratio": waits(ranks, ranks - 1) / steps if steps else float("inf"),
        "nap": 1 + statistics.fmean(drawn),
    }


def expected(ranks: int) -> dict[str, float]:
    """The same in expectation: every rank is drawn equally often."""
    return predicted(ranks, range(ranks))


def stratum(ranks: int, rank: int, strata: int = STRATA) -> int:
    """Which of so many equal ranges of ranks a rank is in."""
    return rank * min(strata, ranks) // ranks


def even_seeds(ranks: int, iterations: int, wanted: int) -> list[int]:
    """Seeds whose initiators come as evenly as can be from all strata, best first: of the first SEEDS_TRIED."""
    even = iterations / min(STRATA, ranks)
    scored = []
    for seed in range(SEEDS_TRIED):
        drawn = initiators(ranks, seed, iterations)
        counts = [0] * min(STRATA, ranks)
        for rank in drawn:
            counts[stratum(ranks, rank)] += 1
        off = abs(predicted(ranks, drawn)["steps"] - expected(ranks)["steps"])
        scored.append((sum((count - even) ** 2 for count in counts), off, seed))
    return [seed for _, _, seed in sorted(scored)[:wanted]]


def measure(
    ranks: int,
    sizes: Sequence[int],
    iterations: int,
    step_s: float,
    repetitions: int,
    others: Sequence[Library],
    progress: Progress,
) -> dict[str, Any]:
    """Start all jobs and make the document of them. Raises InputError, WagmaError if a job fails."""
    if ranks < 2:
        raise InputError(f"--ranks {ranks}: must be at least 2, or nobody waits for anybody")
    for options in KERNELS.values():
        options_of(options)
    seeds = even_seeds(ranks, iterations, repetitions)
    block_s = iterations * (ranks * step_s + LINE_UP_S)
    what = {
        "benchmark": "partial",
        "ranks": ranks,
        "sizes": list(sizes),
        "iterations": iterations,
        "step_s": step_s,
        "limit_s": block_s,
        "hopeless_s": HOPELESS * waits(ranks, ranks - 1) * step_s,
    }
    found = _run(what, seeds, others, LIMIT_S + 10 * len(sizes) * len(KERNELS) * block_s, progress)
    rows = [row for size in sizes for row in _rows(found, size, ranks, step_s, seeds, iterations)]
    drawn = [rank for seed in seeds for rank in initiators(ranks, seed, iterations)]
    return {
        "schema": 1, "benchmark": "partial", "ranks": ranks, "iterations": iterations, "step_s": step_s, "seeds": seeds,
        "initiators_by_stratum": [sum(stratum(ranks, rank) == s for rank in drawn) for s in range(min(STRATA, ranks))],
        "results": rows, "mpi_variants": _variants(found, others),
    }  # fmt: skip


def _run(what: Mapping[str, Any], seeds: Sequence[int], others: Sequence[Library], limit_s: float, progress: Progress) -> Found:
    """All jobs: in each repetition one with the kernel in it, and one for each MPI library that may be the fastest."""
    found: Found = {}
    ranks = what["ranks"]
    contenders = list(range(len(others)))
    done, total = 0, len(seeds) * (1 + len(others)) * 100

    def heard(part: int, parts: int) -> None:
        progress(done + 100 * part // parts, total)

    for number, seed in enumerate(seeds):
        kernels = {**KERNELS, "majority": {**KERNELS["majority"], "seed": seed}}
        main = job.Job(ranks, ["-m", "wagma.real.bench.partial"], {**what, "kernels": kernels})
        jobs = [("", main), *((f" {index}", others[index].job(ranks, what)) for index in contenders)]
        for name, one in jobs:
            result = job.run(one, limit_s, heard)
            for block in result["blocks"]:
                found.setdefault((block["kernel"] + name, block["bytes"]), []).append(block | {"library": result["library"]})
            done += 100
            progress(done, total)
        contenders = [index for index in contenders if contends(found, f"mpi {index}", what["sizes"])]
        total = done + (len(seeds) - 1 - number) * (1 + len(contenders)) * 100
    return found


def _mean(blocks: Sequence[Mapping[str, Any]]) -> float:
    return statistics.fmean(seconds for one in blocks for seconds in one["seconds"])


def contends(found: Found, name: str, sizes: Sequence[int]) -> bool:
    """Whether at any size this one of the MPI libraries was within CONTENDS times the fastest of them."""
    means = {key: _mean(blocks) for key, blocks in found.items() if key[0].startswith("mpi")}
    fastest = {size: min(mean for (_, bytes_), mean in means.items() if bytes_ == size) for size in sizes}
    return any(means.get((name, size), float("inf")) <= CONTENDS * fastest[size] for size in sizes)


def _variants(found: Found, others: Sequence[Library]) -> list[dict[str, Any]]:
    """What MPI_Allreduce took in each library that was tried; alone: in a job of its own."""
    rows = []
    for (kernel, size), blocks in found.items():
        if kernel.startswith("mpi"):
            alone = kernel != "mpi"
            yielding = others[int(kernel[4:])].yielding if alone else job.yields(blocks[0]["library"])
            rows.append({
                "library": blocks[0]["library"], "yielding": yielding, "alone": alone, "bytes": size, "mean_s": _mean(blocks),
                "iterations": sum(len(one["seconds"]) for one in blocks),
            })  # fmt: skip
    return rows


def _rows(
    found: Found,
    size: int,
    ranks: int,
    step_s: float,
    seeds: Sequence[int],
    iterations: int,
) -> list[dict[str, Any]]:
    """One row for each kernel; MPI_Allreduce is the best of all that were tried."""
    means = {
        kernel: [statistics.fmean(one["seconds"]) for one in blocks]
        for (kernel, bytes_), blocks in found.items()
        if bytes_ == size
    }
    tried = [name for name in means if name.startswith("mpi") and len(means[name]) == len(seeds)]
    best = min(tried, key=lambda name: statistics.median(means[name]))
    rows = []
    for kernel in KERNELS:
        mine = means[best if kernel == "mpi" else kernel]
        ratios = [other / own for other, own in zip(means[best], mine, strict=True)]
        blocks = found[best if kernel == "mpi" else kernel, size]
        row = {
            "kernel": kernel, "bytes": size, "iterations": sum(len(one["seconds"]) for one in blocks),
            "mean_s": statistics.median(mine), "mean_s_spread": [min(mine), max(mine)],
            "mpi_over_this": statistics.median(ratios), "mpi_over_this_spread": [min(ratios), max(ratios)],
            "nap": statistics.fmean(n for one in blocks for n in one["nap"]) if "nap" in blocks[0] else float(ranks),
        }  # fmt: skip
        row |= _prediction(kernel, ranks, step_s, seeds, iterations)
        if kernel == "majority":
            row["strata"] = _strata(blocks, ranks, step_s, seeds, iterations)
        rows.append(row)
    return rows


def _prediction(kernel: str, ranks: int, step_s: float, seeds: Sequence[int], iterations: int) -> dict[str, Any]:
    if kernel == "majority":
        drawn = [rank for seed in seeds for rank in initiators(ranks, seed, iterations)]
        what = predicted(ranks, drawn)
    else:  # the last rank releases everybody, or the first
        what = predicted(ranks, [ranks - 1 if kernel == "mpi" else 0])
    ratio = None if kernel == "solo" else what["ratio"]  # solo: no rank waits, the cost is the message's
    return {"predicted_mean_s": what["steps"] * step_s, "predicted_mpi_over_this": ratio, "predicted_nap": what["nap"]}


def _strata(
    blocks: Sequence[Mapping[str, Any]], ranks: int, step_s: float, seeds: Sequence[int], iterations: int
) -> list[dict[str, Any]]:
    """Measured beside predicted where the initiator was among these ranks."""
    by_stratum: dict[int, list[tuple[int, float]]] = {}
    for seed, one in zip(seeds, blocks, strict=True):
        for rank, seconds in zip(initiators(ranks, seed, iterations), one["seconds"], strict=True):
            by_stratum.setdefault(stratum(ranks, rank), []).append((rank, seconds))
    return [
        {
            "initiators": [min(rank for rank, _ in pairs), max(rank for rank, _ in pairs)],
            "iterations": len(pairs),
            "mean_s": statistics.fmean(seconds for _, seconds in pairs),
            "predicted_mean_s": step_s * statistics.fmean(waits(ranks, rank) for rank, _ in pairs),
        }
        for _, pairs in sorted(by_stratum.items())
    ]
