"""How fast the collective is with models on a device: `wagma bench collective --device`. docs/devices.md says what the figures mean.

As in `wagma.studies.collective` everything is a ratio within one run, a repetition is one job, a figure of a repetition the median of its
iterations. What it is compared with: a copy from device to device at the device's best rate; `MPI_Allreduce` of the same tensors through
pinned host memory; and, for publishing alone, a copy of as many bytes as the model has.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from wagma.errors import InputError
from wagma.real.bench import job
from wagma.real.bench.device import devices_for
from wagma.studies.collective import (
    BLOCK_LIMIT_S,
    BLOCKS,
    COPY,
    MODES,
    SCHEMA,
    START_LIMIT_S,
    Key,
    Progress,
    Settings,
    Variant,
    floor,
    key_of,
    ratios,
    row_of,
)

EMULATED = "emulated"
#: A block of the ranks: the kernel's publishing, and a copy of as many bytes, alone.
PUBLISH, PUBLISH_COPY = "publish", "publish_copy"
#: Blocks of a size: a copy, those two, two modes of each kernel, and some for making them.
KERNELS = 10


def check(settings: Settings, pythons: Sequence[Path] | None) -> None:
    """Raise InputError for what cannot be measured on a device."""
    assert settings.device is not None
    if "resident" in settings.modes and settings.transport in ("shm", "mpi"):
        raise InputError(
            f"--mode {','.join(settings.modes)}: with --device and --transport {settings.transport} it must be tensor"
        )
    if "gloo" in settings.against:
        raise InputError("--against gloo: with --device the only other kernel is mpi, through pinned host memory")
    if pythons:
        raise InputError(f"--mpi-python {pythons[0]}: with --device MPI_Allreduce is that of this Python's library alone")
    devices_for(settings.device)


def measure(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Start the jobs, one for each repetition, and make the document of them. Raises WagmaError if one fails."""
    what = settings.specification() | {"device": settings.device}
    limit_s = START_LIMIT_S + BLOCK_LIMIT_S * len(what["counts"]) * BLOCKS * KERNELS * (1 + settings.late_s)
    own = Variant("", False, False, [])
    devices: list[Mapping[str, Any]] = []
    for done in range(settings.repetitions):

        def heard(part: int, parts: int, before: int = done) -> None:
            progress(before * 100 + 100 * part // parts, settings.repetitions * 100)

        started = job.Job(settings.ranks, ["-m", "wagma.real.bench.device"], what)
        result = job.run(started, limit_s, heard)
        own.library, own.yielding = result["library"], job.yields(result["library"])
        own.blocks.append(result["blocks"])
        devices = result["devices"]
    return document(settings, own, devices)


def document(settings: Settings, own: Variant, devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What --json has. devices: of each rank kind, index, name and identity."""
    shared = len({one["identity"] for one in devices}) == 1
    rates = [statistics.median(found) for found in _rates(own)]
    # Between devices the rate is that of what connects them, which no copy on one of them shows.
    bandwidth = rates if shared else None
    results = []
    for count in settings.counts:
        for late_s in (0.0, settings.late_s) if settings.late_s > 0 else (0.0,):
            rivals = {mode: own.medians(("mpi", mode, count, late_s, False)) for mode in MODES}
            found = [medians for medians in rivals.values() if medians is not None]
            best = min(found, key=statistics.median, default=None)
            for kernel, mode in product(("wagma", "mpi"), MODES):
                key = (kernel, mode, count, late_s, False)
                if (medians := own.medians(key)) is None:
                    continue
                row = row_of(settings, own, key, medians, best, bandwidth) | {"device": devices[0]["name"]}
                results.append(row | (_reduction(settings, own, key, bandwidth) if kernel == "wagma" else {}))
    return {
        "schema": SCHEMA, "benchmark": "collective", "device": _described(devices), "results": results,
        "publish": [one for count in settings.counts if (one := _publishing(settings, own, count)) is not None],
        "bandwidth_bytes_per_s": statistics.median(rates), "bandwidth_spread": [min(rates), max(rates)],
        "repetitions": settings.repetitions,
    }  # fmt: skip


def _rates(own: Variant) -> list[list[float]]:
    """Bytes per second, read and written, of each copy within one device, by repetition."""
    return [[one["bytes"] / s for one in blocks if one["kernel"] == COPY for s in one["seconds"]] for blocks in own.blocks]


def _reduction(settings: Settings, own: Variant, key: Key, bandwidth: Sequence[float] | None) -> dict[str, Any]:
    """Of all versions: from when the last member has begun, and all contributions are published, until all have their sums."""
    found = [[s for one in blocks if key_of(one) == key for s in one["reduction_s"]] for blocks in own.blocks]
    if not all(found):
        return {"reduction_s": None, **ratios("reduction_over_bandwidth", [], None)}
    medians = [statistics.median(seconds) for seconds in found]
    return {
        "reduction_s": statistics.median(medians),
        **ratios("reduction_over_bandwidth", medians, floor(settings, key[2], bandwidth)),
    }


def _publishing(settings: Settings, own: Variant, count: int) -> dict[str, Any] | None:
    """Publishing a model alone, beside a copy of as many bytes."""
    mine, copy = (own.medians((kernel, "tensor", count, 0.0, False)) for kernel in (PUBLISH, PUBLISH_COPY))
    if mine is None or copy is None:
        return None
    return {
        "count": count, "dtype": settings.dtype, "publish_s": statistics.median(mine), "copy_s": statistics.median(copy),
        **ratios("publish_over_copy", mine, copy),
    }  # fmt: skip


def _described(devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ranks = Counter(one["identity"] for one in devices)
    return {
        "kind": devices[0]["kind"], "names": sorted({one["name"] for one in devices}), "devices": len(ranks),
        "ranks_on_a_device": max(ranks.values()),
    }  # fmt: skip
