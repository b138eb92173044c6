"""`wagma bench collective --device`: the collective on tensors in a device's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wagma.studies.collective_device import EMULATED
from wagma.text import seconds, table

NO_TIMES = (
    "the device is emulated: its memory is the host's and its streams are threads, so no time here says anything of a GPU"
)


def describe(found: Mapping[str, Any]) -> str:
    """A table of the kernels, one of publishing, and below them the device's rate."""
    rows = []
    for row in found["results"]:
        reduction = row.get("reduction_s")
        rows.append([
            _name(row), f"{row['count']:,}", f"{row['late_s']:g} s" if row["late_s"] else "", seconds(row["median_s"]),
            "{} to {}".format(*map(seconds, row["quartiles_s"])), with_spread(row, "ratio_to_mpi"),
            with_spread(row, "bytes_over_bandwidth"), "" if reduction is None else seconds(reduction),
            "" if reduction is None else with_spread(row, "reduction_over_bandwidth"),
            f"{row['algbw_bytes_per_s'] / 1e9:.2f}", f"{row['busbw_bytes_per_s'] / 1e9:.2f}",
            *(f"{row[name]:.2f}" if name in row else "" for name in ("late_over_balanced", "late_over_rested")),
            f"{100 * row['fresh_share']:.0f} %" if "fresh_share" in row else "", _transport(row)[0],
        ])  # fmt: skip
    header = [
        "kernel", "elements", "late", "median", "middle half", "over MPI", "over floor", "reduction", "over floor", "alg GB/s", "bus GB/s",
        "over balanced", "over rested", "fresh", "transport",
    ]  # fmt: skip
    texts = [table(header, rows)]
    if found["publish"]:
        published = [
            [f"{row['count']:,}", seconds(row["publish_s"]), seconds(row["copy_s"]), with_spread(row, "publish_over_copy")]
            for row in found["publish"]
        ]
        texts.append(table(["elements", "publish", "copy of as many bytes", "over copy"], published))
    return "\n\n".join([*texts, _below(found)])


def _name(row: Mapping[str, Any]) -> str:
    if row["kernel"] == "wagma":
        return "wagma" + (", resident" if row["mode"] == "resident" else "")
    return "MPI_Allreduce, staged" + (", in place" if row["mode"] == "resident" else "")


def _transport(row: Mapping[str, Any]) -> tuple[str, str]:
    """In few words, and why it is no better one: process ids, addresses and all; either may be empty."""
    name, _, reasons = str(row.get("transport", "")).partition(" (no ")
    return name, f"no {reasons.removesuffix(')')}" if reasons else ""


def _below(found: Mapping[str, Any]) -> str:
    device = found["device"]
    low, high = (value / 1e9 for value in found["bandwidth_spread"])
    names, rate = ", ".join(device["names"]), found["bandwidth_bytes_per_s"] / 1e9
    lines = [
        f"{names}: {rate:.1f} GB/s ({low:.1f} to {high:.1f}), read and written by a copy within the device",
        f"ranks on {device['devices']} device{'s' if device['devices'] > 1 else ''}, up to {device['ranks_on_a_device']} on one",
        f"ratios: median of {found['repetitions']} repetitions (least to most)",
    ]
    why = dict(_transport(row) for row in reversed(found["results"]))  # of each the first row's
    lines += [f"{name}: {reasons}" for name, reasons in why.items() if reasons]
    if device["devices"] > 1:
        lines.append("no floor: ranks are on several devices, and what connects them was not measured")
    if device["kind"] == EMULATED:
        lines.append(NO_TIMES)
    return "\n".join(lines)


def with_spread(row: Mapping[str, Any], name: str) -> str:
    """A ratio with its least and most; nothing where there is none."""
    if row[name] is None:
        return ""
    low, high = row[f"{name}_spread"]
    return _ratio(row[name]) if low == high else f"{_ratio(row[name])} ({_ratio(low)} to {_ratio(high)})"


def _ratio(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
