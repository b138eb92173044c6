"""Training on a device: the same bits as through host memory, whatever tensors look like, and every promise where ranks are late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")
pytest.importorskip("sklearn")

import device_training as training  # noqa: E402  after the checks that they can be imported
from device_training import RANKS, bits, dense, halves, images, loss_of, mixed, through_host, trained  # noqa: E402
from devices import DEVICES, option, tensors  # noqa: E402
from real_ranks import registered  # noqa: E402

import wagma  # noqa: E402
from wagma.algorithms import ALGORITHMS, Collectives, register  # noqa: E402
from wagma.core.effects import (  # noqa: E402
    Allreduce,
    ApplyUpdate,
    Average,
    ComputeGradient,
    GroupAllreduce,
    Value,
)
from wagma.errors import InputError  # noqa: E402
from wagma.real.devices.choice import Choice  # noqa: E402
from wagma.real.devices.place import Place  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402
from wagma.real.train import train  # noqa: E402
from wagma.real.wrapper.distribute import distribute  # noqa: E402
from wagma.scenario import load  # noqa: E402
from wagma.validate import validate  # noqa: E402
from wagma.workloads.optimizers import SGD  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error")
on_devices = pytest.mark.parametrize("device", DEVICES)
resident_or_not = pytest.mark.parametrize("resident", [False, True], ids=["tensors", "resident"])


def wrapped(comm: LocalCommunicator, model: Any, device: str | None, algorithm: str = "local_sgd", **options: Any) -> Any:
    where = None if device is None else option(device)
    return distribute(SGD(model.parameters(), lr=0.05), model, algorithm, comm=comm, timeout_s=20.0, device=where, **options)


def missing(rank: int, iteration: int) -> str | None:
    """Whose gradient of which parameter is None: one rank's, two ranks', all ranks'."""
    return "3.weight" if iteration % 3 >= rank else None


def check_same(monkeypatch: pytest.MonkeyPatch, *given: Any, **options: Any) -> list[list[bytes]]:
    """On the device, and through host memory; what is resident there is copied here."""
    found = trained(*given, **options)
    with through_host(monkeypatch):
        expected = trained(*given, plain=True, **{**options, "resident": False})
    assert found == expected
    return found


CASES: dict[str, tuple[training.Build, str, int, dict[str, Any]]] = {
    "wagma_sgd, syncs": (dense, "wagma_sgd", 1, {"adam": True}),
    "wagma_sgd, late": (dense, "wagma_sgd", 3, {"adam": True}),
    "wagma_sgd, late, merge_once": (dense, "wagma_sgd", 4, {"merge_once": True}),
    "wagma_sgd, syncs, resident": (dense, "wagma_sgd", 1, {"adam": True, "resident": True}),
    "wagma_sgd, late, resident": (dense, "wagma_sgd", 3, {"adam": True, "resident": True}),
    "wagma_sgd, late, merge_once, resident": (dense, "wagma_sgd", 4, {"merge_once": True, "resident": True}),
    "local_sgd": (dense, "local_sgd", 2, {}),
    "local_sgd, resident": (dense, "local_sgd", 2, {"resident": True}),
    "allreduce_sgd": (dense, "allreduce_sgd", 2, {}),
    "allreduce_sgd, gradients missing": (dense, "allreduce_sgd", 2, {"skipped": missing, "iterations": 7}),
    "eager_sgd": (dense, "eager_sgd", 3, {}),
    "eager_sgd, gradients missing": (dense, "eager_sgd", 4, {"skipped": missing, "iterations": 9}),
    "mixed": (mixed, "wagma_sgd", 3, {}),
    "mixed gradients": (mixed, "allreduce_sgd", 3, {}),
    "halves": (halves, "wagma_sgd", 3, {}),
    "halves, local_sgd": (halves, "local_sgd", 2, {"iterations": 5}),
    "channels_last": (images, "wagma_sgd", 3, {}),
    "channels_last gradients": (images, "eager_sgd", 3, {}),
    "d_psgd": (dense, "d_psgd", 2, {}),
    "sgp": (dense, "sgp", 2, {}),
    "ideal": (dense, "ideal", 1, {}),
}


