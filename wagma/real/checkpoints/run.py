"""`wagma train --checkpoint FOLDER --resume FOLDER`: a run that can be stopped at any moment, and goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagma.errors import InputError
from wagma.real.checkpoints.load import load_checkpoint
from wagma.real.checkpoints.save import save_checkpoint
from wagma.scenario import Scenario, as_table

if TYPE_CHECKING:
    from wagma.real.wrapper.optimizer import DistributedOptimizer

#: A run may be made longer, and goes by another name; everything else of a scenario decides what its iterations do.
_FREE = ("iterations", "name", "description", "ranks")


@dataclass(frozen=True, slots=True)
class Saving:
    """folder: where to save, None: nowhere. every: at the first sync so many iterations after the last one. resume: where to go on from."""

    folder: Path | None = None
    every: int = 100
    resume: Path | None = None

    def go_on(self, optimizer: DistributedOptimizer, scenario: Scenario, state: dict[str, Any]) -> None:
        """Collective, before the first step: put everything where `resume` has it. Raises InputError if it is of another scenario."""
        if self.resume is None:
            return
        saved = load_checkpoint(self.resume, optimizer, state=state)
        before, now = saved.extra.get("scenario"), _fixed(scenario)
        if not isinstance(before, dict):
            raise InputError(f"checkpoint {saved.path}: not saved by wagma train: its extra has no scenario")
        for key in dict.fromkeys([*before, *now]):
            if before.get(key) != now.get(key):
                raise InputError(
                    f"checkpoint {saved.path}: of another scenario: {key} was {before.get(key)}, is {now.get(key)}"
                )
        if saved.iteration >= scenario.iterations:
            raise InputError(
                f"checkpoint {saved.path}: {saved.iteration} iterations are done, and iterations = {scenario.iterations}: nothing left"
            )

    def after(self, optimizer: DistributedOptimizer, scenario: Scenario, state: dict[str, Any], last: int) -> int:
        """After each step; `last`: the iteration of the last save, which is returned anew."""
        done = optimizer.iteration
        due = done - last >= self.every or done == scenario.iterations
        if self.folder is None or not due or not optimizer.synced:
            return last
        save_checkpoint(self.folder, optimizer, state=state, extra={"scenario": _fixed(scenario)})
        if optimizer.recorder is not None:
            optimizer.recorder.paused()
        return done


def _fixed(scenario: Scenario) -> dict[str, Any]:
    """Key, with dots, -> value."""
    return dict(_leaves({key: value for key, value in as_table(scenario).items() if key not in _FREE}, ""))


def _leaves(table: dict[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value
