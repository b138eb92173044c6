"""The network of a scenario: what messages cost and who exchanges what (`[network]`)."""

from __future__ import annotations

from dataclasses import dataclass

from wagma.sections import Section

EXCHANGES = ("butterfly", "halving_doubling")


@dataclass(frozen=True, slots=True)
class Network:
    """LogGP parameters (Alexandrov et al., 1995; the overhead as in LogGOPSim) and who exchanges what.

    A message of n bytes takes overhead + latency + (n - 1) gap_per_byte + overhead; the sender's network interface is taken for
    gap + (n - 1) gap_per_byte. An activation takes activation_ns a hop (default latency + 2 overhead) and occupies nothing.
    """

    latency_ns: float = 0.0
    overhead_ns: float = 0.0
    gap_ns: float = 0.0
    gap_per_byte_ns: float = 0.0
    activation_ns: float | None = None
    group_allreduce: str = "butterfly"
    allreduce: str = "halving_doubling"


def read_network(section: Section) -> Network:
    """`[network]`; docs/scenarios.md has the keys."""
    default = Network()
    values = {key: section.number(key, default=0.0) for key in ("latency_ns", "overhead_ns", "gap_ns", "gap_per_byte_ns")}
    hop = section.number("activation_ns", default=values["latency_ns"] + 2 * values["overhead_ns"])
    group = section.choice("group_allreduce", EXCHANGES, default.group_allreduce)
    everyone = section.choice("allreduce", EXCHANGES, default.allreduce)
    section.finish()
    return Network(**values, activation_ns=hop, group_allreduce=group, allreduce=everyone)