@on_devices
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_as_through_host_memory(case: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, algorithm, sync_period, options = CASES[case]
    found = check_same(monkeypatch, build, algorithm, sync_period, device, **options)
    if case == "local_sgd":  # the last iteration is a sync: buffers and all
        assert all(one == found[0] for one in found)


@on_devices
@resident_or_not
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_dtype(dtype: Any, resident: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(rank: int) -> Any:
        return training.Casting(*(layer.to(dtype) for layer in dense(rank) if isinstance(layer, torch.nn.Linear)))

    check_same(monkeypatch, build, "wagma_sgd", 3, device, resident=resident)


@on_devices
@pytest.mark.parametrize(
    ("algorithm", "resident"), [*((name, False) for name in sorted(ALGORITHMS)), ("wagma_sgd", True), ("local_sgd", True)]
)
def test_every_promise_holds_where_ranks_are_late(algorithm: str, resident: bool, device: str) -> None:
    late = {"kind": "independent", "probability": 0.25, "delay_s": 0.004}
    scenario = load("digits", {"iterations": 12, "algorithm.sync_period": 5, "imbalance": [late]})
    chosen = Choice("cpu", emulated=True) if device == "emulated" else Choice(tensors(device))
    told: list[str] = []
    trace = run_local(
        scenario.ranks,
        lambda comm: train(scenario, algorithm, comm, transport="auto", device=chosen, resident=resident, told=told.append),
    )[0]
    assert trace is not None
    assert validate(trace) == []
    assert len(told) == 1
    if algorithm in ("wagma_sgd", "eager_sgd", "local_sgd", "allreduce_sgd"):
        assert "IPC" in told[0]


@on_devices
def test_a_rank_that_ends_early_goes_on_contributing(device: str) -> None:
    """With accumulated gradients it brings its model to the syncs of the others, from the device."""

    def program(comm: LocalCommunicator) -> list[bytes]:
        model = dense(0).to(tensors(device))
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        with distribute(optimizer, model, "eager_sgd", 2, 3, comm=comm, timeout_s=30.0, device=option(device)) as wrapped:
            for t in range(3 if comm.rank else 9):
                wrapped.zero_grad()
                loss_of(model, comm.rank, t, tensors(device)).backward()
                wrapped.step()
        return bits(model)

    models = run_local(RANKS, program)
    assert models[1] == models[2] != models[0]


@on_devices
@resident_or_not
def test_a_checkpoint_holds_what_was_rounded_on_its_way_to_the_parameters(resident: bool, device: str, tmp_path: Path) -> None:
    """Six iterations in one run, and in three runs: mixed dtypes, whose parameters have fewer bits than what a late rank gives.

    A resident model is of one dtype.
    """
    build = dense if resident else halves

    def run(begin: int, end: int, save: bool) -> list[list[bytes]]:
        turns = training.Turns(lambda t: (t + 1) % 3 == 0)

        def program(comm: LocalCommunicator) -> list[bytes]:
            model = build(comm.rank).to(tensors(device))
            optimizer = SGD([one for one in model.parameters() if one.requires_grad], lr=0.05, momentum=0.9)
            wrapped = distribute(
                optimizer, model, "wagma_sgd", RANKS, 3, comm=comm, timeout_s=30.0, device=option(device), resident=resident
            )
            with wrapped:
                if begin:
                    assert wagma.load_checkpoint(tmp_path, wrapped).iteration == begin
                for t in range(begin, end):
                    wrapped.zero_grad()
                    loss_of(model, comm.rank, t, tensors(device)).backward()
                    turns.take(comm.rank, t, wrapped.step)
                if save:
                    wagma.save_checkpoint(tmp_path, wrapped)
            return bits(model)

        return run_local(RANKS, program)

    whole = run(0, 6, save=False)
    run(0, 3, save=True)
    run(3, 3, save=True)  # saved again before anything is done
    assert run(3, 6, save=False) == whole


@on_devices
@resident_or_not
def test_consolidated_is_the_mean_and_gives_the_model_back(resident: bool, device: str) -> None:
    def program(comm: LocalCommunicator) -> tuple[list[bytes], list[bytes], list[bytes]]:
        model = dense(comm.rank).to(tensors(device))
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        with distribute(
            optimizer, model, "local_sgd", sync_period=4, comm=comm, timeout_s=30.0, device=option(device), resident=resident
        ) as wrapped:
            for t in range(2):
                loss_of(model, comm.rank, t, tensors(device)).backward()
                wrapped.step()
            before = bits(model)
            with wrapped.consolidated():
                inside = bits(model)
            return before, inside, bits(model)

    ranks = run_local(RANKS, program)
    assert all(one[0] == one[2] for one in ranks)
    assert len({tuple(one[1]) for one in ranks}) == 1
    assert len({tuple(one[0]) for one in ranks}) == RANKS


def halving(rank: Any) -> Any:
    """An algorithm whose weights the kernel does not know: models move half of the way to the mean."""
    for t in rank.iterations:
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if rank.schedule.is_sync(t):
            yield Allreduce(t, Value.MODEL)
        else:
            outcome = yield GroupAllreduce(t, Value.MODEL)
            yield Average(t, outcome.group_length, 2 * outcome.group_length)


@on_devices
def test_arithmetic_that_the_kernel_does_not_know_is_done_on_the_host(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with registered("halving"):
        register("halving", Collectives.GROUPED)(halving)
        for build in (dense, halves):
            check_same(monkeypatch, build, "halving", 2, device)


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_arithmetic_that_the_kernel_does_not_know_is_not_done_in_its_buffers(device: str | None) -> None:
    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(5, 4).to("cpu" if device is None else tensors(device))
        with wrapped(comm, model, device, "halving", group_size=2, sync_period=3, resident=True) as optimizer:
            optimizer.skip()

    with registered("halving"):
        register("halving", Collectives.GROUPED)(halving)
        with pytest.raises(InputError, match=r"^rank \d: an average with an own weight other than 0 and 1.*: resident must be"):
            run_local(2, program)


@on_devices
@resident_or_not
def test_autograd_notices_what_kernels_write(resident: bool, device: str) -> None:
    """A graph that needs a parameter as it was before a step cannot be used after it."""

    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)).to(tensors(device))
        optimizer = SGD(model.parameters(), lr=0.0)
        with distribute(
            optimizer, model, "local_sgd", sync_period=1, comm=comm, timeout_s=30.0, device=option(device), resident=resident
        ) as wrapped:
            loss = loss_of(model, comm.rank, 0, tensors(device))
            wrapped._parts.driver.advance(skip=True)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    run_local(2, program)


@on_devices
@resident_or_not
def test_memory_of_tensors_may_move_between_steps(resident: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients come from other memory in each iteration, and a program may give parameters new memory: addresses are looked up anew.

    Resident parameters are brought back, by the program's stream, before they are published.
    """

    def build(rank: int) -> Any:
        model = dense(rank)
        model.register_forward_pre_hook(lambda module, _: setattr(module.scale, "data", module.scale.data.clone()))
        return model

    check_same(monkeypatch, build, "wagma_sgd", 2, device, resident=resident)


@on_devices
def test_resident_parameters_need_buffers_on_their_device(device: str) -> None:
    def program(comm: LocalCommunicator) -> None:
        with pytest.raises(InputError, match=r"^resident = True: a model on a device .*: transport = 'shm'$"):
            wrapped(comm, dense(0).to(tensors(device)), device, transport="shm", resident=True)

    run_local(2, program)


def test_resident_parameters_need_kernels_that_reach_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "wagma.real.devices.model.place_at", lambda kind, index=0: Place("cuda", index, None, "no nvcc was found")
    )

    def program(comm: LocalCommunicator) -> None:
        said = r"^rank 0: parameter 'scale' is on cpu, which wagma's kernels do not reach \(no nvcc was found\): resident"
        with pytest.raises(InputError, match=said):
            wrapped(comm, dense(0), None, resident=True)

    run_local(2, program)


@on_devices
@pytest.mark.parametrize("record", [False, "times", True])
@pytest.mark.parametrize("transport", ["auto", "ipc", "cuda-mpi", "shm"])
def test_a_rank_alone_takes_any_transport_of_its_device(transport: Any, record: Any, device: str) -> None:
    """Nothing travels, unless digests are recorded, for which it runs like several ranks: without MPI then not over "cuda-mpi"."""

    def program(comm: LocalCommunicator) -> str:
        model = torch.nn.Linear(4, 4).to(tensors(device))
        with wrapped(comm, model, device, transport=transport, record=record) as optimizer:
            model(torch.ones(2, 4, device=tensors(device))).sum().backward()
            optimizer.step()
        return optimizer.transport

    if record is not True:
        assert run_local(1, program) == [""]
    elif transport == "cuda-mpi":
        with pytest.raises(InputError, match="threads of one process, without MPI"):
            run_local(1, program)
    else:
        (said,) = run_local(1, program)
        assert ("IPC on " in said) == (transport != "shm")


@pytest.mark.parametrize("record", [False, "times", True])
@pytest.mark.parametrize("transport", ["ipc", "cuda-mpi"])
def test_a_rank_alone_needs_its_model_on_a_device_for_buffers_there(transport: Any, record: Any) -> None:
    with pytest.raises(InputError, match=f"transport = '{transport}': rank 0's model is in host memory: must be 'auto'"):
        run_local(1, lambda comm: wrapped(comm, torch.nn.Linear(4, 4), None, transport=transport, record=record))


@pytest.mark.parametrize("algorithm", ["d_psgd", "sgp", "ad_psgd", "swarm_sgd", "ideal"])
@pytest.mark.parametrize("transport", ["ipc", "cuda-mpi"])
def test_letters_have_no_buffers_on_devices(transport: Any, algorithm: str) -> None:
    def program(comm: LocalCommunicator) -> None:
        wrapped(comm, torch.nn.Linear(4, 4), "emulated", algorithm=algorithm, transport=transport)

    with pytest.raises(
        InputError, match=f"transport = '{transport}': {algorithm} has no collectives, and .*must be 'auto', 'shm'"
    ):
        run_local(2, program)


def test_the_cases_cover_what_they_say() -> None:
    """The models above have what their names say."""
    weight = images(0)[1].weight
    assert not weight.is_contiguous()
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not images(0).gaps.is_contiguous()
    assert {p.dtype for p in mixed(0).parameters()} == {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    assert {missing(rank, t) for rank in range(RANKS) for t in range(3)} == {None, "3.weight"}
