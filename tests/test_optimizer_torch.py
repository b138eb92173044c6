"""The distributed optimizer where a program takes it for one of torch's: hooks, groups, schedulers, state, dtypes, compiled models."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from torch.optim import optimizer as torch_optimizer  # noqa: E402  after the checks that they can be imported
from training import (  # noqa: E402
    adam,
    all_same,
    backward,
    content,
    distribute,
    linear,
    loop,
    normed,
    on,
    parameters,
    same,
    sgd,
)

from wagma.errors import InputError  # noqa: E402
from wagma.workloads.flat import FlatView  # noqa: E402


def test_hooks_of_both_optimizers_and_global_ones_run_once_a_step() -> None:
    called: list[tuple[str, str]] = []

    def note(name: str) -> Any:
        return lambda optimizer, *_: called.append((name, type(optimizer).__name__))

    model = linear(0)
    inner = sgd(model)
    inner.register_step_pre_hook(note("inner before"))
    inner.register_step_post_hook(note("inner after"))
    handles = [
        torch_optimizer.register_optimizer_step_pre_hook(note("global before")),
        torch_optimizer.register_optimizer_step_post_hook(note("global after")),
    ]
    try:
        # P=1 from the main thread: torch's global hooks are of the whole process.
        def program(comm: Any) -> None:
            with distribute(inner, model, comm=comm) as optimizer:
                optimizer.register_step_pre_hook(note("outer before"))
                optimizer.register_step_post_hook(note("outer after"))
                loop(comm, model, optimizer, 1)

        on(1, program)
    finally:
        for handle in handles:
            handle.remove()
    outer, own = "DistributedOptimizer", "SGD"
    assert called == [
        ("outer before", outer), ("global before", own), ("inner before", own), ("inner after", own), ("global after", own),
        ("outer after", outer),
    ]  # fmt: skip


def test_a_post_hook_sees_the_averaged_model_and_a_pre_hook_may_change_the_closure() -> None:
    def program(comm: Any) -> Any:
        model = linear(0)
        seen = []
        with distribute(sgd(model), model, sync_period=1, comm=comm) as optimizer:
            optimizer.register_step_pre_hook(lambda _, args, kwargs: ((args[0], lambda: 7.0), {}))
            optimizer.register_step_post_hook(lambda *_: seen.append(parameters(model)))
            backward(model, torch.Generator().manual_seed(comm.rank))
            assert optimizer.step(lambda: 1 / 0) == 7.0
        return seen[0]

    assert all_same(on(3, program))


def test_state_dict_hooks_run_once_on_either_optimizer() -> None:
    def program(comm: Any) -> list[str]:
        model = linear(0)
        inner = sgd(model, momentum=0.9)
        with distribute(inner, model, comm=comm) as optimizer:
            called = []
            for name, one in (("inner", inner), ("outer", optimizer)):
                one.register_state_dict_pre_hook(lambda _, name=name: called.append(f"{name} before"))
                one.register_state_dict_post_hook(lambda _, state, name=name: {**state, name: len(called)})
                one.register_load_state_dict_pre_hook(lambda _, state, name=name: called.append(f"{name} load"))
                one.register_load_state_dict_post_hook(lambda _, name=name: called.append(f"{name} loaded"))
            loop(comm, model, optimizer, 2)
            state = optimizer.state_dict()
            assert state["inner"] == state["outer"] == 2
            optimizer.load_state_dict(state)
        return called

    expected = ["outer before", "inner before", "outer load", "inner load", "inner loaded", "outer loaded"]
    assert on(2, program) == [expected] * 2


def test_a_state_loaded_into_the_wrapped_optimizer_is_seen() -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        inner = sgd(model, momentum=0.9)
        with distribute(inner, model, comm=comm) as optimizer:
            loop(comm, model, optimizer, 1)
            state = copy.deepcopy(inner.state_dict())
            state["param_groups"][0]["lr"] = 0.25
            inner.load_state_dict(state)
            assert optimizer.param_groups is inner.param_groups
            assert optimizer.state is inner.state
            assert optimizer.param_groups[0]["lr"] == 0.25
            # And a plain optimizer, without wagma, takes what is saved.
            sgd(linear(0), momentum=0.9).load_state_dict(optimizer.state_dict())

    on(2, program)


def test_groups_can_be_added_of_parameters_that_are_trained() -> None:
    def program(comm: Any) -> Any:
        model = linear(comm.rank, (3, 2))
        foreign = torch.nn.Parameter(torch.zeros(2))
        with distribute(torch.optim.SGD(model[0].parameters(), lr=0.1), model, sync_period=1, comm=comm) as optimizer:
            before = parameters(model[1])
            loop(comm, model, optimizer, 2)
            assert same(before, parameters(model[1]))  # nobody updates it so far
            optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.5})
            loop(comm, model, optimizer, 2)
            assert not same(before, parameters(model[1]))
            assert [group["lr"] for group in optimizer.optimizer.param_groups] == [0.1, 0.5]
            with pytest.raises(InputError, match=r"parameter 0 of the group, of shape \(2,\), was not one of the model's"):
                optimizer.add_param_group({"params": foreign})
        return content(model)

    assert all_same(on(2, program))


@pytest.mark.parametrize("early", [True, False], ids=["made before distribute", "made after"])
@pytest.mark.parametrize("given", ["wrapped", "wrapper"])
def test_schedulers_warn_of_nothing_even_if_the_first_update_is_skipped(early: bool, given: str) -> None:
    if early and given == "wrapper":
        pytest.skip("there is none yet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        def program(comm: Any) -> float:
            model = linear(0)
            inner = sgd(model, lr=0.8)
            schedule = torch.optim.lr_scheduler.StepLR
            scheduler = schedule(inner, 1, 0.5) if early else None
            with distribute(inner, model, comm=comm) as optimizer:
                scheduler = scheduler or schedule(optimizer if given == "wrapper" else inner, 1, 0.5)
                for iteration in range(3):
                    backward(model, torch.Generator().manual_seed(comm.rank))
                    if iteration == comm.rank == 0:
                        optimizer.skip()
                    else:
                        optimizer.step()
                    scheduler.step()
            return inner.param_groups[0]["lr"]

        assert on(2, program) == [0.1] * 2


def test_clipping_and_accumulation_are_what_they_are_without_wagma() -> None:
    def train(model: Any, optimizer: Any) -> list[Any]:
        generator = torch.Generator().manual_seed(3)
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(3):
                backward(model, generator)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
        return content(model)

    alone = linear(1)
    expected = train(alone, adam(alone))

    def program(comm: Any) -> Any:
        model = linear(1)
        # Equal data and nothing but syncs, so that every mean is of equal models.
        with distribute(adam(model), model, comm=comm, sync_period=1) as optimizer:
            return train(model, optimizer)

    assert all(same(expected, got) for got in on(2, program))


def test_a_compiled_model_is_the_same_model() -> None:
    """Compiled on one rank only: names differ by torch.compile's own prefix, and nothing else."""
    plain = [normed(0) for _ in range(2)]
    models = [torch.compile(plain[0], backend="eager"), plain[1]]

    def program(comm: Any) -> Any:
        model = models[comm.rank]
        with distribute(sgd(model), model, sync_period=2, comm=comm) as optimizer:
            with pytest.raises(InputError, match="rank 0: model: it is distributed already"):
                distribute(sgd(plain[comm.rank]), plain[comm.rank], comm=comm)
            loop(comm, model, optimizer, 4)
        return parameters(plain[comm.rank])

    assert all_same(on(2, program))


