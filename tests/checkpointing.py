"""Training in threads whose order is scripted, so that bits do not depend on time; for the tests of checkpoints."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import wagma
from wagma.real.local import LocalCommunicator, run_local

torch.manual_seed(17)
MODEL = torch.nn.Sequential(
    torch.nn.Linear(3, 4),
    torch.nn.BatchNorm1d(4),
    torch.nn.Dropout(0.25),
    torch.nn.Linear(4, 3, bias=False),
    torch.nn.Linear(3, 2),
)
MODEL[4].weight.requires_grad_(False)  # frozen

Bits = dict[str, bytes]


class Turns:
    """Ranks take turns in each iteration: rank 0 first, so that the others are late in what it activates."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._done = 0
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, number: int, rank: int) -> Iterator[None]:
        with self._changed:
            assert self._changed.wait_for(lambda: self._done == number * self._ranks + rank, 20)
        yield
        with self._changed:
            self._done += 1
            self._changed.notify_all()


def model_of(dtypes: str = "float32") -> torch.nn.Module:
    """float32, or mixed: the first layer bfloat16."""
    model = copy.deepcopy(MODEL)
    if dtypes == "mixed":
        model[0].to(torch.bfloat16)
    return model


def forward(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    first = model[0]
    outputs = first(inputs.to(first.weight.dtype)).float()
    for layer in list(model)[1:]:
        outputs = layer(outputs)
    return outputs


def bits(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Bits:
    found = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    if optimizer is not None:
        for place, group in enumerate(optimizer.param_groups):
            found[f"lr {place}"] = torch.tensor(group["lr"], dtype=torch.float64)
            for number, parameter in enumerate(group["params"]):
                for key, value in optimizer.state.get(parameter, {}).items():
                    found[f"{key} {place} {number}"] = torch.as_tensor(value)
    return {name: value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, value in found.items()}


def train(
    comm: LocalCommunicator,
    turns: Turns,
    until: int,
    *,
    folder: Path,
    save_at: tuple[int, ...] = (),
    resume: bool = False,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    dtypes: str = "float32",
    log: list[Any] | None = None,
    **settings: Any,
) -> dict[int, Bits]:
    """Iterations up to `until`; the bits of model and optimizer after each."""
    if comm.rank == 0:
        torch.manual_seed(99)  # of the dropout, which all threads draw from, one after the other
    model = model_of(dtypes)
    trained = [p for p in model.parameters() if p.requires_grad]
    kind = {"lr": 0.1, "momentum": 0.9} if optimizer is torch.optim.SGD else {"lr": 0.01}
    wrapped = wagma.distribute(optimizer(trained, **kind), model, comm=comm, timeout_s=20, watchdog_s=0, **settings)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(wrapped, [2, 5, 7], gamma=0.5)
    if resume:
        saved = wagma.load_checkpoint(folder, wrapped, state={"scheduler": scheduler})
        assert saved.extra == {"rank": comm.rank, "seen": (saved.iteration, {3: float("inf")})}
    history = {wrapped.iteration: bits(model, wrapped)}
    first = wrapped.iteration
    with wrapped:
        for t in range(first, until):
            schedule = wrapped._parts.driver.schedule
            sync = schedule.is_sync(t)
            with turns.turn(t - first, comm.rank):
                inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(50 * t + comm.rank))
                wrapped.zero_grad()
                forward(model, inputs).square().mean().backward()
                if not sync:
                    wrapped.step()
            if sync:
                wrapped.step()
            scheduler.step()
            history[t + 1] = bits(model, wrapped)
            if t + 1 in save_at:
                extra = {"rank": comm.rank, "seen": (t + 1, {3: float("inf")})}
                path = wagma.save_checkpoint(folder, wrapped, state={"scheduler": scheduler}, extra=extra)
                if log is not None and comm.rank == 0:
                    log.append(path)
    return history


def run(ranks: int, until: int, **options: Any) -> list[dict[int, Bits]]:
    turns = Turns(ranks)
    return run_local(ranks, lambda comm: train(comm, turns, until, **options))
