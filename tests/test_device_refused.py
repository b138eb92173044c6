"""Devices that are not what they should be: models that are split or move, too little memory, and what the system does not permit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from device_training import dense, images, loss_of  # noqa: E402  after the checks that they can be imported
from devices import DEVICES, option, tensors  # noqa: E402

import wagma  # noqa: E402
from wagma.errors import CollectiveTimeout, InputError, ModelChanged, OutOfDeviceMemory, PeerFailed  # noqa: E402
from wagma.real.devices import carrier  # noqa: E402
from wagma.real.devices.model import place_of  # noqa: E402
from wagma.real.devices.place import Place  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402
from wagma.real.wrapper.distribute import distribute  # noqa: E402
from wagma.workloads.flat import FlatView  # noqa: E402
from wagma.workloads.optimizers import SGD  # noqa: E402

on_devices = pytest.mark.parametrize("device", DEVICES)


def wrapped(comm: LocalCommunicator, model: Any, device: str | None, algorithm: str = "local_sgd", **options: Any) -> Any:
    given = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return distribute(
        SGD(given, lr=0.05), model, algorithm, sync_period=2, comm=comm, timeout_s=20.0,
        device=None if device is None else option(device), **options,
    )  # fmt: skip


def steps(comm: LocalCommunicator, model: Any, optimizer: Any, device: str, count: int) -> None:
    for t in range(count):
        optimizer.zero_grad()
        loss_of(model, comm.rank, t, tensors(device)).backward()
        optimizer.step()


# -- where the model is --------------------------------------------------------------------------------------------------------------


def test_a_model_that_is_split_over_devices() -> None:
    """meta stands for a second device: a machine may have only one."""
    named = [("first", torch.nn.Parameter(torch.zeros(2))), ("second", torch.nn.Parameter(torch.zeros(2, device="meta")))]
    with pytest.raises(
        InputError, match=r"^parameter 'first' is on cpu, and 'second' on meta: all trained parameters must be on one device$"
    ):
        place_of(FlatView(named), None, 0)
    with pytest.raises(InputError, match=r"^parameter 'second' is on meta: must be on the CPU or on a CUDA device$"):
        place_of(FlatView(named[1:]), None, 0)
    with pytest.raises(InputError, match=r"^device = 'emulated': parameter 'second' is on meta: must be on the CPU$"):
        place_of(FlatView(named[1:]), "emulated", 0)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", 0, True, "emulated:0"])
def test_the_option_takes_no_other_device(device: Any) -> None:
    """Where the tensors are says the rest."""

    def program(comm: LocalCommunicator) -> None:
        model = dense(0)
        with pytest.raises(InputError, match=r"device = .*: must be None \(where the tensors are\) or 'emulated'$"):
            distribute(SGD(model.parameters(), lr=0.1), model, comm=comm, timeout_s=10.0, device=device)

    run_local(2, program)


@on_devices
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: data.double(), r"is torch\.float64 since distribute, and was torch\.float32"),
        (lambda data: data[:3], r"has shape \(3, 7\) since distribute, and had \(5, 7\)"),
    ],
    ids=["dtype", "shape"],
)
def test_a_parameter_that_is_not_what_it_was(change: Any, complaint: str, device: str) -> None:
    def program(comm: LocalCommunicator) -> None:
        model = dense(0).to(tensors(device))
        with wrapped(comm, model, device) as optimizer:
            steps(comm, model, optimizer, device, 2)
            if comm.rank:
                model[3].weight.data = change(model[3].weight.data)
                model[3].weight.grad = None
            optimizer.skip()
            optimizer.skip()

    with pytest.raises(ModelChanged, match=rf"^rank 1: parameter '3\.weight' {complaint}; wrap anew after the change"):
        run_local(2, program)


@pytest.mark.parametrize("ways", [("cuda:0", "cpu"), ("cpu", "cuda:0")], ids=["to the host", "to a GPU"])
def test_a_parameter_that_moves(ways: tuple[str, str]) -> None:
    """To the host and from it; on a GPU in the test below. Here the parameter stands still, and what is remembered of it moves."""
    before, now = ways
    view = FlatView([("weight", torch.nn.Parameter(torch.zeros(2)))], who="rank 3: ")
    moved = torch.zeros(2)
    shape, dtype, _ = view._before[0]
    view._before[0] = (shape, dtype, torch.device(before))
    if now == "cpu":
        with pytest.raises(
            ModelChanged,
            match=r"^rank 3: parameter 'weight' is on cpu since distribute, and was on cuda:0; wrap anew after the change$",
        ):
            view.read()
        with pytest.raises(ModelChanged, match=r"is on cpu since distribute, and was on cuda:0"):
            view.write(moved.numpy())
    else:
        view.named[0] = ("weight", torch.zeros(2, device="meta"))
        with pytest.raises(ModelChanged, match=r"is on meta since distribute, and was on cpu"):
            view.read()


@pytest.mark.gpu
@pytest.mark.parametrize("ways", [("cuda:0", "cpu"), ("cpu", "cuda:0")], ids=["to the host", "to a GPU"])
def test_a_model_that_moves_after_wrapping(ways: tuple[str, str]) -> None:
    from devices import why_no_gpu

    if reason := why_no_gpu():
        pytest.skip(reason)
    before, now = ways

    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(4, 4).to(before)
        with wrapped(comm, model, None) as optimizer:
            optimizer.skip()
            model.to(now)
            optimizer.skip()

    with pytest.raises(ModelChanged, match=rf"parameter 'weight' is on {now} since distribute, and was on {before}"):
        run_local(2, program)


# -- mixed ranks ---------------------------------------------------------------------------------------------------------------------


@on_devices
def test_ranks_with_and_without_a_device_together(device: str) -> None:
    """Those on a device go through host memory, and all have the same model after a sync."""

    def program(comm: LocalCommunicator) -> tuple[str, bytes]:
        where = device if comm.rank != 1 else None
        model = dense(0).to("cpu" if where is None else tensors(device))
        with wrapped(comm, model, where) as optimizer:
            for t in range(4):
                optimizer.zero_grad()
                loss_of(model, comm.rank, t, "cpu" if where is None else tensors(device)).backward()
                optimizer.step()
        return optimizer.transport, model[3].weight.detach().cpu().numpy().tobytes()

    names, weights = zip(*run_local(3, program), strict=True)
    assert len(set(weights)) == 1
    assert names[1].endswith(" (rank 1's model is in host memory)")
    assert "pinned" not in names[1]
    for name in (names[0], names[2]):
        assert name.endswith("through pinned host memory (rank 1's model is in host memory)"), name


@on_devices
@pytest.mark.parametrize("transport", ["ipc", "cuda-mpi"])
def test_buffers_on_devices_need_models_there(transport: str, device: str) -> None:
    def program(comm: LocalCommunicator) -> str:
        where = device if comm.rank else None
        model = dense(0).to("cpu" if where is None else tensors(device))
        with pytest.raises(InputError) as caught:
            wrapped(comm, model, where, transport=transport)
        return str(caught.value)

    said = run_local(2, program)
    assert set(said) == {f"transport = '{transport}': rank 0's model is in host memory: must be 'auto', 'shm' or 'mpi'"}


@on_devices
def test_threads_have_no_mpi(device: str) -> None:
    def program(comm: LocalCommunicator) -> str:
        with pytest.raises(InputError) as caught:
            wrapped(comm, dense(0).to(tensors(device)), device, transport="cuda-mpi")
        return str(caught.value)

    assert set(run_local(2, program)) == {"transport = 'cuda-mpi': the ranks are threads of one process, without MPI"}


# -- memory --------------------------------------------------------------------------------------------------------------------------


@on_devices
def test_no_memory_for_a_copy_at_publish(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is not contiguous needs one; the others hear of it."""
    failing: list[bool] = []
    real = carrier.empty

    def empty(*given: Any) -> Any:
        if failing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
        return real(*given)

    monkeypatch.setattr(carrier, "empty", empty)
    heard: list[str] = []

    def program(comm: LocalCommunicator) -> None:
        model = images(0).to(tensors(device))
        try:
            with wrapped(comm, model, device) as optimizer:
                steps(comm, model, optimizer, device, 2)
                comm.allgather(None)
                if comm.rank:
                    failing.append(True)
                    steps(comm, model, optimizer, device, 2)
                else:
                    with pytest.raises(PeerFailed) as caught:
                        optimizer.close()
                    heard.append(str(caught.value))
        except PeerFailed:
            assert comm.rank == 0

    with pytest.raises(OutOfDeviceMemory) as caught:
        run_local(2, program)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("rank 1: parameter 'gaps': no memory on "), text
    assert text.endswith("for a copy of 48 bytes: CUDA out of memory. Tried to allocate 2.00 GiB."), text
    assert isinstance(caught.value, MemoryError)
    assert heard
    assert "OutOfDeviceMemory" in heard[0]


