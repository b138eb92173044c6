"""How many threads torch takes where ranks share a machine: by itself each rank takes all cores that it may run on.

Four ranks on eight cores would then have 32 threads, which take turns and wait for each other: every operation gets slower.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from wagma.real.limited import TEXT_BYTES, gather_text, is_local

#: A user who sets one of these has chosen.
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
CPUS = Path("/sys/devices/system/cpu")


def share_cores(comm: Any, timeout_s: float) -> None:
    """Collective: let torch take this rank's share of the cores that it may run on, at least one thread, never more than it has now.

    Nothing changes where one of CHOSEN is set, where torch has another number of threads than it takes by itself (the program has called
    torch.set_num_threads, or the math library knows of the other ranks), or where ranks are threads of one process, whose number of threads
    is one for all. Raises CollectiveTimeout if a rank does not come.
    """
    if is_local(comm) or not hasattr(os, "sched_getaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    texts = gather_text(comm, describe(_host(), cores), timeout_s)
    if not any(name in os.environ for name in CHOSEN) and torch.get_num_threads() in by_itself(cores):
        torch.set_num_threads(min(share(texts, comm.rank), torch.get_num_threads()))


def by_itself(cores: Sequence[int]) -> set[int]:
    """How many threads torch may have that nobody has told: one for each core, or for each that is no second thread of another one."""
    siblings = {_read(CPUS / f"cpu{core}/topology/thread_siblings_list") or str(core) for core in cores}
    return {len(cores), len(siblings)}


def describe(host: str, cores: Sequence[int]) -> str:
    """`host` and the cores in one text that the others can read: 0-3,8; where that is too long, how many, as #4096."""
    spans: list[list[int]] = []
    for core in cores:
        if spans and core == spans[-1][1] + 1:
            spans[-1][1] = core
        else:
            spans.append([core, core])
    text = f"{host} {','.join(f'{first}-{last}' for first, last in spans)}"
    return text if len(text.encode()) <= TEXT_BYTES else f"{host} #{len(cores)}"


def share(texts: Sequence[str], rank: int) -> int:
    """Rank `rank`'s threads, from all ranks' descriptions: of a core that k ranks may run on it has one k-th."""
    host = texts[rank].rpartition(" ")[0]
    masks = [_cores(mask) for one, _, mask in (text.rpartition(" ") for text in texts) if one == host]
    own = _cores(texts[rank].rpartition(" ")[2])
    whole = sum((Fraction(1, sum(core in mask for mask in masks)) for core in own), Fraction(0))
    return max(1, int(whole))


def _cores(text: str) -> set[int]:
    if text.startswith("#"):  # which ones is not known: as if they were the first
        return set(range(int(text[1:])))
    spans = (span.split("-") for span in text.split(","))
    return {core for first, last in spans for core in range(int(first), int(last) + 1)}


def _host() -> str:
    """The same for all processes of one machine, whatever container they are in: they share its cores."""
    return _read(Path("/proc/sys/kernel/random/boot_id")) or platform.node().replace(" ", "-")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
