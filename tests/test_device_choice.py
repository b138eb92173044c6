"""Which device a rank takes for `wagma train --device`, why it has none, and that models and data come there."""

from __future__ import annotations

import types
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from wagma.errors import InputError, MissingDependencyError, WagmaError  # noqa: E402  after the checks
from wagma.real.devices import choice  # noqa: E402
from wagma.real.devices.choice import Choice, choose, device_option  # noqa: E402
from wagma.real.devices.place import emulated_index, place_at  # noqa: E402
from wagma.scenario import load  # noqa: E402
from wagma.workloads import workload  # noqa: E402


@pytest.mark.parametrize("text", ["cpu", "cuda", "cuda:0", "cuda:12", "emulated"])
def test_what_can_be_asked_for(text: str) -> None:
    assert device_option(text) == text


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "cpu:0", "CUDA", "emulated:1", "cuda:²"])
def test_what_cannot(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be cpu, cuda, cuda:N or emulated$"):
        device_option(text)


def torch_like(cuda: str | None, available: bool, count: int = 0) -> Any:
    """As much of torch as is asked."""
    return types.SimpleNamespace(
        __version__="2.13.0+x", version=types.SimpleNamespace(cuda=cuda),
        cuda=types.SimpleNamespace(is_available=lambda: available, device_count=lambda: count),
    )  # fmt: skip


def kernels_like(count: int, why: str = "", broken: str = "") -> Any:
    """As much of wagma._native_cuda as is asked."""

    def device(index: int) -> object:
        if broken:
            raise WagmaError(broken)
        return object()

    return types.SimpleNamespace(devices=lambda: count, why_no_device=why, device=device)


def arrange(monkeypatch: pytest.MonkeyPatch, torch: Any, kernels: Any) -> None:
    def cuda_native() -> Any:
        if isinstance(kernels, Exception):
            raise kernels
        return kernels

    monkeypatch.setattr(choice, "_torch", lambda: torch)
    monkeypatch.setattr(choice, "cuda_native", cuda_native)


def test_ranks_of_a_machine_take_turns_with_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    arrange(monkeypatch, torch_like("13.0", True, 3), kernels_like(3))
    assert [choose("cuda", 10 + local, local).tensors for local in range(7)] == [f"cuda:{n}" for n in (0, 1, 2, 0, 1, 2, 0)]
    assert choose("cuda:2", 5, 1) == Choice("cuda:2")
    assert choose("cuda", 0, 0).on_gpu
    assert str(choose("cuda", 4, 4)) == "cuda:1"
    arrange(monkeypatch, torch_like("13.0", True, 1), kernels_like(1))  # all on one
    assert {choose("cuda", rank, rank).tensors for rank in range(4)} == {"cuda:0"}


def test_without_a_gpu() -> None:
    assert choose("cpu", 3, 1) == Choice()
    assert choose("emulated", 3, 1) == Choice("cpu", emulated=True)
    assert str(choose("emulated", 3, 1)) == "emulated"
    assert not choose("emulated", 3, 1).on_gpu


WHY = "cudaGetDeviceCount: CUDA driver version is insufficient for CUDA runtime version"


@pytest.mark.parametrize(
    ("option", "torch", "kernels", "complaint"),
    [
        ("cuda", torch_like(None, False), kernels_like(1), r"this torch, 2\.13\.0\+x, was built without CUDA"),
        (
            "cuda", torch_like("13.0", True, 1), MissingDependencyError("wagma was built without CUDA kernels: nvcc not found"),
            r"wagma was built without CUDA kernels: nvcc not found$",
        ),
        ("cuda", torch_like("13.0", False), kernels_like(0, WHY), rf"{WHY}$"),
        ("cuda", torch_like("13.0", True, 1), kernels_like(1, broken="no kernel image for sm_60"), r"no kernel image for sm_60$"),
        ("cuda:0", torch_like("13.0", False), kernels_like(2), r"torch 2\.13\.0\+x cannot use the 2 that the driver shows$"),
        ("cuda:1", torch_like("13.0", True, 1), kernels_like(1), r"it sees 1 GPU: N must be below 1$"),
        ("cuda:9", torch_like("13.0", True, 8), kernels_like(8), r"it sees 8 GPUs: N must be below 8$"),
    ],
)  # fmt: skip
def test_why_a_rank_has_none(option: str, torch: Any, kernels: Any, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrange(monkeypatch, torch, kernels)
    with pytest.raises(InputError, match=rf"^rank 6: --device {option}: {complaint}") as caught:
        choose(option, 6, 2)
    assert "\n" not in str(caught.value)


def test_emulated_devices_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wagma._native.emulated_devices", lambda: 0)
    none = r"WAGMA_EMULATED_DEVICES = 0 says that there is none: must be at least 1$"
    with pytest.raises(InputError, match=rf"^rank 6: --device emulated: {none}"):
        choose("emulated", 6, 2)
    for asked in (lambda: emulated_index(6), lambda: place_at("emulated")):
        with pytest.raises(InputError, match=rf"^device = 'emulated': {none}"):
            asked()


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_torch_without_cuda_says_so() -> None:
    with pytest.raises(
        InputError, match=r"^rank 1: --device cuda: this torch, .*, was built without CUDA \(docs/install\.md\)$"
    ):
        choose("cuda", 1, 1)


# -- workloads ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["digits", "text"])
def test_models_and_batches_come_to_the_device(scenario: str) -> None:
    """torch's device without memory refuses what is elsewhere, as a GPU does: nothing may be left on the host."""
    pytest.importorskip("sklearn")
    data = workload(load(scenario))
    data.to(torch.device("meta"))
    model = data.model().to("meta")
    loss = data.stream(0).loss(model, 0)
    assert loss.is_meta
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in model.parameters())


def test_an_episode_is_collected_on_the_host_and_learned_from_on_the_device() -> None:
    pytest.importorskip("gymnasium")
    from wagma.workloads.rl import Episode, Rl

    data = workload(load("rl"))
    assert isinstance(data, Rl)
    stream = data.stream(0)
    model = data.model()
    loss = stream.loss(model, 0)
    state = stream.state_dict()
    data.to(torch.device("meta"))
    again = data.stream(0)
    again.load_state_dict(state)
    state = again.state_dict()
    assert {name: value.device.type for name, value in state["episode"].items()} == dict.fromkeys(state["episode"], "meta")
    assert Episode(**state["episode"]).loss(model.to("meta")).is_meta
    assert not loss.is_meta
