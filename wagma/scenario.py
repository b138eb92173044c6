"""Scenarios: the one reader of TOML. A scenario is frozen and valid once it exists; every range check and unit is here.

docs/scenarios.md describes each key. `load` takes a file or the name of a packaged scenario; `--set` and the other options of
the command line arrive as dotted keys and go through the same checks.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wagma.algorithms import ALGORITHMS, specification
from wagma.core.groups import sqrt_group_size
from wagma.core.schedule import NEVER, Schedule
from wagma.core.settings import AlgorithmSettings
from wagma.errors import InputError
from wagma.fitting import Fitting, read_fitting
from wagma.sections import Section
from wagma.timing.compute import COMPUTE_KINDS, Compute, read_compute
from wagma.timing.imbalance import IMBALANCE_KINDS, Imbalance, read_imbalance
from wagma.timing.network import Network, read_network
from wagma.timing.noise import Noise, read_noise

#: Below, Dirichlet mixtures have one label each: that is by_label.
LEAST_CONCENTRATION = 0.01

#: A rank that sleeps a hundred times as long as it computes says nothing of any machine.
MOST_STRETCH = 100.0

DTYPES = {"float32": 4, "float64": 8}
UNITS = ("images", "tokens", "steps")
WORKLOADS = ("digits", "digits_mlp", "text", "rl", "none")
OPTIMIZERS = ("sgd", "adamw")
SHARDS = ("iid", "by_label", "dirichlet")
NUMERICS = ("per_rank", "batched")
GROUPS = ("changing", "fixed")

__all__ = ["COMPUTE_KINDS", "IMBALANCE_KINDS", "Scenario", "load", "packaged", "read", "require_changing_groups"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What an algorithm of this scenario runs with; group_size and sync_period as written ("sqrt", "never" included).

    out_neighbours, local_steps and global_clock: see `wagma.core.settings`; only some algorithms have them.
    """

    group_size: int | str = "sqrt"
    sync_period: int | str = 10
    merge_once: bool = False
    groups: str = "changing"
    out_neighbours: int = 1
    local_steps: int = 1
    global_clock: bool = False
    all_ask: bool = False
    await_averaging: bool = False
    initiators: int | str = "solo"

    def of_algorithm(self, seed: int) -> AlgorithmSettings:
        """What the algorithm itself may read."""
        return AlgorithmSettings(
            self.out_neighbours, self.local_steps, self.global_clock, self.all_ask, self.await_averaging, seed
        )


