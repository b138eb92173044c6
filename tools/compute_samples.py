"""Prints what `[compute] kind = "samples"` of a scenario needs to draw from measured times: python tools/compute_samples.py FILE.csv...

The files are those of `wagma train --times`; so many quantiles of all their times stand for the distribution.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from wagma.timing.compute import LONGEST_S
from wagma.timing.measured import read_csv

QUANTILES = 32


def samples(files: list[Path]) -> list[float]:
    """Seconds at the middles of QUANTILES equal stretches of probability, to three digits."""
    times = np.concatenate([read_csv(file, LONGEST_S).ravel() for file in files])
    found = np.quantile(times, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    return [float(f"{value:.3g}") for value in found]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python tools/compute_samples.py FILE.csv...")
    print(f"seconds = {samples([Path(name) for name in sys.argv[1:]])}")
