"""What is refused of timing options: one line that names the key, its value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from wagma.errors import InputError
from wagma.scenario import read


def scenario(**changes: Any) -> None:
    table = {
        "name": "refused",
        "ranks": 4,
        "iterations": 1,
        "model": {"parameters": 100},
        "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "constant", "seconds": 1e-6},
    }
    read({**table, **changes}, "test")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"reduce_ns_per_byte": -1}, "network.reduce_ns_per_byte = -1: must be a finite number, at least 0"),
        ({"reduce_ns_per_byte": float("nan")}, "network.reduce_ns_per_byte = nan"),
        ({"taper": 0.5, "pod_nodes": 4}, "network.taper = 0.5: must be a finite number, at least 1"),
        ({"taper": 2}, "network.taper = 2.0: needs pod_nodes"),
        ({"pod_nodes": 0}, "network.pod_nodes = 0: must be a whole number, at least 1"),
        ({"ranks_per_node": 0}, "network.ranks_per_node = 0: must be a whole number, at least 1"),
        ({"ranks_per_node": 2.5}, "network.ranks_per_node = 2.5: must be a whole number"),
        ({"placement": "spread"}, 'network.placement = "spread": must be one of block, round_robin'),
        ({"shared_interface": 1}, "network.shared_interface = 1: must be true or false"),
        ({"node": {"latency_ns": -3}}, "network.node.latency_ns = -3"),
        ({"node": {"latency": 3}}, "network.node.latency = 3: unknown key; allowed: latency_ns"),
        ({"node": 4}, "network.node = 4: must be a table"),
        ({"progress_computing_ns": "soon"}, 'network.progress_computing_ns = "soon"'),
        ({"progress_waiting_ns": float("inf")}, "network.progress_waiting_ns = inf"),
        ({"overlap": 1.5}, "network.overlap = 1.5"),
        ({"preset": "summit"}, 'network.preset = "summit": must be one of piz_daint, nvlink_infiniband, ethernet_cloud'),
        ({"preset": ["piz_daint"]}, "network.preset = "),
    ],
)
def test_bad_networks(network: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as refused:
        scenario(network=network)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("noise", "says"),
    [
        ({"detours_per_s": 10}, "noise.detour_s = 0.0: needs to go with detours_per_s, which is 10"),
        ({"detour_s": 1e-3}, "noise.detour_s = 0.001: needs to go with detours_per_s, which is 0"),
        ({"detours_per_s": 1e7, "detour_s": 1e-9}, "noise.detours_per_s = 10000000.0: must be a finite number"),
        ({"detours_per_s": 10, "detour_s": 0.2}, "noise.detour_s = 0.2: must be at most 1 / detours_per_s = 0.1"),
        ({"detours_per_s": -1, "detour_s": 1}, "noise.detours_per_s = -1"),
        ({"per_iteration": {"kind": "scipy", "distribution": "norm"}}, "noise.per_iteration: norm with"),
        ({"per_iteration": {"kind": "scipy", "distribution": "pareto", "b": 0.5}}, "has no finite mean"),
        ({"per_iteration": {}}, "noise.per_iteration.kind: missing"),
        ({"sigma": 1}, "noise.sigma = 1: unknown key; allowed: detours_per_s, detour_s, per_iteration"),
        (3, "noise = 3: must be a table"),
    ],
)
def test_bad_noise(noise: Any, says: str) -> None:
    with pytest.raises(InputError) as refused:
        scenario(noise=noise)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