@dataclass(frozen=True, slots=True)
class Training:
    """What ranks train, if they do: workload and hyperparameters. `paced`: a real rank stretches its gradient to the compute time.

    shards, concentration: how the data is shared out (`wagma.workloads.shards`). numerics: in the simulator, a replica for each rank or
    all ranks in one batch (`wagma.sim.batched`). batch_tokens: of `text`. epochs: of `rl`. learning_rates, iterations: algorithm -> its
    own ones (`Scenario.tuned`). decay: of the learning rate by the last iteration, linearly, once the share decay_from of the iterations is
    done. stretch: a real rank sleeps after each gradient until that has taken so many times the processor time that it needed.
    """

    workload: str = "none"
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.0
    paced: bool = False
    shards: str = "iid"
    concentration: float = 1.0
    numerics: str = "per_rank"
    optimizer: str = "sgd"
    batch_tokens: int = 4096
    epochs: int = 4
    stretch: float = 1.0
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    iterations: Mapping[str, float] = field(default_factory=dict)
    decay: float = 0.0
    decay_from: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run: see docs/scenarios.md for each field. Raises InputError when built from values out of range."""

    name: str
    ranks: int
    iterations: int
    seed: int
    parameters: int
    dtype: str
    work_per_rank: float
    work_unit: str
    compute: Compute
    imbalance: tuple[Imbalance, ...]
    noise: Noise
    network: Network
    settings: Settings
    overrides: Mapping[str, Settings]
    training: Training
    calibration: Fitting
    source: str = field(compare=False)
    table: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def model_bytes(self) -> int:
        """Size of one model on the wire."""
        return self.parameters * DTYPES[self.dtype]

    def settings_of(self, algorithm: str) -> Settings:
        """The settings of an algorithm: its own section over the shared one."""
        return self.overrides.get(algorithm, self.settings)

    def algorithm_settings(self, algorithm: str) -> AlgorithmSettings:
        """What the algorithm itself may read."""
        return self.settings_of(algorithm).of_algorithm(self.seed)

    def schedule(self, algorithm: str) -> Schedule:
        """The collectives that `algorithm` joins in this scenario. Raises InputError if the settings do not fit the ranks."""
        settings = self.settings_of(algorithm)
        size = resolve_group_size(settings.group_size, self.ranks, f"{self.source}: algorithm.group_size")
        initiators = resolve_initiators(settings.initiators, self.ranks)
        period = resolve_sync_period(settings.sync_period)
        schedule = specification(algorithm).schedule(self.ranks, size, period, initiators, self.seed)
        return dataclasses.replace(schedule, fixed=schedule.grouped and settings.groups == "fixed")

    def tuned(self, algorithm: str) -> Scenario:
        """This scenario with the learning rate and the number of iterations that it has for an algorithm."""
        training, changes = self.training, {}
        if algorithm in training.learning_rates:
            changes["training.learning_rate"] = training.learning_rates[algorithm]
        if algorithm in training.iterations:
            changes["iterations"] = training.iterations[algorithm]
        if not changes:
            return self
        # Tuned it is: to tune it once more would be the same.
        return self.replace(changes)

    def replace(self, changes: Mapping[str, Any]) -> Scenario:
        """This scenario with dotted keys set, checked again: replace({"network.latency_ns": 500})."""
        return read(changed(self.table, changes, self.source), self.source)


def resolve_group_size(group_size: int | str, ranks: int, where: str) -> int:
    """The number that "sqrt" or a number means for so many ranks. Raises InputError out of 1..ranks."""
    if group_size == "sqrt":
        return sqrt_group_size(ranks)
    if isinstance(group_size, bool) or not isinstance(group_size, int) or not 1 <= group_size <= ranks:
        raise InputError(f'{where} = {group_size!r}: must be "sqrt" or a whole number from 1 to the number of ranks, {ranks}')
    return group_size


def resolve_sync_period(sync_period: int | str, where: str = "sync_period") -> int:
    """The number that a period or "never" means. Raises InputError below 1."""
    if sync_period == "never":
        return NEVER
    if isinstance(sync_period, bool) or not isinstance(sync_period, int) or sync_period < 1:
        raise InputError(f'{where} = {sync_period!r}: must be "never" or a whole number, at least 1')
    return sync_period


def resolve_initiators(initiators: int | str, ranks: int, where: str = "initiators") -> int:
    """How many ranks may activate a version: "solo" is all, "majority" 1. Raises InputError out of 1..ranks."""
    if initiators in ("solo", "majority"):
        return ranks if initiators == "solo" else 1
    if isinstance(initiators, bool) or not isinstance(initiators, int) or not 1 <= initiators <= ranks:
        allowed = f'"solo", "majority" or a whole number from 1 to the number of ranks, {ranks}'
        raise InputError(f"{where} = {initiators!r}: must be {allowed}")
    return initiators


def require_changing_groups(scenario: Scenario, algorithm: str) -> None:
    """Raise InputError if the algorithm is to run with fixed groups, an ablation that the native kernel does not have."""
    if scenario.schedule(algorithm).fixed:
        raise InputError(f'{scenario.source}: groups = "fixed": simulator only; a real run has "changing"')


def packaged() -> dict[str, Path]:
    """The packaged scenarios: name -> file."""
    here = Path(__file__).parent
    for folder in (here / "_scenarios", here.parent / "scenarios"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def load(scenario: str | Path, changes: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario file, or a packaged scenario by name, with dotted keys set. Raises InputError, one line, for bad input."""
    table, source = load_table(scenario)
    return read(changed(table, changes or {}, source), source)


