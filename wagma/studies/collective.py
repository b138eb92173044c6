"""How fast the collective is: `wagma bench collective`, and what becomes of the ranks' times. docs/kernel.md says what the figures mean.

Everything is a ratio within one run. A *repetition* starts one job with the kernel, MPI_Allreduce, gloo and copies in turns, and a job
for each MPI library alone, as it is and yielding; repetitions follow each other, so that a machine that slows down slows all of them.
A figure of a repetition is the median of its iterations, a ratio the median of the repetitions' ratios.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wagma.core.groups import group_of
from wagma.errors import InputError
from wagma.real.bench import job
from wagma.real.bench.kernels import needed, options_of

SCHEMA = 1
ITEM_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
#: Those that MPI can add up.
MPI_DTYPES = ("float32", "float64")
MODES = ("tensor", "resident")
AGAINST = ("mpi", "gloo")
#: A block's most iterations: so many bytes of one rank's model, within bounds; time ends a block before if it has to.
BLOCK_BYTES = 400e6
FEWEST_ITERATIONS, MOST_ITERATIONS = 5, 100
BLOCKS = 2
START_LIMIT_S, BLOCK_LIMIT_S = 120.0, 60.0
COPY = "copy"

Progress = Callable[[int, int], None]
Key = tuple[str, str, int, float, bool]  # kernel, mode, count, late_s, rested


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure.

    late_s: the last rank sleeps so long before every call, in blocks of its own; 0: none does. syncs: every call is a sync, which waits
    for all ranks; otherwise none is. device: where the models are, for `wagma.studies.collective_device`; None: in the host's memory.
    """

    ranks: int
    group_size: int
    counts: Sequence[int]
    dtype: str = "float32"
    modes: Sequence[str] = MODES
    against: Sequence[str] = ("mpi",)
    late_s: float = 0.0
    iterations: int | None = None
    repetitions: int = 3
    transport: str = "auto"
    syncs: bool = False
    device: str | None = None

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        if self.ranks < 2:
            raise InputError(f"--ranks {self.ranks}: must be at least 2, or there is nothing to average with")
        if not 2 <= self.group_size <= self.ranks:
            raise InputError(f"--group-size {self.group_size}: must be from 2 to --ranks {self.ranks}")
        if not 0 <= self.late_s <= 10:
            raise InputError(f"--late {self.late_s:g}: must be from 0 to 10 seconds")
        if self.syncs and (self.group_size < self.ranks or self.late_s > 0):
            raise InputError(
                "--syncs: all ranks take part in a sync, and wait for a late one: not with a smaller --group-size, or --late"
            )
        if self.device is None and self.transport in ("ipc", "cuda-mpi"):
            raise InputError(f"--transport {self.transport}: it is for models on a device (--device)")
        for mode in self.modes:
            options_of(needed(mode, self.dtype) | self.options)

    @property
    def options(self) -> dict[str, Any]:
        """Of `GroupAllreduce`, for all modes."""
        return {} if self.transport == "auto" else {"transport": self.transport}

    def specification(self, blocks: int = BLOCKS) -> dict[str, Any]:
        """For the ranks."""
        item = ITEM_BYTES[self.dtype]
        return {
            "benchmark": "collective",
            "ranks": self.ranks,
            "colours": colours(self.ranks, self.group_size),
            "group_size": self.group_size,
            "counts": [(count, self.iterations or most_iterations(count * item)) for count in self.counts],
            "dtype": self.dtype,
            "modes": list(self.modes),
            "against": [other for other in self.against if other != "mpi" or self.dtype in MPI_DTYPES],
            "late_s": self.late_s,
            "blocks": blocks,
            "syncs": self.syncs,
            "options": self.options,
        }


@dataclass(frozen=True, slots=True)
class Library:
    """An MPI library in a job of its own, with the variables that make it yield, or not."""

    python: Path
    name: str
    yielding: bool
    variables: Mapping[str, str]

    def job(self, ranks: int, specification: Mapping[str, Any]) -> job.Job:
        """MPI_Allreduce of that library on so many ranks."""
        return job.Job(ranks, [str(job.ROUNDS)], specification, self.python, self.variables)


@dataclass(slots=True)
class Variant:
    """Where times come from: which library, whether it yields, alone or in turns with the kernel."""

    library: str
    yielding: bool
    alone: bool
    blocks: list[list[dict[str, Any]]]  # by repetition

    def medians(self, key: Key) -> list[float] | None:
        """By repetition, the median of all its iterations; None if it was not measured."""
        found = [[s for one in blocks if key_of(one) == key for s in one["seconds"]] for blocks in self.blocks]
        return [statistics.median(seconds) for seconds in found] if found and all(found) else None

    def seconds(self, key: Key) -> list[float]:
        """All iterations of all repetitions."""
        return [s for blocks in self.blocks for one in blocks if key_of(one) == key for s in one["seconds"]]