LIMITED = """
import torch, wagma
from wagma.real.local import run_local
from wagma.workloads.optimizers import SGD  # torch's own takes a process a second to import

def program(comm, size, transport):
    model = torch.nn.Linear(size, size, bias=False)
    options = dict(sync_period=1, comm=comm, timeout_s=20, device="emulated", transport=transport)
    try:
        with wagma.distribute(SGD(model.parameters(), 0.1), model, "local_sgd", **options) as wrapped:
            model(torch.ones(1, size)).sum().backward()
            wrapped.step()
        return wrapped.transport
    except wagma.WagmaError as error:
        return f"{{type(error).__name__}}: {{error}}"

for size, transport in {runs!r}:
    print(*run_local(2, lambda comm: program(comm, size, transport)), sep=" | ")
"""


def limited(runs: list[tuple[int, str]], **environment: str) -> list[list[str]]:
    """What each rank of each run says, in a process whose emulated device is as `environment` has it, which is read once."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(runs=runs)],
        capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split(" | ") for line in done.stdout.splitlines()]


def test_a_device_that_is_too_small_and_shares_nothing() -> None:
    """Host memory that may not be pinned is copied from all the same."""
    small, large, named, host = limited(
        [(4, "auto"), (2400, "auto"), (4, "ipc"), (2400, "shm")],
        WAGMA_EMULATED_MEMORY="48000000", WAGMA_EMULATED_REFUSE="ipc,pin",
    )  # fmt: skip
    for text in small:  # goes on through host memory, and says why
        assert re.search(r"through .*host memory.* \(no ipc: rank 0: ", text), text
        assert "; no cuda-mpi: the ranks are threads of one process, without MPI)" in text, text
    for text in large:  # 2400 * 2400 float32, and more than one buffer
        assert text.startswith("OutOfDeviceMemory: rank 0: "), text
        assert "buffers of 23,040,000 bytes: device emulated:0: " in text, text
        assert text.endswith("; transport = 'shm' or 'mpi' keeps them in host memory"), text
    for text in named:
        assert text.startswith("WagmaError: transport = 'ipc': rank 0: "), text
    for text in host:
        assert "Error" not in text, text


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("DEVICES", "x", "must be a whole number from 0 to 16"),
        ("MEMORY", "lots", "must be a whole number from 0 to 9223372036854775807"),
        ("DELAY_US", "-1", "must be a whole number from 0 to 10000000"),
        ("SEED", "x", "must be a whole number from 0 to 9223372036854775807"),
        ("REFUSE", "foo", "must be a list of ipc, ipc-open, pin, peer"),
    ],
)
def test_settings_that_are_nonsense(name: str, value: str, allowed: str) -> None:
    """In a process of its own: what is allowed is read once. Through the functions that all the options go through."""
    program = """
