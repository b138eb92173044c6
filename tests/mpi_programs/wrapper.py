"""The distributed optimizer on real processes: start, sub-communicators, a loss scaler, uneven ends, several that end at once, an end left
to the exit."""

from __future__ import annotations

import sys

import torch
from ranks import COMM, RANK, say

import wagma

TRANSPORT = sys.argv[1]


def network(inputs: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(inputs, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().reshape(-1) for value in model.state_dict().values() if value.is_floating_point()])


def same_everywhere(comm: object, values: torch.Tensor) -> bool:
    return all(torch.equal(values, other) for other in comm.allgather(values))  # type: ignore[attr-defined]


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: int, iterations: int) -> None:
    for _ in range(iterations):
        optimizer.zero_grad()
        model(torch.randn(8, inputs)).square().mean().backward()
        optimizer.step()


def begin_and_scale() -> None:
    """Every rank has a seed of its own, and a gradient that overflows on one of them."""
    torch.manual_seed(RANK)
    model = network(5)
    assert not same_everywhere(COMM, flat(model))
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    options = {"transport": TRANSPORT, "optimizer_state": "average", "timeout_s": 20.0}
    with wagma.distribute(inner, model, sync_period=3, **options) as optimizer:
        assert same_everywhere(COMM, flat(model))
        for iteration in range(6):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(8, 5)).square().mean()).backward()
            if iteration == 2 and RANK == 1:
                model[0].weight.grad.fill_(float("nan"))
            scaler.step(optimizer)
            scaler.update()
        assert same_everywhere(COMM, flat(model))
        assert same_everywhere(COMM, torch.tensor([float(inner.state[p]["momentum_buffer"].sum()) for p in model.parameters()]))
    assert (scaler.get_scale() < 256.0) == (RANK == 1)


def in_halves() -> None:
    """Two halves of the ranks train two models; numbers of batches differ."""
    half = COMM.Split(RANK % 2, RANK)
    inputs = 5 + RANK % 2
    model = network(inputs)
    with wagma.distribute(
        torch.optim.AdamW(model.parameters()), model, comm=half, sync_period=2, transport=TRANSPORT
    ) as optimizer:
        train(model, optimizer, inputs, 3)
        with optimizer.consolidated():
            assert same_everywhere(half, flat(model))
        train(model, optimizer, inputs, 5 * half.rank)
    with optimizer.consolidated():
        assert same_everywhere(half, flat(model))


def at_once() -> None:
    """Two optimizers, whose ends wait for the other ranks in two threads, each with MPI calls of its own; numbers of batches differ."""
    models = [network(5), network(6)]
    optimizers = [
        wagma.distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, sync_period=1, transport=TRANSPORT, timeout_s=20.0)
        for model in models
    ]
    with wagma.together(*optimizers):
        for _ in range((3, 5, 4, 2)[RANK]):
            for inputs, model, optimizer in zip((5, 6), models, optimizers, strict=True):
                train(model, optimizer, inputs, 1)
    assert all(optimizer.is_closed for optimizer in optimizers)
    for model, optimizer in zip(models, optimizers, strict=True):
        with optimizer.consolidated():
            assert same_everywhere(COMM, flat(model))


def left_to_the_exit() -> None:
    """Nobody closes; rank r has r batches more, with means of buffers in them."""
    model = network(5)
    optimizer = wagma.distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, sync_period=1, transport=TRANSPORT)
    train(model, optimizer, 5, 2 + RANK)


begin_and_scale()
in_halves()
at_once()
left_to_the_exit()
say("ok")