@pytest.mark.parametrize(
    ("dtypes", "travels"),
    [
        ((torch.bfloat16, torch.bfloat16), "bfloat16"),
        ((torch.float16, torch.float16), "float16"),
        ((torch.float64, torch.float64), "float64"),
        ((torch.float32, torch.bfloat16), "float32"),
        ((torch.bfloat16, torch.float16), "float32"),
        ((torch.float16, torch.float64), "float64"),
    ],
)
@pytest.mark.parametrize("algorithm", ["wagma_sgd", "allreduce_sgd"])
def test_models_of_several_dtypes_end_alike(dtypes: tuple[Any, Any], travels: str, algorithm: str) -> None:
    def program(comm: Any) -> Any:
        model = linear(comm.rank, (3, 2))
        model[0].to(dtypes[0])
        model[1].to(dtypes[1])
        assert FlatView(list(model.named_parameters())).kernel_dtype == travels
        with distribute(sgd(model), model, algorithm, sync_period=1, comm=comm) as optimizer:
            start = parameters(model)
            for iteration in range(4):
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, 0.5 * comm.rank + iteration)
                optimizer.step()
        assert [parameter.dtype for parameter in model.parameters()] == [dtypes[0]] * 2 + [dtypes[1]] * 2
        assert not same(start, parameters(model))
        return parameters(model)

    models = on(2, program)
    assert all_same(models)
    # The mean of the ranks' steps, as closely as the dtypes can hold it.
    start = linear(0, (3, 2))
    moved = [float((a.double() - b.double()).mean()) for a, b in zip(models[0], parameters(start), strict=True)]
    assert all(abs(change + 0.1 * (0 + 1 + 2 + 3 + 4 * 0.25)) < 0.02 for change in moved), moved


