"""The network of a scenario: what messages cost and who exchanges what (`[network]`).

Base: LogGP (Alexandrov et al., SPAA 1995; the overhead as in LogGOPSim, Hoefler et al., HPDC 2010). Everything else is an option that is
off by default: docs/scenarios.md, "Beyond the base model", says what each means and which engine has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wagma.sections import Section
from wagma.timing.presets import NETWORKS

EXCHANGES = ("butterfly", "halving_doubling")
PLACEMENTS = ("block", "round_robin")

_LOGGP = ("latency_ns", "overhead_ns", "gap_ns", "gap_per_byte_ns")


@dataclass(frozen=True, slots=True)
class Level:
    """LogGP parameters of messages between nodes, or of those within a node.

    A message of n bytes takes overhead + latency + (n - 1) gap_per_byte + overhead; the sender's interface is taken for
    gap + (n - 1) gap_per_byte, its processor for the first overhead. An activation takes activation_ns a hop (default latency + 2
    overhead) and occupies nothing.
    """

    latency_ns: float = 0.0
    overhead_ns: float = 0.0
    gap_ns: float = 0.0
    gap_per_byte_ns: float = 0.0
    activation_ns: float | None = None

    def durations(self, size: int) -> tuple[int, int]:
        """(from send to received, from send to the sender's next one) of a message of `size` bytes, in ns, rounded once."""
        stream = (size - 1) * self.gap_per_byte_ns
        return round(2 * self.overhead_ns + self.latency_ns + stream), max(self.taken_ns(size), round(self.overhead_ns))

    def taken_ns(self, size: int) -> int:
        """Time that the sender's interface is taken by a message of `size` bytes, in ns, rounded once."""
        return round(self.gap_ns + (size - 1) * self.gap_per_byte_ns)


@dataclass(frozen=True, slots=True)
class Letters(Level):
    """The same of letters. progress_computing_ns: from when a question is there until a partner that computes answers it."""

    progress_computing_ns: float = 0.0


@dataclass(frozen=True, slots=True)
class Network(Level):
    """What messages cost between nodes, and everything that the base model leaves out.

    gap_per_byte_ns: contention at scale (`contention`) is in it already.

    overlap: the last part of an iteration's compute time (not of its delays) during which the rank communicates already, as when a layer's
    values travel while the gradients of the layers below it are computed. It arrives by so much sooner; but neither its iteration nor any
    sum that its contribution is part of is complete before its compute is.

    reduce_ns_per_byte: a member adds up what it has received before it goes on. progress_computing_ns, progress_waiting_ns: from when an
    activation or a message is there until the progress thread of a rank acts on it, while its application computes, or waits.

    ranks_per_node, placement: who shares a node. node: what messages within a node cost, which leave on a channel of their own; None: they
    are like all others. shared_interface: all ranks of a node send through one interface, but for that channel.

    letters: what the messages of exchanges with neighbours, of pairs and of barriers cost, where they travel another way than those of
    collectives, as real ranks' do (`wagma.real.gossip.letters`); None: they are like all others.
    """

    group_allreduce: str = "butterfly"
    allreduce: str = "halving_doubling"
    overlap: float = 0.0
    reduce_ns_per_byte: float = 0.0
    progress_computing_ns: float = 0.0
    progress_waiting_ns: float = 0.0
    ranks_per_node: int = 1
    placement: str = "block"
    shared_interface: bool = False
    node: Level | None = None
    letters: Letters | None = None

    def adding_ns(self, size: int) -> int:
        """Time to add up `size` received bytes, in ns, rounded once."""
        return round(size * self.reduce_ns_per_byte)

    @property
    def longest_hop_ns(self) -> int:
        """The longest that an activation takes from one rank until the next one acts on it, in ns."""
        levels = [self] if self.node is None else [self, self.node]
        progress = max(round(self.progress_computing_ns), round(self.progress_waiting_ns))
        return max(round(level.activation_ns or 0) for level in levels) + progress

    def of_letters(self) -> Network:
        """The network that letters travel: the same for all, whoever shares a node."""
        if self.letters is None:
            return self
        costs = {field.name: getattr(self.letters, field.name) for field in fields(Letters)}
        return Network(**costs, overlap=self.overlap, reduce_ns_per_byte=self.reduce_ns_per_byte)

    def node_of(self, rank: int, ranks: int) -> int:
        """The node of `rank` among `ranks`: block fills one node after the other, round_robin deals the ranks out."""
        if self.placement == "block":
            return rank // self.ranks_per_node
        return rank % nodes(ranks, self.ranks_per_node)


def nodes(ranks: int, ranks_per_node: int) -> int:
    """How many nodes there are; the last may not be full."""
    return -(-ranks // ranks_per_node)


def contention(node_count: int, pod_nodes: int, taper: float) -> float:
    """The factor on gap_per_byte when all of `node_count` nodes stream at once, to partners anywhere; at least 1.

    A pod is what one lower part of the network connects at full rate: the nodes of a leaf switch of a fat tree, of a group of a
    dragonfly. Its links to other pods together carry 1 / taper of what its nodes can send (fat trees: Leiserson, IEEE ToC 1985;
    dragonflies: Kim et al., ISCA 2008). Of the N - 1 possible partners of a node N - pod_nodes are in other pods, so that
    pod_nodes (N - pod_nodes) / (N - 1) nodes' worth of traffic wants to leave.
    """
    if node_count <= pod_nodes:
        return 1.0
    return max(1.0, taper * (node_count - pod_nodes) / (node_count - 1))


def read_network(section: Section, ranks: int) -> Network:
    """`[network]` of a scenario of `ranks` ranks; docs/scenarios.md has the keys."""
    preset = section.take("preset", None)
    if preset is not None and (not isinstance(preset, str) or preset not in NETWORKS):
        section.fail("preset", preset, f"must be one of {', '.join(NETWORKS)}")
    given: Mapping[str, Any] = NETWORKS[preset] if preset is not None else {}
    base = Network()
    activation = "activation_ns" in section.names() or "activation_ns" in given
    loggp = _loggp(section, given)
    group = section.choice("group_allreduce", EXCHANGES, base.group_allreduce)
    everyone = section.choice("allreduce", EXCHANGES, base.allreduce)
    overlap = section.number("overlap", 0.0, 1.0, default=base.overlap)
    reduce = section.number("reduce_ns_per_byte", default=base.reduce_ns_per_byte)
    computing = section.number("progress_computing_ns", default=base.progress_computing_ns)
    waiting = section.number("progress_waiting_ns", default=base.progress_waiting_ns)
    per_node = section.integer("ranks_per_node", 1, default=given.get("ranks_per_node", base.ranks_per_node))
    placement = section.choice("placement", PLACEMENTS, base.placement)
    shared = section.boolean("shared_interface", given.get("shared_interface", base.shared_interface))
    # What a node, or a letter, leaves out it has from the network, but for contention, which is none of their business.
    inherited = {key: loggp[key] for key in (*_LOGGP, *(["activation_ns"] if activation else []))}
    loggp["gap_per_byte_ns"] *= _contention(section, nodes(ranks, per_node))
    levels = "node" in section.names() or "node" in given
    inside = section.subsection("node")
    within = Level(**_loggp(inside, {**inherited, **given.get("node", {})}))
    inside.finish()
    gossip = section.subsection("letters")
    apart = bool(gossip.names())
    asked = gossip.number("progress_computing_ns", default=computing)
    letters = Letters(**_loggp(gossip, inherited), progress_computing_ns=asked)
    gossip.finish()
    section.finish()
    return Network(
        **loggp, group_allreduce=group, allreduce=everyone, overlap=overlap, reduce_ns_per_byte=reduce,
        progress_computing_ns=computing, progress_waiting_ns=waiting, ranks_per_node=per_node, placement=placement,
        shared_interface=shared, node=within if levels and per_node > 1 else None, letters=letters if apart else None,
    )  # fmt: skip


def _loggp(section: Section, given: Mapping[str, Any]) -> dict[str, float]:
    values = {key: section.number(key, default=given.get(key, 0.0)) for key in _LOGGP}
    derived = values["latency_ns"] + 2 * values["overhead_ns"]
    values["activation_ns"] = section.number("activation_ns", default=given.get("activation_ns", derived))
    return values


def _contention(section: Section, node_count: int) -> float:
    taper = section.number("taper", 1.0, default=1.0)
    if "pod_nodes" in section.names():
        return contention(node_count, section.integer("pod_nodes", 1), taper)
    if taper > 1:
        section.fail("taper", taper, "needs pod_nodes, the number of nodes that are connected without taper")
    section.take("pod_nodes", None)
    return 1.0
