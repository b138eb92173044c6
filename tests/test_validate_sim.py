"""The checkers against simulated runs with defects planted in the driver: what is not in one rank's records alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import wagma
from wagma.core.protocol import Forward, Machine
from wagma.core.symbols import reduced
from wagma.scenario import load
from wagma.sim.driver import simulate
from wagma.sim.numerics import Symbols
from wagma.trace import Trace
from wagma.validate import validate


def run(numerics: Symbols | None = None) -> Trace:
    scenario = load("resnet50_imagenet", {"ranks": 16, "iterations": 40})
    return simulate(scenario, "wagma_sgd", numerics or Symbols(16))


def promises_broken(trace: Trace) -> set[int]:
    return {violation.promise for violation in validate(trace)}


def test_a_sound_run_has_late_contributions_and_passes() -> None:
    trace = run()
    assert promises_broken(trace) == set()
    assert any(record.fresh is False for record in trace.iterations)


def test_a_contribution_that_is_missing_from_every_sum_is_seen() -> None:
    class Forgetful(Symbols):
        def reduce(self, contributions: Sequence[str], mean: bool) -> str:
            return reduced(contributions[:-1], mean)

    assert promises_broken(run(Forgetful(16))) == {2}


def test_ranks_that_are_never_told_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody forwards: whoever waits for a late rank waits until it comes, and every rank starts as soon as it knows."""

    class Silent(Machine):
        __slots__ = ()

        def _forward(self, version: int, lowest: int, outputs: list[Any]) -> None:
            return

    monkeypatch.setattr("wagma.sim.collective.Machine", Silent)
    assert promises_broken(run()) == {7}


def test_one_lost_dimension_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Machine):
        __slots__ = ()

        def _forward(self, version: int, lowest: int, outputs: list[Any]) -> None:
            before = len(outputs)
            super()._forward(version, lowest, outputs)
            outputs[before:] = [o for o in outputs[before:] if not (isinstance(o, Forward) and o.dimension == 3)]

    monkeypatch.setattr("wagma.sim.collective.Machine", Deaf)
    assert promises_broken(run()) == {7}


def test_validate_is_a_function_of_the_package() -> None:
    """The module of the same name must not take its place, in whatever order both are imported."""
    assert wagma.validate is validate
