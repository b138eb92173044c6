"""`wagma measure`: a scenario's `[network]` from what a machine's ranks were seen to do (`wagma.real.measure`), with its uncertainty.

Each key follows from one or two probes, by the formula with which the simulator uses it; docs/worlds.md has the list. Whatever decides how
long something takes on average is a mean, since a scheduler that lets one wake-up in three wait for a tick costs a run its share of the
tick; what is the same each time is a median, which forgets about the neighbours of a virtual machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.errors import InputError
from wagma.real.bench import job

SCHEMA = 1
#: What users say -> what the collective calls it.
TRANSPORTS = {"shared": "shm", "mpi": "mpi"}
#: What a late rank's application does while its progress thread has to act.
APPLICATIONS = ("computing", "sleeping")
MODEL_BYTES = 1 << 20
MOST_BYTES = 1 << 28
REPETITIONS = 20
WORK_S = 1e-3
START_LIMIT_S, PROBE_LIMIT_S = 60.0, 4.0
#: Models up to so many bytes travel over MPI in whole (native/src/exchange_plan.cpp).
WHOLE_BYTES = 16 << 10
RESAMPLES = 400

Progress = Callable[[int, int], None]
Samples = Mapping[str, npt.NDArray[np.float64]]
#: Keys of `[network]`: numbers in ns or ns per byte, or names of exchanges.
Keys = dict[str, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure. model_bytes: of the model that will be averaged. work_s: what a rank computes at once after each collective."""

    ranks: int = 2
    transports: Sequence[str] = tuple(TRANSPORTS)
    model_bytes: int = MODEL_BYTES
    work_s: float = WORK_S
    repetitions: int = REPETITIONS

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        if not 2 <= self.ranks <= 64:
            raise InputError(f"--ranks {self.ranks}: must be from 2 to 64; one rank sends nothing")
        if not 4 <= self.model_bytes <= MOST_BYTES:
            raise InputError(f"--bytes {self.model_bytes}: must be from 4 to {MOST_BYTES}")
        if not 0 <= self.work_s <= 0.1:
            raise InputError(f"--work {self.work_s:g}: must be from 0 to 0.1 seconds")
        if not 5 <= self.repetitions <= 1000:
            raise InputError(
                f"--repetitions {self.repetitions}: must be from 5 to 1000, or nothing can be said about the spread"
            )


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and where it would be in 95 of 100 repetitions of the measurement (bootstrap, percentiles)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured. keys: by transport and by what a late rank does; letters: of gossip; samples: in seconds, by transport."""

    settings: Settings
    cores: int
    library: str
    bandwidth: Figure  # bytes per second, read and written
    adding: Figure  # ns for each byte
    oversleeping: Figure  # ns
    keys: Mapping[tuple[str, str], Mapping[str, Figure]]
    letters: Mapping[str, Figure]
    messages: Mapping[str, Figure]  # MPI messages by themselves
    samples: Mapping[str, Samples]

    def network(self, transport: str, application: str) -> dict[str, Any]:
        """`[network]` of ranks over one transport."""
        kind = exchange_of(transport, self.settings.model_bytes)
        values = {name: figure.value for name, figure in self.keys[transport, application].items()}
        letters = {name: figure.value for name, figure in self.letters.items()}
        return {**values, "group_allreduce": kind, "allreduce": kind, "letters": letters}


def measure(settings: Settings, progress: Progress) -> Machine:
    """Start the ranks and make figures of what they saw. Raises InputError, WagmaError if the job fails."""
    settings.check()
    what = {
        "ranks": settings.ranks, "transports": [TRANSPORTS[name] for name in settings.transports],
        "count": -(-settings.model_bytes // 4), "repetitions": settings.repetitions, "work_s": settings.work_s,
    }  # fmt: skip
    limit_s = START_LIMIT_S + PROBE_LIMIT_S * settings.repetitions * settings.ranks
    found = job.run(job.Job(settings.ranks, ["-m", "wagma.real.measure"], what), limit_s, progress)
    return machine_of(found, settings)


def machine_of(found: Mapping[str, Any], settings: Settings) -> Machine:
    """The figures of what the ranks have reported."""
    adding = np.array(found["adding"])
    common: dict[str, Any] = {"adding": adding, "gap": np.array(found["messages"]["gap"])}
    keys, samples = {}, {}
    for name in settings.transports:
        mine = flat(found["transports"][TRANSPORTS[name]], settings) | common
        samples[name] = mine
        for application in APPLICATIONS:
            figure = partial(network_keys, settings=settings, transport=name, application=application)
            keys[name, application] = resampled(figure, mine)
    letters = {
        f"{size}.{what}": np.array(values) for size, own in found["letters"].items() for what, values in own.items()
    }  # fmt: skip
    messages = {name: np.array(values) for name, values in found["messages"].items()}
    return Machine(
        settings, len(os.sched_getaffinity(0)), found["library"],
        resampled(lambda one: {"b": float(np.median(one["b"]))}, {"b": np.array(found["bandwidth"])})["b"],
        resampled(lambda one: {"a": 1e9 * float(np.median(one["a"]))}, {"a": adding})["a"],
        resampled(lambda one: {"o": 1e9 * float(np.mean(one["o"]))}, {"o": np.array(found["oversleeping"])})["o"],
        keys,
        resampled(lambda one: letter_keys(one, settings.model_bytes), letters),
        resampled(lambda one: message_keys(one, settings.model_bytes), messages),
        {**samples, "letters": letters, "messages": messages},
    )  # fmt: skip


def flat(found: Mapping[str, Any], settings: Settings) -> dict[str, npt.NDArray[np.float64]]:
    """A transport's probes by name. What is asked of all ranks is that of the pair where these are all."""
    pair, everyone = found["pair"], found.get("all", found["pair"])
    size = str(4 * -(-settings.model_bytes // 4))
    samples = {
        "alone": found["alone"], "short": pair["together"]["4"], "model": pair["together"][size],
        "asleep": everyone["asleep"],
        **{f"{name}.start": everyone[name][0] for name in APPLICATIONS},
        **{f"{name}.return": everyone[name][1] for name in APPLICATIONS},
        **{f"together.{size}": values for size, values in pair["together"].items()},
    }  # fmt: skip
    for name in APPLICATIONS:
        if not samples[f"{name}.start"]:
            raise InputError(
                f"measure: no rank was ever late while the others were {name}: too few repetitions, or too busy a machine"
            )
    return {name: np.array(values) for name, values in samples.items()}


def exchange_of(transport: str, model_bytes: int) -> str:
    """How the kernel's members exchange a model: over MPI by halving and doubling if it is long, else each whole with each partner."""
    return "halving_doubling" if transport == "mpi" and model_bytes > WHOLE_BYTES else "butterfly"


def network_keys(samples: Samples, settings: Settings, transport: str, application: str) -> Keys:
    """LogGP and what goes with it, from one set of samples; the formulas are those of docs/worlds.md."""
    size, steps = settings.model_bytes, (settings.ranks - 1).bit_length()
    halving = exchange_of(transport, size) == "halving_doubling"
    overhead = min(float(np.median(samples["alone"])), float(np.median(samples["short"]))) / 2
    message = float(np.median(samples["short"]))  # of two that come together: overhead, latency, overhead
    phases = 2 if halving else 1
    per_byte = max(0.0, float(np.median(samples["model"])) - phases * message) / size
    # In a pair each byte is sent once, and added up once, or half of them where they are halved first.
    reduce = min(float(np.median(samples["adding"])), phases * per_byte)
    gap = per_byte - reduce / phases
    sent = sum(1 / 2 ** (step + 1) for step in range(steps)) * 2 if halving else float(steps)  # models that a rank of all sends
    added = sent / 2 if halving else sent
    whole = phases * steps * message + size * (sent * gap + added * reduce)
    waiting = max(0.0, float(np.mean(samples["asleep"])) - whole) / (phases * steps)
    computing = max(0.0, float(np.mean(samples[f"{application}.start"])) / mean_hops(settings.ranks) - message)
    seconds = {
        "latency_ns": message - 2 * overhead,
        "overhead_ns": overhead,
        # Memory has no interface that a message would occupy: the next one leaves when the processor has handed over the last.
        "gap_ns": overhead if transport == "shared" else float(np.median(samples["gap"])),
        "gap_per_byte_ns": gap,
        "reduce_ns_per_byte": reduce,
        "progress_computing_ns": computing,
        "progress_waiting_ns": waiting,
    }
    return {name: 1e9 * value for name, value in seconds.items()}


def mean_hops(ranks: int) -> float:
    """How many hops an activation takes on average to the others: down a binomial tree, one for each bit of the distance."""
    return sum(rank.bit_count() for rank in range(1, ranks)) / (ranks - 1)


def letter_keys(samples: Samples, size: int) -> Keys:
    """The same of gossip's messages. Naps of the receiving threads are in all of it, so that only means matter.

    Both sides of an exchange look for letters while they wait. In a pair the question finds a thread that naps, and the answer does not.
    """
    model, short = float(np.mean(samples["model.exchange"])), float(np.mean(samples["short.exchange"]))
    overhead = min(float(np.median(samples["model.sender"])), model / 2)
    per_byte = max(0.0, model - short) / size
    seconds = {
        "latency_ns": model - 2 * overhead - size * per_byte, "overhead_ns": overhead, "gap_ns": overhead, "gap_per_byte_ns": per_byte,
        "progress_computing_ns": max(0.0, float(np.mean(samples["model.pair"])) - 2 * model),
    }  # fmt: skip
    return {name: 1e9 * value for name, value in seconds.items()}


def message_keys(samples: Samples, size: int) -> Keys:
    """LogGP of MPI messages by themselves, without any kernel: how fast the network, or the library's shared memory, is."""
    median = {name: 1e9 * float(np.median(values)) for name, values in samples.items()}
    overhead = min((median["sender"] + median["receiver"]) / 2, median["short"] / 2)
    return {
        "latency_ns": median["short"] - 2 * overhead, "overhead_ns": overhead, "gap_ns": median["gap"],
        "gap_per_byte_ns": max(0.0, median["long"] - median["short"]) / size,
    }  # fmt: skip


def resampled(figure: Callable[[Samples], Keys], samples: Samples) -> dict[str, Figure]:
    """figure(samples), and its percentiles over samples drawn anew from these, with replacement (Efron, 1979); seeded."""
    values, generator = figure(samples), np.random.default_rng(0)
    again = [
        figure({name: one[generator.integers(0, one.size, one.size)] for name, one in samples.items()})
        for _ in range(RESAMPLES)
    ]
    bounds = {name: np.percentile([one[name] for one in again], (2.5, 97.5)) for name in values}
    return {name: Figure(value, float(bounds[name][0]), float(bounds[name][1])) for name, value in values.items()}


def to_toml(machine: Machine, application: str) -> str:
    """The sections for a scenario: `[network]`, of both transports the slower one, with `[network.node]` for the ranks of a node."""
    settings, names = machine.settings, list(machine.settings.transports)
    outer = "mpi" if "mpi" in names else names[0]
    command = (
        f"wagma measure -n {settings.ranks} --transport {'both' if len(names) > 1 else outer} --bytes {settings.model_bytes}"
    )
    lines = [
        f"# {command} --work {settings.work_s:g} --application {application}: {machine.cores} cores, {machine.library}.",
        "# Behind each value: from where to where it would be in 95 of 100 repetitions.",
    ]
    keys = dict(machine.keys[outer, application])
    if len(names) > 1:
        lines.append(
            "# Ranks of one node share memory; progress threads are as they are there, all else of [network] is MPI's."
        )
        keys |= {name: one for name, one in machine.keys["shared", application].items() if name.startswith("progress")}
    lines += ["[network]", *(_line(name, figure) for name, figure in keys.items())]
    kind = exchange_of("shared" if len(names) > 1 else outer, settings.model_bytes)
    lines += [f'group_allreduce = "{kind}"', f'allreduce = "{kind}"']
    if len(names) > 1:
        lines.append(f"ranks_per_node = {settings.ranks}")
        inside = machine.keys["shared", application]
        lines += ["", "[network.node]", *(_line(name, inside[name]) for name in _LEVEL)]
    lines += [
        "",
        "[network.letters]  # of algorithms that gossip",
        *(_line(name, one) for name, one in machine.letters.items()),
    ]
    return "\n".join(lines) + "\n"


_LEVEL = ("latency_ns", "overhead_ns", "gap_ns", "gap_per_byte_ns")


def _line(name: str, figure: Figure) -> str:
    return f"{name} = {_number(figure.value)}  # {_number(figure.low)} to {_number(figure.high)}"


def _number(value: float) -> str:
    """Four digits at least, as TOML."""
    return f"{value:.0f}" if value >= 10_000 else f"{value:.4g}"


def to_json(machine: Machine) -> dict[str, Any]:
    """The document of `--json`: figures in ns unless they say otherwise, and medians and quartiles of all samples, in seconds."""

    def figures(given: Mapping[str, Figure]) -> dict[str, Any]:
        return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in given.items()}

    settings = machine.settings
    return {
        "schema": SCHEMA, "ranks": settings.ranks, "cores": machine.cores, "library": machine.library,
        "model_bytes": settings.model_bytes, "work_s": settings.work_s, "repetitions": settings.repetitions,
        **figures({
            "bandwidth_bytes_per_s": machine.bandwidth, "adding_ns_per_byte": machine.adding, "oversleeping_ns": machine.oversleeping,
        }),
        "networks": [
            {"transport": transport, "application": application, "keys": figures(keys)}
            for (transport, application), keys in machine.keys.items()
        ],
        "letters": figures(machine.letters), "messages": figures(machine.messages),
        "samples": {
            transport: {name: _spread(values) for name, values in own.items()} for transport, own in machine.samples.items()
        },
    }  # fmt: skip


def _spread(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    low, median, high = (float(one) for one in np.percentile(values, (25, 50, 75)))
    return {"mean": float(values.mean()), "median": median, "quartiles": [low, high], "count": int(values.size)}