def key_of(one: Mapping[str, Any]) -> Key:
    """Of a block."""
    return one["kernel"], one["mode"], one.get("count", 0), one["late_s"], one.get("rested", False)


def colours(ranks: int, group_size: int) -> list[int]:
    """The group of each rank in version 0, by its lowest rank: the groups that MPI and gloo get for all calls."""
    return [min(group_of(ranks, group_size, 0, rank)) if group_size < ranks else 0 for rank in range(ranks)]


def most_iterations(size: int) -> int:
    """Of one block, for a model of so many bytes."""
    return int(min(MOST_ITERATIONS, max(FEWEST_ITERATIONS, BLOCK_BYTES // size)))


def bytes_to_move(ranks: int, count: int, item: int) -> int:
    """Every model is read once, and every rank's average written once: 2 S n for each of the P / S groups of the node."""
    return 2 * ranks * count * item


def algorithm_bandwidth(count: int, item: int, seconds: float) -> float:
    """As nccl-tests define it: the model's bytes over the time."""
    return count * item / seconds


def bus_bandwidth(group_size: int, count: int, item: int, seconds: float) -> float:
    """As nccl-tests define it for allreduce: what each link of a ring would have to carry, 2 (S - 1) / S of the model."""
    return algorithm_bandwidth(count, item, seconds) * 2 * (group_size - 1) / group_size


def libraries(pythons: Sequence[Path] | None) -> list[Library]:
    """This Python's MPI library and those of others, each as it is and yielding. Raises InputError for one that has none.

    pythons: None: those of the environments beside this one that are called like it, with a suffix (.venv-openmpi beside .venv), and have
    an MPI. They are asked, not looked into: an environment may share packages with another one.
    """
    own = Path(sys.prefix)
    beside = [folder / "bin" / "python" for folder in sorted(own.parent.glob(f"{own.name}-*"))]
    found = []
    for python in (Path(sys.executable), *(beside if pythons is None else pythons)):
        try:
            name = job.library_of(python)
        except InputError:
            if pythons is None and python in beside:
                continue
            raise
        found.append(Library(python, name, False, job.waits(name, yielding=False) or {}))
        if (variables := job.waits(name, yielding=True)) is not None:
            found.append(Library(python, name, True, variables))
    return found


def measure(settings: Settings, others: Sequence[Library], progress: Progress) -> dict[str, Any]:
    """Start all jobs and make the document of them. Raises WagmaError if one fails."""
    what = settings.specification()
    alone = {**what, "late_s": 0.0}  # whoever waits for the late rank has its lateness, whichever library it is
    blocks = len(what["counts"]) * what["blocks"]
    limit_s = START_LIMIT_S + BLOCK_LIMIT_S * blocks * 12 * (1 + settings.late_s)
    own = Variant("", False, False, [])
    variants = [Variant(one.name, one.yielding, True, []) for one in others]
    total = settings.repetitions * (1 + len(others)) * 100
    done = 0

    def heard(part: int, parts: int) -> None:
        progress(done + 100 * part // parts, total)

    for _ in range(settings.repetitions):
        main = job.Job(settings.ranks, ["-m", "wagma.real.bench.collective"], what)
        result = job.run(main, limit_s, heard)
        own.library, own.yielding = result["library"], job.yields(result["library"])
        own.blocks.append(result["blocks"])
        done += 100
        for library, variant in zip(others, variants, strict=True):
            variant.blocks.append(job.run(library.job(settings.ranks, alone), limit_s)["blocks"])
            done += 100
            progress(done, total)
    return document(settings, [own, *variants])


def document(settings: Settings, variants: Sequence[Variant]) -> dict[str, Any]:
    """What --json has; the first variant is the job with the kernel in it."""
    own = variants[0]
    bandwidth = bandwidths(own.blocks)
    results, compared = [], []
    for count in settings.counts:
        for late_s in (0.0, settings.late_s) if settings.late_s > 0 else (0.0,):
            rivals = list(_rivals(variants, count, late_s))
            best = min(rivals, key=lambda rival: statistics.median(rival[2]), default=None)
            keys: list[tuple[Variant, str, str]] = [(own, "wagma", mode) for mode in settings.modes]
            for mode in MODES:  # of the libraries the best in each form
                of_form = [rival for rival in rivals if rival[1] == mode]
                if of_form:
                    keys.append((min(of_form, key=lambda rival: statistics.median(rival[2]))[0], "mpi", mode))
            keys.append((own, "gloo", "tensor"))
            for variant, kernel, mode in keys:
                key = (kernel, mode, count, late_s, False)
                if (medians := variant.medians(key)) is not None:
                    rival = best[2] if best else None
                    results.append(row_of(settings, variant, key, medians, rival, bandwidth))
            compared += [
                {"library": one.library, "yielding": one.yielding, "alone": one.alone, "mode": mode, "count": count, "late_s": late_s,
                 "median_s": statistics.median(medians)}
                for one, mode, medians in rivals
            ]  # fmt: skip
    return {
        "schema": SCHEMA, "results": results, "mpi_variants": compared,
        "bandwidth_bytes_per_s": statistics.median(bandwidth), "bandwidth_spread": [min(bandwidth), max(bandwidth)],
        "repetitions": settings.repetitions,
    }  # fmt: skip


def _rivals(variants: Sequence[Variant], count: int, late_s: float) -> Iterator[tuple[Variant, str, list[float]]]:
    """All that MPI_Allreduce was measured with: variant, in place or not, medians by repetition."""
    for variant in variants:
        for mode in MODES:
            if (medians := variant.medians(("mpi", mode, count, late_s, False))) is not None:
                yield variant, mode, medians


def bandwidths(repetitions: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """Bytes per second, read and written, of the better way to copy, by repetition."""
    found = []
    for blocks in repetitions:
        rates: dict[str, list[float]] = defaultdict(list)
        for one in blocks:
            if one["kernel"] == COPY:
                rates[one["mode"]] += [one["bytes"] / seconds for seconds in one["seconds"]]
        found.append(max(statistics.median(rate) for rate in rates.values()))
    return found


def row_of(
    settings: Settings, variant: Variant, key: Key, medians: Sequence[float], rival: Sequence[float] | None,
    bandwidth: Sequence[float] | None,
) -> dict[str, Any]:  # fmt: skip
    """What is said of one kernel with one size. rival: medians of what it is compared with; bandwidth: of a copy; both by repetition."""
    kernel, mode, count, late_s, _ = key
    item = ITEM_BYTES[settings.dtype]
    every = variant.seconds(key)
    quarters = statistics.quantiles(every, n=4, method="inclusive") if len(every) > 1 else every * 3
    median_s = statistics.median(medians)
    row: dict[str, Any] = {
        "kernel": kernel, "mode": mode, "ranks": settings.ranks, "group_size": settings.group_size, "count": count,
        "dtype": settings.dtype, "late_s": late_s, "median_s": median_s, "iterations": len(every),
        "quartiles_s": [quarters[0], quarters[2]],
        "algbw_bytes_per_s": algorithm_bandwidth(count, item, median_s),
        "busbw_bytes_per_s": bus_bandwidth(settings.group_size, count, item, median_s),
        **ratios("ratio_to_mpi", medians, rival),
        **ratios("bytes_over_bandwidth", medians, floor(settings, count, bandwidth)),
    }  # fmt: skip
    if late_s > 0:
        controls = {"balanced": (0.0, False), "rested": (late_s, True)}
        for name, control in controls.items():
            if (others := variant.medians((kernel, mode, count, *control))) is not None:
                row[f"late_over_{name}"] = statistics.median([a / b for a, b in zip(medians, others, strict=True)])
    if kernel == "mpi":
        row |= {"library": variant.library, "yielding": variant.yielding}
    if kernel == "wagma":
        own = [one for blocks in variant.blocks for one in blocks if key_of(one) == key]
        copies = [one["memory_copies_per_rank"] for one in own if one.get("memory_copies_per_rank") is not None]
        row["memory_copies_per_rank"] = max(copies, default=None)
        row["fresh_share"] = statistics.fmean(one["fresh_share"] for one in own)
        row["transport"] = own[0]["transport"]
        row["sync"] = settings.syncs
    return row


def floor(settings: Settings, count: int, bandwidth: Sequence[float] | None) -> list[float] | None:
    """Seconds that the bytes which have to move take at the rate of a copy, by repetition."""
    moved = bytes_to_move(settings.ranks, count, ITEM_BYTES[settings.dtype])
    return None if bandwidth is None else [moved / rate for rate in bandwidth]


def ratios(name: str, medians: Sequence[float], others: Sequence[float] | None) -> dict[str, Any]:
    """The median of the repetitions' ratios, with their least and most; None where there is nothing to compare with."""
    if others is None:
        return {name: None, f"{name}_spread": None}
    found = [mine / other for mine, other in zip(medians, others, strict=True)]
    return {name: statistics.median(found), f"{name}_spread": [min(found), max(found)]}
