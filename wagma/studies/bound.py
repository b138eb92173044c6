"""How much faster than synchronous training anything could be, by what the ranks were seen to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wagma.scenario import Scenario
from wagma.trace import Trace

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bound:
    """gain: the largest ratio of synchronous time to any other that the compute times allow. cores: that the ranks had among them."""

    gain: float
    cores: int


def gain_bound(seconds: Seconds, cores: int) -> float:
    """The bound for compute times, delays included, of shape (iterations, ranks), on so many cores.

    Whoever waits for all ranks in each iteration needs at least max(sum / cores, max) of it: a waiting rank's core can help the others if
    there are fewer cores than ranks. Nobody needs less than all work on all cores, nor less than the rank that has most of it.
    """
    synchronous = np.maximum(seconds.sum(axis=1) / cores, seconds.max(axis=1)).sum()
    least = max(seconds.sum() / cores, seconds.sum(axis=0).max())
    return float(synchronous / least)


def measured_bound(scenario: Scenario, traces: Sequence[Trace], cores: int) -> Bound:
    """The mean bound of real runs. Ranks that are paced or stretched have a core of their own, whatever the machine has."""
    training = scenario.training
    own = training.paced or training.stretch > 1
    shared = scenario.ranks if own else min(cores, scenario.ranks)
    bounds = [gain_bound(computed(trace), shared) for trace in traces]
    return Bound(sum(bounds) / len(bounds), shared)


def computed(trace: Trace) -> Seconds:
    """Seconds of computing and injected delay, shape (iterations, ranks)."""
    first = trace.header.begin
    seconds = np.zeros((1 + max(r.iteration for r in trace.iterations) - first, len(trace.starts)))
    for record in trace.iterations:
        seconds[record.iteration - first, record.rank] = (record.computed_ns + record.delayed_ns) / 1e9
    return seconds