def test_a_mean_of_half_precision_values_is_rounded_once() -> None:
    """bfloat16 has 8 bits: (1 + 1.0078125 + 1.0078125) / 3 lies between two of them."""

    def program(comm: Any) -> float:
        model = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)), torch.nn.Parameter(torch.zeros(1))]
        )
        with distribute(sgd(model, lr=1.0), model, sync_period=1, comm=comm) as optimizer:
            model[0].grad = torch.tensor([-1.0 if comm.rank == 0 else -1.0078125], dtype=torch.bfloat16)
            optimizer.step()
        return float(model[0].detach())

    assert on(3, program) == [1.0078125] * 3


def test_tied_weights_stay_tied_and_frozen_ones_frozen() -> None:
    def program(comm: Any) -> Any:
        model = linear(comm.rank, (3, 5), (5, 3))
        model[2].weight = model[0].weight
        model[1].weight.requires_grad_(False)
        with distribute(sgd(model, momentum=0.9), model, sync_period=2, comm=comm) as optimizer:
            frozen = model[1].weight.detach().clone()
            loop(comm, model, optimizer, 4)
            assert torch.equal(frozen, model[1].weight)
        assert model[2].weight is model[0].weight
        return content(model)

    assert all_same(on(2, program))


def test_optimizers_whose_step_takes_no_closure_work() -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

        def step(self) -> None:  # type: ignore[override]
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter -= 0.1 * parameter.grad

    def program(comm: Any) -> Any:
        model = linear(comm.rank)
        with distribute(Plain(model.parameters()), model, sync_period=2, comm=comm) as optimizer:
            loop(comm, model, optimizer, 2)
        return content(model)

    assert all_same(on(2, program))


def test_copies_and_pickles_are_refused_but_states_are_not() -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        with distribute(sgd(model), model, comm=comm) as optimizer:
            for attempt in (copy.deepcopy, pickle.dumps):
                with pytest.raises(InputError, match=r"cannot be copied or pickled; its state_dict\(\) can"):
                    attempt(optimizer)
            pickle.dumps(optimizer.state_dict())
            assert "lr: 0.1" in repr(optimizer)

    on(1, program)


def test_a_group_of_a_set_is_refused_as_torch_does() -> None:
    """Its order differs between ranks."""

    def program(comm: Any) -> None:
        model = linear(0, (3, 2))
        with distribute(torch.optim.SGD(model[0].parameters(), lr=0.1), model, comm=comm) as optimizer:
            with pytest.raises(TypeError, match="ordered collections"):
                optimizer.add_param_group({"params": set(model[1].parameters())})
            assert len(optimizer.param_groups) == 1

    on(1, program)
