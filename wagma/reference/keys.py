"""Every key of a scenario, described once: docs/reference.md and the JSON schema for editors are made from this.

The reader (`wagma.scenario`) stays the judge: a schema cannot say that a group is no larger than the number of ranks. A test compares
the two key by key, and every example here is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wagma.algorithms import ALGORITHMS
from wagma.reference.kinds import (
    BOOLEAN,
    COMPUTE,
    DELAY,
    IMBALANCE,
    PROBABILITY,
    REQUIRED,
    STRING,
    Key,
    Kind,
    Schema,
    array,
    choice,
    component,
    either,
    integer,
    number,
    positive,
)
from wagma.scenario import (
    DTYPES,
    GROUPS,
    LEAST_CONCENTRATION,
    MOST_STRETCH,
    NUMERICS,
    OPTIMIZERS,
    SHARDS,
    UNITS,
    WORKLOADS,
    Settings,
    Training,
)
from wagma.sections import LARGEST
from wagma.timing.compute import LONGEST_S
from wagma.timing.network import EXCHANGES, PLACEMENTS, Network
from wagma.timing.noise import MOST_PER_S
from wagma.timing.presets import NETWORKS


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the file. array: it is an array of tables. keys: those of every kind, if it has kinds."""

    name: str
    title: str
    keys: tuple[Key, ...]
    kinds: tuple[Kind, ...] = ()
    array: bool = False
    open: Schema | None = None
    example: Mapping[str, Any] = field(default_factory=dict)


_NS = "ns"
_PRESET = "({}, or the preset's)"
_LOGGP = (
    Key("latency_ns", number(), "LogGP's L: from interface to interface", _PRESET.format(0), _NS),
    Key("overhead_ns", number(), "LogGP's o: of the sender, and again of the receiver, per message", _PRESET.format(0), _NS),
    Key("gap_ns", number(), "LogGP's g: what a message occupies the sender's interface at least", _PRESET.format(0), _NS),
    Key("gap_per_byte_ns", number(), "LogGP's G: of each further byte", _PRESET.format(0), _NS),
    Key("activation_ns", number(), "of an activation, per hop", "(latency_ns + 2 overhead_ns)", _NS),
)
_WITHIN = tuple(
    key if key.name == "activation_ns" else replace(key, default="(as between nodes, or the preset's)") for key in _LOGGP
)
_OF_LETTERS = (
    *(key if key.name == "activation_ns" else replace(key, default="(as of collectives, or the preset's)") for key in _LOGGP),
    Key("progress_computing_ns", number(), "until a partner that computes answers", "(as of collectives)", _NS),
)
_NETWORK = (
    Key("preset", choice(NETWORKS), "a machine whose figures are the defaults of the keys below", "(none)"),
    *_LOGGP,
    Key("group_allreduce", choice(EXCHANGES), "how members of a group exchange", Network().group_allreduce),
    Key("allreduce", choice(EXCHANGES), "how all ranks do, at syncs", Network().allreduce),
    Key(
        "overlap",
        PROBABILITY,
        "the last part of the compute time, during which the rank communicates already",
        Network().overlap,
    ),
    Key("reduce_ns_per_byte", number(), "of adding up what was received", Network().reduce_ns_per_byte, _NS),
    Key(
        "progress_computing_ns", number(), "until a rank that computes acts on a message", Network().progress_computing_ns, _NS
    ),
    Key("progress_waiting_ns", number(), "the same of a rank that waits", Network().progress_waiting_ns, _NS),
    Key("ranks_per_node", integer(1), "who share a node", _PRESET.format(1)),
    Key("placement", choice(PLACEMENTS), "of ranks: one node after the other, or dealt out", Network().placement),
    Key("shared_interface", BOOLEAN, "the ranks of a node send through one interface", _PRESET.format("false")),
    Key("taper", {"type": "number", "minimum": 1, "maximum": LARGEST}, "of the links that leave a pod; needs `pod_nodes`", 1.0),
    Key("pod_nodes", integer(1), "nodes connected at full rate", "(all)"),
)