def load_table(scenario: str | Path) -> tuple[dict[str, Any], str]:
    """A scenario as TOML has it, not checked yet, and what messages call it. Raises InputError if it cannot be read."""
    known = packaged()
    name = str(scenario)
    path = known.get(name, Path(scenario))
    if not path.is_file():
        raise InputError(f"scenario {name!r}: neither a file nor a packaged scenario; packaged: {', '.join(known)}")
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name}: not valid TOML: {error}") from error
    if not table:
        raise InputError(f"{name}: empty; a scenario needs at least name, ranks, iterations, model, work and compute")
    return table, name


def changed(table: Mapping[str, Any], changes: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of a table with dotted keys set; an index reaches into an array of tables: "imbalance.0.delay_s"."""
    copy: dict[str, Any] = _deep_copy(table)
    for key, value in changes.items():
        _set(copy, key, value, source)
    return copy


def read(table: Mapping[str, Any], source: str) -> Scenario:
    """A scenario from a parsed table. Raises InputError naming `source`, key, value and what is allowed."""
    top = Section(source, "", table)
    name, ranks = top.string("name"), top.integer("ranks", 1)
    iterations, seed = top.integer("iterations", 1), top.integer("seed", 0, 2**63 - 1, default=0)
    top.string("description", "")
    model, work = top.subsection("model"), top.subsection("work")
    parameters, dtype = model.integer("parameters", 1), model.choice("dtype", tuple(DTYPES), "float32")
    per_rank, unit = work.number("per_rank", positive=True), work.choice("unit", UNITS)
    compute = read_compute(top.subsection("compute"))
    imbalance = tuple(read_imbalance(section, ranks) for section in top.subsections("imbalance"))
    noise = read_noise(top.subsection("noise"))
    network, training = read_network(top.subsection("network"), ranks), _training(top.subsection("training"))
    calibration = read_fitting(top.subsection("calibration"), ALGORITHMS)
    shared = top.subsection("algorithm")
    settings = _settings(shared, ranks, Settings())
    overrides = {}
    own = top.subsection("algorithms")
    for algorithm in own.names():
        if algorithm not in ALGORITHMS:
            own.fail(algorithm, own.take(algorithm), f"unknown algorithm; allowed: {', '.join(ALGORITHMS)}")
        overrides[algorithm] = _settings(own.subsection(algorithm), ranks, settings, specification(algorithm).keys)
    for section in (model, work, own, top):
        section.finish()
    return Scenario(
        name, ranks, iterations, seed, parameters, dtype, per_rank, unit, compute, imbalance, noise,
        network, settings, overrides, training, calibration, source, _deep_copy(table),
    )  # fmt: skip


def read_settings(table: Mapping[str, Any], algorithm: str, ranks: int, where: str) -> Settings:
    """Settings that only this algorithm has, the others as they are by default. Raises InputError naming `where`, key and value."""
    keys = specification(algorithm).keys
    for key, value in table.items():
        if key not in keys:
            allowed = ", ".join(keys) if keys else f"none, {algorithm} has none"
            raise InputError(f"{where}: {key} = {value!r}: unknown key; allowed: {allowed}")
    return _settings(Section(where, "", dict(table)), ranks, Settings(), keys)


def _settings(section: Section, ranks: int, shared: Settings, keys: tuple[str, ...] = ()) -> Settings:
    """`keys` are those that only this algorithm has."""
    size = section.take("group_size", shared.group_size)
    resolve_group_size(size, ranks, f"{section.source}: {section.name}.group_size")
    period = section.take("sync_period", shared.sync_period)
    resolve_sync_period(period, f"{section.source}: {section.name}.sync_period")
    own: dict[str, Any] = {"groups": section.choice("groups", GROUPS, shared.groups)}
    for key in keys:
        match key:
            case "out_neighbours" | "local_steps":
                own[key] = section.integer(key, 1, default=getattr(shared, key))
            case "global_clock" | "all_ask" | "await_averaging":
                own[key] = section.boolean(key, getattr(shared, key))
            case "initiators":
                own[key] = section.take(key, shared.initiators)
                resolve_initiators(own[key], ranks, f"{section.source}: {section.name}.{key}")
    settings = Settings(size, period, section.boolean("merge_once", shared.merge_once), **own)
    section.finish()
    return settings


def _training(section: Section) -> Training:
    default = Training()
    training = Training(
        section.choice("workload", WORKLOADS, default.workload),
        section.integer("batch_size", 1, default=default.batch_size),
        section.number("learning_rate", positive=True, default=default.learning_rate),
        section.number("momentum", 0.0, 1.0, default=default.momentum),
        section.boolean("paced", default.paced),
        section.choice("shards", SHARDS, default.shards),
        section.number("concentration", LEAST_CONCENTRATION, default=default.concentration),
        section.choice("numerics", NUMERICS, default.numerics),
        section.choice("optimizer", OPTIMIZERS, default.optimizer),
        section.integer("batch_tokens", 2, default=default.batch_tokens),
        section.integer("epochs", 1, default=default.epochs),
        section.number("stretch", 1.0, MOST_STRETCH, default=default.stretch),
        _by_algorithm(section.subsection("learning_rates"), whole=False),
        _by_algorithm(section.subsection("iterations"), whole=True),
        section.number("decay", 0.0, 1.0, default=default.decay),
        section.number("decay_from", 0.0, 1.0, default=default.decay_from),
    )
    if training.decay and training.numerics == "batched":
        section.fail("decay", training.decay, 'only with numerics = "per_rank"')
    if training.decay_from and not training.decay:
        section.fail("decay_from", training.decay_from, "only with training.decay above 0")
    if training.optimizer != "sgd" and (training.momentum or training.numerics == "batched"):
        key, value = ("momentum", training.momentum) if training.momentum else ("numerics", training.numerics)
        section.fail(key, value, f'only with optimizer = "sgd", here "{training.optimizer}"')
    if training.paced and training.stretch > 1:
        section.fail("stretch", training.stretch, "a rank is either paced, to the scenario's compute time, or stretched")
    section.finish()
    return training


def _by_algorithm(section: Section, whole: bool) -> dict[str, float]:
    """Algorithm -> a number above 0."""
    rates: dict[str, float] = {}
    for name in ALGORITHMS:
        if name in section.names():
            rates[name] = section.integer(name, 1) if whole else section.number(name, positive=True)
        else:
            section.take(name, None)  # allowed, as `finish` says
    section.finish()
    return rates


def as_table(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain data, for the header of a trace; `read` understands it, wherever it is and whatever else is there."""
    table: dict[str, Any] = _deep_copy(scenario.table)
    if scenario.compute.measured is not None:
        table["compute"] = {"kind": scenario.compute.kind, "seconds": scenario.compute.measured.tolist()}
    return table


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_deep_copy(item) for item in value]
    return value


def _set(table: dict[str, Any], key: str, value: Any, source: str) -> None:
    """table["a"]["b"] = value for "a.b"."""
    *path, last = key.split(".")
    here: Any = table
    for part in path:
        here = here[_index(here, part, key, source)] if isinstance(here, list) else here.setdefault(part, {})
        if not isinstance(here, dict | list):
            raise InputError(f"{source}: {key}: {part!r} is a value, not a table")
    if isinstance(here, list):
        here[_index(here, last, key, source)] = value
    else:
        here[last] = value


def _index(items: list[Any], part: str, key: str, source: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        allowed = f"0 to {len(items) - 1}" if items else "none, the array is empty"
        raise InputError(f"{source}: {key}: there is no item {part!r}; allowed: {allowed}")
    return int(part)
