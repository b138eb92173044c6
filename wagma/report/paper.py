"""The throughput that the paper published, for tables to print beside one's own.

paper_throughput.csv holds bar heights read off figures 4, 7 and 10 of Li et al., "Breaking (Global) Barriers in Parallel Stochastic
Optimization With Wait-Avoiding Group Averaging", IEEE TPDS 32(7), 2021; read_error is what one pixel is worth.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wagma.scenario import Scenario, as_table, load, packaged

FILE = Path(__file__).with_name("paper_throughput.csv")

#: Keys that may differ from the packaged scenario without making it another experiment.
FREE = ("ranks", "iterations", "seed")


@dataclass(frozen=True, slots=True)
class Point:
    """One bar: throughput, and how far off its reading can be, both in units of work per second."""

    throughput: float
    read_error: float


@dataclass(frozen=True, slots=True)
class Published:
    """What the paper has of a scenario: (ranks, algorithm) -> Point."""

    points: Mapping[tuple[int, str], Point] = field(default_factory=dict)
    citation: str = ""


def published(scenario: Scenario) -> Published:
    """The paper's figures for this scenario; none if it is not in the paper, or was changed into something else."""
    known = packaged()
    if scenario.name not in known or _experiment(scenario) != _experiment(load(scenario.name)):
        return Published()
    points: dict[tuple[int, str], Point] = {}
    citation = ""
    with open(FILE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["workload"] == scenario.name:
                points[int(row["ranks"]), row["algorithm"]] = Point(float(row["throughput"]), float(row["read_error"]))
                citation = f"figure {row['figure']} of Li et al., IEEE TPDS 32(7), 2021, as read off its bars"
    return Published(points, citation)


def _experiment(scenario: Scenario) -> dict[str, Any]:
    return {key: value for key, value in as_table(scenario).items() if key not in FREE}
