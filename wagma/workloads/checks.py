"""What every workload asks of a scenario."""

from __future__ import annotations

from wagma.errors import InputError
from wagma.scenario import Scenario
from wagma.workloads.registry import REGISTRY


def check_model(scenario: Scenario, parameters: int) -> None:
    """Raise InputError unless the scenario has the size, dtype and unit of its workload: messages and throughput go by them."""
    where, name = scenario.source, scenario.training.workload
    unit = REGISTRY[name].unit
    if scenario.parameters != parameters:
        raise InputError(f"{where}: model.parameters = {scenario.parameters}: the workload {name} has {parameters}")
    if scenario.dtype != "float32":
        raise InputError(f'{where}: model.dtype = "{scenario.dtype}": the workload {name} has float32')
    if scenario.work_unit != unit:
        raise InputError(f'{where}: work.unit = "{scenario.work_unit}": the workload {name} has "{unit}"')


def check_uneven(scenario: Scenario) -> None:
    """Raise InputError if a scenario asks of a workload with uneven batches what only one with equal batches has."""
    where, training = scenario.source, scenario.training
    if training.numerics == "batched":
        raise InputError(
            f'{where}: training.numerics = "batched": batches of the workload {training.workload} differ in size; must be "per_rank"'
        )
    if training.shards != "iid":
        raise InputError(f'{where}: training.shards = "{training.shards}": the workload {training.workload} has "iid" only')
