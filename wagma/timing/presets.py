"""Networks that many have, for `network.preset`; docs/scenarios.md says where each figure is from. Single keys override them.

Rates in datasheets are taken at face value: real programs get less. Overheads, gaps and most latencies are assumed, as they
depend on the software.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    # The paper's machine: Cray XC50, Aries dragonfly, one P100 and one rank per node.
    "piz_daint": {"latency_ns": 1_300, "overhead_ns": 500, "gap_ns": 500, "gap_per_byte_ns": 0.1},
    # DGX H100 or alike: eight GPUs with fourth-generation NVLink, an NDR InfiniBand adapter (400 Gb/s) for each of them.
    "nvlink_infiniband": {
        "latency_ns": 1_500, "overhead_ns": 500, "gap_ns": 500, "gap_per_byte_ns": 8 / 400, "ranks_per_node": 8,
        "node": {"latency_ns": 1_000, "overhead_ns": 500, "gap_ns": 500, "gap_per_byte_ns": 1 / 450},
    },
    # Cloud instances with eight V100, second-generation NVLink, and one 25 Gb/s Ethernet interface for all of them; TCP.
    "ethernet_cloud": {
        "latency_ns": 30_000, "overhead_ns": 2_500, "gap_ns": 2_500, "gap_per_byte_ns": 8 / 25, "ranks_per_node": 8,
        "shared_interface": True,
        "node": {"latency_ns": 1_000, "overhead_ns": 500, "gap_ns": 500, "gap_per_byte_ns": 1 / 150},
    },
}  # fmt: skip
