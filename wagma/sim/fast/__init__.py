"""The fast engine: the same algorithm files, driven once for all ranks, with "rank" an array.

A run is a recurrence over arrays of one element per rank: an activation is a minimum over paths, a start and a message are maxima.
driver.py is the trampoline; applications.py says when each rank arrives; versions.py executes one version of the collective at all ranks;
activation.py and exchange.py are the two recurrences; ledger.py keeps what a run is asked for. docs/engines.md has the argument why the
engine agrees with the SimPy engine to the nanosecond.
"""

from __future__ import annotations

from wagma.sim.fast.arrays import Unfit
from wagma.sim.fast.driver import simulate, unfit

__all__ = ["Unfit", "simulate", "unfit"]
