"""Models that are trained on a device by ranks as threads, and the same through host memory: for tests of device tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from devices import option, tensors

from wagma.real.devices.place import Place
from wagma.real.local import LocalCommunicator, run_local
from wagma.real.wrapper.distribute import distribute
from wagma.workloads.optimizers import SGD, AdamW  # torch's own take a process a second to import
from wagma.workloads.seeded import seeded

RANKS = 3

Build = Callable[[int], Any]


def dense(rank: int) -> Any:
    """A frozen bias, a buffer, a weight that two layers share, parameters without dimensions and without elements, and an odd number."""
    with seeded(rank):
        first, again = torch.nn.Linear(5, 7), torch.nn.Linear(5, 7)
        model = torch.nn.Sequential(first, torch.nn.BatchNorm1d(7), torch.nn.Tanh(), torch.nn.Linear(7, 5), again)
    first.bias.requires_grad_(False)
    again.weight = first.weight
    model.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.5)))
    model.register_parameter("nothing", torch.nn.Parameter(torch.zeros(0, 3)))
    return model


def mixed(rank: int) -> Any:
    """float16, bfloat16, float32 and float64 in one model."""
    with seeded(rank):
        layers = [torch.nn.Linear(5, 5, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    return Casting(*layers)


def halves(rank: int) -> Any:
    """bfloat16 and float32: parameters hold fewer bits than what travels."""
    with seeded(rank):
        layers = [torch.nn.Linear(5, 5, dtype=torch.bfloat16), torch.nn.Linear(5, 5)]
    return Casting(*layers)


def images(rank: int) -> Any:
    """A convolution whose weights are channels_last, and a parameter with gaps."""
    with seeded(rank):
        model = torch.nn.Sequential(torch.nn.Unflatten(1, (5, 1, 1)), torch.nn.Conv2d(5, 4, 3, padding=1), torch.nn.Flatten())
        model.register_parameter("gaps", torch.nn.Parameter(torch.randn(6, 4).t()[:, ::2]))
    return model.to(memory_format=torch.channels_last)


class Casting(torch.nn.Sequential):
    """Each layer gets its own dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x.to(layer.weight.dtype))
        return x.float()


def loss_of(model: Any, rank: int, step: int, device: str) -> torch.Tensor:
    """Of a batch that differs between ranks and steps."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    outputs = model(torch.randn(8, 5, generator=generator).to(device))
    loss = outputs.square().mean()
    for name in ("scale", "gaps"):
        if hasattr(model, name):
            loss = loss * getattr(model, name).square().mean()
    return loss


@contextmanager
def through_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if there were no kernels for the device: what torch copies to the host and back is what everything is held to."""
    with monkeypatch.context() as patch:
        patch.setattr("wagma.real.devices.model.place_at", lambda kind, index=0: Place("cpu"))
        yield


class Turns:
    """Who is late, and what a late rank merges, is always the same: syncs together, other steps one rank after the other.

    For groups of all ranks: the step of the first rank ends when all others have contributed without arriving. In a smaller group
    it ends while the activation is still on its way to ranks of other groups, and whether they come before it is luck.
    """

    def __init__(self, together: Callable[[int], bool]) -> None:
        self._barrier = threading.Barrier(RANKS, timeout=30.0)
        self._together = together

    def take(self, rank: int, iteration: int, step: Callable[[], object]) -> None:
        if self._together(iteration):
            step()
            return
        for turn in range(RANKS):
            if turn == rank:
                step()
            self._barrier.wait()


def trained(
    build: Build,
    algorithm: str,
    sync_period: int,
    device: str,
    *,
    plain: bool = False,
    iterations: int = 6,
    skipped: Callable[[int, int], Any] = lambda rank, iteration: None,
    adam: bool = False,
    **options: Any,
) -> list[list[bytes]]:
    """Each rank's model in the end, bit by bit; plain: without the option `device`. skipped: whose gradient is None in an iteration."""
    together = algorithm in ("local_sgd", "allreduce_sgd", "d_psgd", "sgp")
    turns = Turns(lambda iteration: together or (iteration + 1) % sync_period == 0)
    models = [build(rank) for rank in range(RANKS)]  # not in the threads: torch has one source of random numbers for all

    def program(comm: LocalCommunicator) -> list[bytes]:
        model = models[comm.rank].to(tensors(device))
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = AdamW(own, lr=0.02) if adam else SGD(own, lr=0.05, momentum=0.9)
        more = {} if plain else {"device": option(device)}
        with distribute(
            optimizer, model, algorithm, RANKS, sync_period, comm=comm, timeout_s=30.0, **more, **options
        ) as wrapped:
            for t in range(iterations):
                wrapped.zero_grad()
                loss_of(model, comm.rank, t, tensors(device)).backward()
                name = skipped(comm.rank, t)
                if name is not None:
                    model.get_parameter(name).grad = None
                turns.take(comm.rank, t, wrapped.step)
        return bits(model)

    return run_local(RANKS, program)


def bits(model: Any) -> list[bytes]:
    """All of a model's content."""
    return [
        one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for one in model.state_dict().values()
    ]