_OF_ALGORITHM = {
    "group_size": Key("group_size", either("sqrt", integer(1)), "ranks in a group, at most `ranks`", Settings().group_size),
    "sync_period": Key("sync_period", either("never", integer(1)), "iterations from sync to sync", Settings().sync_period),
    "merge_once": Key("merge_once", BOOLEAN, "a late rank merges no sum twice", Settings().merge_once),
    "groups": Key("groups", choice(GROUPS), "whether groups change from iteration to iteration", Settings().groups),
    "out_neighbours": Key("out_neighbours", integer(1), "to how many ranks each sends per iteration", Settings().out_neighbours),
    "local_steps": Key("local_steps", integer(1), "updates between two averagings", Settings().local_steps),
    "global_clock": Key("global_clock", BOOLEAN, "all ranks begin an iteration together", Settings().global_clock),
    "all_ask": Key("all_ask", BOOLEAN, "both sides of the bipartition ask, not even ranks only", Settings().all_ask),
    "await_averaging": Key(
        "await_averaging", BOOLEAN, "an iteration begins only after the averaging of the one before", Settings().await_averaging
    ),
    "initiators": Key(
        "initiators", {"anyOf": [{"enum": ["solo", "majority"]}, integer(1)]},
        "candidates drawn per version, the first of which to arrive activates it; at most `ranks`", Settings().initiators,
    ),
}  # fmt: skip
SHARED = ("group_size", "sync_period", "merge_once", "groups")

_NOISE = (
    Key("detours_per_s", number(0, MOST_PER_S), "how many interruptions, on average, in a second of compute time", 0.0),
    Key("detour_s", number(0, LONGEST_S), "how long each is; above 0 if there are any", 0.0, "s"),
)

_TRAINING = (
    Key("workload", choice(WORKLOADS), "model and data; none: only time is simulated", Training().workload),
    Key("batch_size", integer(1), "samples of a rank per iteration", Training().batch_size),
    Key("optimizer", choice(OPTIMIZERS), "of each rank", Training().optimizer),
    Key("learning_rate", positive(), "of the same", Training().learning_rate),
    Key("decay", PROBABILITY, "share of it that is gone by the last iteration, falling linearly", Training().decay),
    Key("decay_from", PROBABILITY, "of the iterations: share that is done when it begins to fall", Training().decay_from),
    Key("momentum", PROBABILITY, "of sgd", Training().momentum),
    Key("batch_tokens", integer(2), "text: most tokens of a batch, padding included", Training().batch_tokens),
    Key("epochs", integer(1), "rl: iterations, one gradient each, that learn from the same episodes", Training().epochs),
    Key("paced", BOOLEAN, "a real rank stretches its gradient to the compute time, by sleeping", Training().paced),
    Key(
        "stretch",
        number(1, MOST_STRETCH),
        "a real rank stretches its gradient to so many times the processor time that it took, by sleeping",
        Training().stretch,
    ),
    Key("shards", choice(SHARDS), "how the data are shared out", Training().shards),
    Key(
        "concentration",
        number(LEAST_CONCENTRATION),
        "of dirichlet shards: the smaller, the more they differ",
        Training().concentration,
    ),
    Key(
        "numerics",
        choice(NUMERICS),
        "in the simulator: a replica for each rank, or all ranks in one batch",
        Training().numerics,
    ),
)

_RATES = tuple(Key(name, positive(), f"of {name}", "(training.learning_rate)") for name in ALGORITHMS)
_ITERATIONS = tuple(Key(name, integer(1), f"of {name}", "(iterations)") for name in ALGORITHMS)

_BOUNDS = array({"type": "number"}, 2) | {"maxItems": 2}
_CALIBRATION = (
    Key("leave_out", array(choice(ALGORITHMS), 0), "algorithms that are no part of a fit", []),
    Key("iterations", integer(1), "of the simulations of a fit", "(the scenario's)"),
)


