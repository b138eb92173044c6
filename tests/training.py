"""For tests of the optimizer that users get: models from seeds, ranks as threads, a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wagma.real.local import LocalCommunicator, run_local
from wagma.real.wrapper.distribute import distribute
from wagma.workloads.seeded import seeded


def linear(seed: int, *more: tuple[int, int]) -> Any:
    """Linear layers: 5 inputs and 3 outputs, and then those of `more`."""
    with seeded(seed):
        return torch.nn.Sequential(*(torch.nn.Linear(*sizes) for sizes in ((5, 3), *more)))


def normed(seed: int) -> Any:
    """With BatchNorm."""
    with seeded(seed):
        return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def sgd(model: Any, **options: Any) -> Any:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def adam(model: Any, **options: Any) -> Any:
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.05, **options})


def backward(model: Any, generator: Any, inputs: int = 5) -> Any:
    loss = model(torch.randn(8, inputs, generator=generator)).square().mean()
    loss.backward()
    return loss


def loop(comm: Any, model: Any, optimizer: Any, iterations: int) -> None:
    """Steps on data that differ between ranks."""
    generator = torch.Generator().manual_seed(100 + comm.rank)
    for _ in range(iterations):
        optimizer.zero_grad()
        backward(model, generator)
        optimizer.step()


def parameters(model: Any) -> list[Any]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def content(model: Any) -> list[Any]:
    return [value.clone() for value in model.state_dict().values()]


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def all_same(models: Any) -> bool:
    return all(same(models[0], other) for other in models[1:])


def on(ranks: int, program: Callable[[LocalCommunicator], Any], **options: Any) -> list[Any]:
    return run_local(ranks, program, **{"timeout_s": 30.0, **options})


def refused(kind: type[Exception], complaint: str, program: Callable[[LocalCommunicator], Any], ranks: int = 2) -> str:
    """The one line of the error on every rank."""
    said: list[str] = []

    def each(comm: LocalCommunicator) -> None:
        with pytest.raises(kind, match=complaint) as caught:
            program(comm)
        said.append(str(caught.value))

    on(ranks, each)
    assert len(said) == ranks
    assert all("\n" not in text for text in said)
    return said[0]


__all__ = [
    "adam", "all_same", "backward", "content", "distribute", "linear", "loop", "normed", "on", "parameters", "refused", "same", "sgd",
]  # fmt: skip