import wagma
from wagma.real.devices.choice import choose
from wagma.real.devices.place import emulated_index, place_at

for ask in (lambda: choose("emulated", 1, 1), lambda: emulated_index(1), lambda: place_at("emulated")):
    try:
        ask()
    except wagma.InputError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, env=os.environ | {f"WAGMA_EMULATED_{name}": value}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = f"WAGMA_EMULATED_{name} = {value}: {allowed}"
    assert done.stdout.splitlines() == [f"rank 1: --device emulated: {said}", *[f"device = 'emulated': {said}"] * 2]


# -- the end -------------------------------------------------------------------------------------------------------------------------


def test_a_device_that_is_never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own wait has no limit; it is left behind, and what it raises in the end nobody hears."""
    done, given = threading.Event(), []

    def synchronize(index: int) -> None:
        given.append(index)
        assert done.wait(60)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    busy = Place("cuda", 3)
    with pytest.raises(CollectiveTimeout, match=r"^rank 2: cuda:3 is not done with what the program gave it after 0.05 s$"):
        busy.settle(2, 0.05)
    done.set()
    busy.settle(2, 60.0)
    assert given == [3, 3]


def test_a_device_that_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(index: int) -> None:
        raise RuntimeError(f"CUDA error on {index}: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(RuntimeError, match=r"^CUDA error on 0: an illegal memory access"):
        Place("cuda").settle(0, 60.0)


def test_close_once_more_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [True]  # of rank 1

    def settle(place: Place, rank: int, limit_s: float) -> None:
        if rank == 1 and busy:
            raise CollectiveTimeout(f"rank 1: {place} is not done after {limit_s:g} s")

    monkeypatch.setattr(Place, "settle", settle)

    def program(comm: LocalCommunicator) -> bytes:
        model = dense(0)
        optimizer = wrapped(comm, model, "emulated")
        steps(comm, model, optimizer, "emulated", 2)
        if comm.rank == 1:
            with pytest.raises(CollectiveTimeout, match=r"^rank 1: emulated:0 is not done after 20 s$"):
                optimizer.close()
            busy.clear()
        optimizer.close()
        return bytes(model[3].weight.detach().numpy().tobytes())

    assert len(set(run_local(2, program))) == 1


def test_every_error_has_its_name() -> None:
    assert issubclass(wagma.OutOfDeviceMemory, wagma.DeviceError)
    assert issubclass(wagma.OutOfDeviceMemory, MemoryError)
