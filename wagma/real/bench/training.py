"""The ranks of `wagma bench training`: a torch loop, bare, with distributed optimizers and in DistributedDataParallel, in turns.

`mpiexec -n N python -m mpi4py -m wagma.real.bench.training SPECIFICATION`; one JSON line on rank 0. Two measurements:

- overhead, of one rank: all loops live side by side and take turns, one iteration each, so that whatever slows the machine down slows all
  of them. The batch is made as large as it has to be for a bare iteration to take the time that is asked for. Model and data may be
  on a device: then an iteration ends when the device has done it, and a loop "exchanging" does there what one of several ranks does, of
  which a rank alone does nothing: publish its parameters, reduce, take the average back.
- balanced, of several ranks: each block makes its loop anew on all ranks, and closes it, so that none keeps threads that another one's
  block would pay for. All ranks begin a block at once; it takes until the last of them has done the last iteration. Its iterations are a
  multiple of sync_period, so that syncs have their share.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from wagma.core.digest import digest
from wagma.core.effects import Value
from wagma.core.schedule import Schedule
from wagma.errors import WagmaError
from wagma.real.bench.collective import Gloo
from wagma.real.bench.kernels import TIMEOUT_S, run_on_ranks
from wagma.real.bench.rounds import Rounds, library
from wagma.real.devices.carrier import DeviceCarrier
from wagma.real.devices.choice import CPU, Choice, choose
from wagma.real.devices.model import place_of
from wagma.real.devices.place import place_at
from wagma.real.kernel import Engine
from wagma.real.wrapper.distribute import distribute
from wagma.workloads.flat import flat_views

#: What a loop is called -> options of `distribute`; None: it is not distributed by wagma.
LOOPS: Mapping[str, Mapping[str, Any] | None] = {
    "bare": None,
    "wagma_sgd": {"algorithm": "wagma_sgd"},
    "wagma_sgd, resident": {"algorithm": "wagma_sgd", "resident": True},
    "wagma_sgd, recorded": {"algorithm": "wagma_sgd", "record": "times"},
    "allreduce_sgd": {"algorithm": "allreduce_sgd"},
    "ddp": None,
    "exchanging": None,
}
#: Loops after each iteration of which all ranks hold one model: a fast wrong one would make a good one look slow.
ALIKE = ("allreduce_sgd", "ddp")
BLOCKS = 64
WIDTHS = (8, 1024)
WARM_UP = 2
FIRST_BATCH = 8
Found = list[dict[str, Any]]
Progress = Callable[[int, int], None]


class Block(torch.nn.Module):
    """x + W norm(x): values stay in bounds however many follow each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width) to (batch, width)."""
        result: torch.Tensor = x + self.linear(self.norm(x))
        return result


def model_of(parameters: int) -> tuple[torch.nn.Module, int]:
    """A network with about so many parameters, in four tensors a block as ResNets and transformers have many, and its width."""
    width = min(max(math.isqrt(parameters // BLOCKS), WIDTHS[0]), WIDTHS[1])
    blocks = max(1, round(parameters / (width * (width + 3))))
    return torch.nn.Sequential(*(Block(width) for _ in range(blocks))), width


class Exchange:
    """What one of several ranks does on its device in each iteration: a call publishes the parameters, and has their average there.

    The engine is given a group of this rank alone, so that one model is read and one is written where several ranks read each other's.
    """

    def __init__(self, comm: Any, model: torch.nn.Module, sync_period: int, device: Choice) -> None:
        flat, gradient = flat_views(model)
        place = place_of(flat, "emulated" if device.emulated else None, comm.rank)
        self._engine = Engine(
            comm, Schedule(comm.size, 1, sync_period), flat.read(), dtype=flat.kernel_dtype, mean_when_fresh=True,
            place=place, timeout_s=TIMEOUT_S,
        )  # fmt: skip
        self._carrier = DeviceCarrier(flat, gradient, place)
        self._comm = comm
        self._done = 0
        self.transport = self._engine.transport

    def __call__(self) -> None:
        """One collective."""
        self._engine.average(self._done, self._carrier.place(Value.MODEL, read=True))
        self._carrier.put(Value.MODEL)
        self._done += 1

    def close(self) -> None:
        """Collective."""
        self._carrier.settle(self._comm.rank, TIMEOUT_S)
        self._engine.close()


class Loop:
    """A model, its data and its optimizer; a call is one iteration, and waits for the device."""

    def __init__(self, comm: Any, name: str, parameters: int, batch: int, sync_period: int, device: Choice = CPU) -> None:
        torch.manual_seed(0)
        self.model, self._width = model_of(parameters)
        self._device = torch.device(device.tensors)
        self._place = place_at(self._device.type, self._device.index or 0)
        self.model.to(self._device)
        self.parameters = sum(one.numel() for one in self.model.parameters())
        self._generator = torch.Generator().manual_seed(comm.rank)
        self.resize(batch)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        if name == "ddp":
            self._forward = torch.nn.parallel.DistributedDataParallel(self.model)
        self._optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self._name = name
        self._comm = comm
        self.exchange = Exchange(comm, self.model, sync_period, device) if name == "exchanging" else None
        options = LOOPS[name]
        if options is not None:
            self._optimizer = distribute(
                self._optimizer, self.model, comm=comm, sync_period=sync_period, timeout_s=TIMEOUT_S,
                device="emulated" if device.emulated else None, **options,
            )  # fmt: skip

    def resize(self, batch: int) -> None:
        """Take other data, of so many samples."""
        drawn = (torch.randn(batch, self._width, generator=self._generator) for _ in range(2))
        self._inputs, self._targets = (values.to(self._device) for values in drawn)

    def __call__(self) -> None:
        """One iteration, as users write it."""
        self._optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(self._forward(self._inputs), self._targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if self.exchange is not None:
            self.exchange()
        self._place.settle(self._comm.rank, TIMEOUT_S)

    def close(self) -> None:
        """Collective. Raises WagmaError if the models are not what the loop should have made of them."""
        if LOOPS[self._name] is not None:
            self._optimizer.close()
        if self.exchange is not None:
            self.exchange.close()
        model = flat_views(self.model)[0].read()
        digests = self._comm.allgather((digest(model), bool(torch.isfinite(torch.from_numpy(model)).all())))
        if not all(finite for _, finite in digests):
            raise WagmaError(f"{self._name}: the model has grown beyond all numbers")
        if self._name in ALIKE and len({value for value, _ in digests}) > 1:
            raise WagmaError(f"{self._name}: the ranks hold different models after the same iteration")


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def calibrate(loop: Loop, iteration_s: float) -> int:
    """Give the loop a batch with which an iteration takes about iteration_s; returns it."""
    batch = FIRST_BATCH
    while True:
        loop.resize(batch)
        loop()
        took = min(seconds_of(loop) for _ in range(3))
        if took >= iteration_s / 2:
            break
        batch *= 2
    # Between the last two sizes: below them it was too fast, at most twice too slow at this one.
    batch = max(1, round(batch * iteration_s / took))
    loop.resize(batch)
    return batch


def overhead(comm: Any, what: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Seconds of each loop's iterations, repetition by repetition; the n-th ones of all loops were taken side by side."""
    device = CPU if what["device"] is None else choose(what["device"], comm.rank, 0)
    make = partial(Loop, parameters=what["parameters"], batch=FIRST_BATCH, sync_period=what["sync_period"], device=device)
    loops = {name: make(comm, name) for name in what["loops"]}
    batch = calibrate(loops["bare"], what["iteration_s"])
    for loop in loops.values():
        loop.resize(batch)
        for _ in range(WARM_UP):
            loop()
    names = list(loops)
    found: Found = []
    for repetition in range(what["repetitions"]):
        taken: dict[str, list[float]] = {name: [] for name in names}
        for number in range(what["iterations"]):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                taken[name].append(seconds_of(loops[name]))
            if progress is not None:
                progress(repetition * what["iterations"] + number + 1, what["repetitions"] * what["iterations"])
        found += [{"loop": name, "repetition": repetition, "seconds": taken[name]} for name in names]
    parameters = loops["bare"].parameters
    exchanges = [loop.exchange for loop in loops.values() if loop.exchange is not None]
    for loop in loops.values():
        loop.close()
    return {
        "blocks": found, "batch": batch, "parameters": parameters, "threads": torch.get_num_threads(), "library": library(),
        "device": None if device == CPU else described(str(device)),
        "transport": exchanges[0].transport if exchanges else None,
    }  # fmt: skip