def sections() -> tuple[Section, ...]:
    """All tables, in the order of the reference. Algorithms that a program has registered itself have no settings of their own."""
    top = (
        Key("name", STRING, "of the scenario, in traces and tables"),
        Key("description", {"type": "string"}, "a line for `wagma scenarios`", ""),
        Key("ranks", integer(1), "number of ranks, P"),
        Key("iterations", integer(1), "of each rank"),
        Key("seed", integer(0, 2**63 - 1), "of every random draw", 0),
    )
    model = (
        Key("parameters", integer(1), "of the model"),
        Key("dtype", choice(DTYPES), "of a parameter on the wire", "float32"),
    )
    work = (
        Key("per_rank", positive(), "what a rank does in an iteration, in units of `unit`"),
        Key("unit", choice(UNITS), "of the work; throughput counts it"),
    )
    return (
        Section("", "Top level", top, example={"name": "mine", "ranks": 8, "iterations": 100}),
        Section("model", "Size of a message", model, example={"parameters": 25_559_081}),
        Section("work", "What counts as work", work, example={"per_rank": 128, "unit": "images"}),
        Section("compute", "How long a rank computes in an iteration", (), COMPUTE),
        Section("compute.components", "Components of a mixture", (), component(weighted=True), array=True),
        Section("imbalance", "Injected delays; several add up", (DELAY,), IMBALANCE, array=True),
        Section("network", "What messages cost", _NETWORK),
        Section("network.node", "The same within a node", _WITHIN),
        Section("network.letters", "The same of exchanges with neighbours, pairs and barriers, if they travel another way", _OF_LETTERS),
        Section("noise", "What the operating system does now and then; simulator only", _NOISE),
        Section("noise.per_iteration", "Seconds on top, for each rank and iteration: as `[compute]`, but no trace", (),
                tuple(kind for kind in COMPUTE if kind.name != "trace")),
        Section("algorithm", "Settings of all algorithms", tuple(_OF_ALGORITHM[name] for name in SHARED)),
        *(Section(f"algorithms.{name}", f"Settings of {name} alone", _of(name)) for name in ALGORITHMS),
        Section("training", "What ranks train, if they do", _TRAINING),
        Section("training.learning_rates", "Learning rates of algorithms that need another one", _RATES),
        Section("training.iterations", "Iterations of algorithms that need more or fewer", _ITERATIONS),
        Section("calibration", "What `wagma calibrate` does", _CALIBRATION, example={"iterations": 100}),
        Section("calibration.free", "What it may vary: dotted keys and their bounds", (), open=_BOUNDS,
                example={"network.gap_per_byte_ns": [0.05, 0.5]}),
    )  # fmt: skip


def _of(algorithm: str) -> tuple[Key, ...]:
    # A key that is not described here is missed by the test that compares this with the reader, with a clearer message.
    return tuple(_OF_ALGORITHM[name] for name in (*SHARED, *ALGORITHMS[algorithm].keys) if name in _OF_ALGORITHM)


def examples() -> Iterator[dict[str, Any]]:
    """Valid scenarios which together have every key of every kind."""
    base: dict[str, Any] = {"imbalance": []}
    for section in sections():
        *path, last = section.name.split(".")
        here = base
        for part in path:
            here = here.setdefault(part, {})
        filled = {**section.example, **{key.name: key.default for key in section.keys if _is_value(key.default)}}
        if not section.name:
            base |= filled
        elif not section.kinds:
            here[last] = filled
    base["compute"] = dict(COMPUTE[0].examples[0])
    yield base
    levels = {"node": {key.name: 1 for key in _LOGGP}, "letters": {key.name: 1 for key in _OF_LETTERS}}
    several = {"ranks_per_node": 4, "pod_nodes": 1, "taper": 2, **levels}
    yield base | {"network": {"preset": "ethernet_cloud", **{key.name: 2 for key in _LOGGP}, **several}}
    for kind in COMPUTE:
        if kind.name != "trace":
            yield base | {"noise": {"detours_per_s": 100, "detour_s": 1e-5, "per_iteration": dict(kind.examples[0])}}
    for kind in COMPUTE:
        for example in kind.examples:
            yield base | {"compute": dict(example)}
    for kind in IMBALANCE:
        for example in kind.examples:
            yield base | {"imbalance": [dict(example)]}


def _is_value(default: Any) -> bool:
    return default is not REQUIRED and not (isinstance(default, str) and default.startswith("("))