def described(device: str) -> dict[str, str]:
    """Of a device other than the host's memory kind and name."""
    kind, _, index = device.partition(":")
    native = place_at(kind, int(index or 0)).device
    return {"kind": kind, "name": device if native is None else native.name}


def balanced(comm: Any, what: Mapping[str, Any], progress: Progress | None) -> dict[str, Any] | None:
    """Seconds of an iteration of each loop, for each size, repetition by repetition; on rank 0."""
    rounds = Rounds(comm)
    gloo = Gloo(comm, [0] * comm.size) if "ddp" in what["loops"] else None
    found: Found = []
    names = list(what["loops"])
    total = len(what["counts"]) * what["repetitions"] * len(names)
    done = 0
    for count, iterations in what["counts"]:
        for repetition in range(what["repetitions"]):
            first = repetition % len(names)
            for name in names[first:] + names[:first]:
                block = _block(rounds, name, count, iterations, what)
                found.append({"loop": name, "count": count, "repetition": repetition, **block})
                done += 1
                if progress is not None:
                    progress(done, total)
    if gloo is not None:
        gloo.close()
    return {"blocks": found, "threads": torch.get_num_threads(), "library": library()} if comm.rank == 0 else None


def _block(rounds: Rounds, name: str, count: int, iterations: int, what: Mapping[str, Any]) -> dict[str, Any]:
    """One loop, made, warmed up, run for so many iterations and closed; seconds are those of one iteration."""
    comm = rounds.comm
    loop = Loop(comm, name, count, what["batch"], what["sync_period"])
    for _ in range(WARM_UP):
        loop()
    start, _ = rounds.line_up()
    for _ in range(iterations):
        loop()
    ends = comm.allgather(time.monotonic_ns())
    loop.close()
    return {"seconds": (max(ends) - start) * 1e-9 / iterations, "iterations": iterations, "parameters": loop.parameters}


def measure(comm: Any, specification: Mapping[str, Any], progress: Progress | None = None) -> dict[str, Any] | None:
    """What the specification asks for, on rank 0; None elsewhere."""
    part = {"overhead": overhead, "balanced": balanced}[specification["part"]]
    return part(comm, specification, progress)


if __name__ == "__main__":
    run_on_ranks(measure, sys.argv[1:])
