"""The entrance for PyTorch users, with ranks as threads: what a training loop relies on, and what it may get wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from real_ranks import registered  # noqa: E402  after the checks that they can be imported

from wagma.algorithms import ALGORITHMS as ALL  # noqa: E402
from wagma.algorithms import Collectives, register  # noqa: E402
from wagma.core.digest import digest  # noqa: E402
from wagma.core.effects import Algorithm, ApplyUpdate, ComputeGradient, RankView, Scale  # noqa: E402
from wagma.errors import CollectiveTimeout, InputError, ModelMismatch  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402
from wagma.real.seeing.recorder import assemble  # noqa: E402
from wagma.real.wrapper.distribute import distribute  # noqa: E402
from wagma.scenario import read  # noqa: E402
from wagma.trace import load_trace  # noqa: E402
from wagma.validate import validate  # noqa: E402
from wagma.workloads.flat import FlatGradient, FlatView  # noqa: E402
from wagma.workloads.seeded import seeded  # noqa: E402

ALGORITHMS = ("wagma_sgd", "allreduce_sgd", "local_sgd", "ideal")


def model_for(seed: int, *more: Any) -> Any:
    with seeded(seed):
        return torch.nn.Sequential(torch.nn.Linear(5, 3), *more)


def train(comm: Any, model: Any, optimizer: Any, iterations: int = 4, **options: Any) -> Any:
    """A plain loop on data that differ between ranks."""
    generator = torch.Generator().manual_seed(100 + comm.rank)
    with distribute(optimizer, model, comm=comm, sync_period=2, **options) as wrapped:
        for _ in range(iterations):
            wrapped.zero_grad()
            model(torch.randn(8, 5, generator=generator)).square().mean().backward()
            wrapped.step()
    return wrapped


def content(model: Any) -> list[Any]:
    return [value.clone().numpy() for value in model.state_dict().values()]


def all_equal(models: list[list[Any]]) -> bool:
    return all(np.array_equal(a, b) for other in models[1:] for a, b in zip(models[0], other, strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["sgd", "adam"])
def test_models_start_alike_and_end_alike_after_a_sync(algorithm: str, make: Callable[..., Any]) -> None:
    def program(comm: LocalCommunicator) -> list[Any]:
        model = model_for(comm.rank)
        if algorithm == "ideal":
            distribute(make(model.parameters(), lr=0.1), model, algorithm, comm=comm)
        else:
            train(comm, model, make(model.parameters(), lr=0.1), algorithm=algorithm)
        return content(model)

    assert all_equal(run_local(3, program))


def test_one_rank_trains_as_without_wagma() -> None:
    alone = model_for(1)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(100)
    for _ in range(4):
        optimizer.zero_grad()
        alone(torch.randn(8, 5, generator=generator)).square().mean().backward()
        optimizer.step()

    def program(comm: LocalCommunicator) -> list[Any]:
        model = model_for(1)
        train(comm, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        return content(model)

    assert all_equal([content(alone), *run_local(1, program)])


@pytest.mark.parametrize("algorithm", ALL)
def test_records_of_a_rank_alone_cost_no_copy_of_its_model(
    algorithm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without digests nobody asks for values: the model goes nowhere, the trace is what it would be, and the training, too."""
    moved: list[str] = []
    for name in ("_read", "_write"):
        for view in (FlatView, FlatGradient):
            real = getattr(view, name)
            monkeypatch.setattr(view, name, lambda *a, real=real, name=name: moved.append(name) or real(*a))

    def program(comm: LocalCommunicator, **options: Any) -> list[Any]:
        model = model_for(1)
        optimizer = distribute(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, algorithm, sync_period=3, comm=comm, **options
        )
        generator = torch.Generator().manual_seed(100)
        moved.clear()
        with optimizer:
            for _ in range(7):
                optimizer.zero_grad()
                model(torch.randn(8, 5, generator=generator)).square().mean().backward()
                optimizer.step()
            assert moved == []
        return content(model)

    path = tmp_path / "alone.jsonl"
    assert all_equal([*run_local(1, program), *run_local(1, lambda comm: program(comm, trace=path))])
    trace = load_trace(path)
    assert validate(trace) == []
    assert [a.iteration for a in trace.iterations] == list(range(7))
    assert len(trace.executions) == {"wagma_sgd": 7, "eager_sgd": 7, "allreduce_sgd": 7, "local_sgd": 2}.get(algorithm, 0)


def test_frozen_parameters_and_buffers_start_from_rank_0() -> None:
    def program(comm: LocalCommunicator) -> list[Any]:
        model = model_for(comm.rank, torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
        model[1].running_mean += comm.rank
        model[1].num_batches_tracked += comm.rank
        for parameter in model[2].parameters():
            parameter.requires_grad_(False)
        distribute(torch.optim.SGD(model[0].parameters(), lr=0.1), model, comm=comm).close()
        return content(model)

    assert all_equal(run_local(3, program))


def test_a_gradient_that_only_one_rank_has_reaches_all() -> None:
    """Left as None elsewhere, it would let that rank's model drift away for good."""

    def program(comm: LocalCommunicator) -> list[Any]:
        model = model_for(0, torch.nn.Linear(3, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with distribute(optimizer, model, "allreduce_sgd", comm=comm) as wrapped:
            for _ in range(3):
                wrapped.zero_grad()
                inputs = torch.full((2, 5), 1.0 + comm.rank)
                (model if comm.rank == 1 else model[0])(inputs).square().mean().backward()
                wrapped.step()
        return content(model)

    models = run_local(2, program)
    assert all_equal(models)
    assert not np.array_equal(models[0][2], content(model_for(0, torch.nn.Linear(3, 3)))[2])


def test_a_skipped_update_joins_all_the_same() -> None:
    """What a loss scaler does on an overflow: the rank's model stays, nobody hangs, and the trace says so."""

    def program(comm: LocalCommunicator) -> Any:
        model = model_for(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with distribute(optimizer, model, comm=comm, sync_period=3, record=True) as wrapped:
            for iteration in range(6):
                wrapped.zero_grad()
                model(torch.ones(2, 5) * (comm.rank + 1)).square().mean().backward()
                if iteration == 1 and comm.rank == 1:
                    wrapped.skip()
                else:
                    wrapped.step()
        return wrapped.notes(), content(model)

    notes, models = zip(*run_local(2, program), strict=True)
    assert all_equal(list(models))
    skipped = [(start.rank, r.iteration) for start, _, records, _ in notes for r in records if r.skipped]
    assert skipped == [(1, 1)]
    scenario = read(
        {
            "name": "skip", "ranks": 2, "iterations": 6, "model": {"parameters": 18}, "algorithm": {"sync_period": 3},
            "work": {"per_rank": 1, "unit": "steps"}, "compute": {"kind": "constant", "seconds": 1.0},
        },
        "test",
    )  # fmt: skip
    assert validate(assemble(scenario, "wagma_sgd", "model", list(notes))) == []


def test_scheduler_closure_and_state_dict() -> None:
    def program(comm: LocalCommunicator) -> tuple[float, float, dict[str, Any], dict[str, Any]]:
        model = model_for(0)
        inner = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.5)
        with distribute(inner, model, comm=comm) as wrapped:
            scheduler = torch.optim.lr_scheduler.StepLR(wrapped, 1, gamma=0.5)
            losses = []

            def closure() -> float:
                wrapped.zero_grad()
                loss = model(torch.ones(2, 5)).square().mean()
                loss.backward()
                losses.append(loss.item())
                return losses[-1]

            returned = wrapped.step(closure)
            scheduler.step()
            wrapped.load_state_dict(wrapped.state_dict())
            wrapped.step(closure)
            assert wrapped.iteration == 2
        assert returned == losses[0]
        return inner.param_groups[0]["lr"], wrapped.param_groups[0]["lr"], inner.state_dict(), wrapped.state_dict()

    for inner_lr, outer_lr, inner_state, outer_state in run_local(2, program):
        assert inner_lr == outer_lr == 0.2
        assert inner_state["param_groups"] == outer_state["param_groups"]
        assert len(inner_state["state"]) == 2


def refused(program: Callable[[LocalCommunicator], Any], complaint: str, kind: type[Exception] = InputError) -> None:
    with pytest.raises(kind, match=complaint) as caught:
        run_local(2, program)
    assert "\n" not in str(caught.value)


def test_models_that_differ_are_refused_with_the_rank() -> None:
    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(5, 3 + comm.rank)
        distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)

    at_1, at_0 = r"shape \(4, 5\), float32", r"shape \(3, 5\), float32"
    refused(program, f"rank 1 has parameter 'weight' of {at_1} where rank 0 has parameter 'weight' of {at_0}", ModelMismatch)


def test_equally_long_models_of_other_shapes_are_refused() -> None:
    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(*((5, 3), (2, 6))[comm.rank])
        assert sum(p.numel() for p in model.parameters()) == 18
        distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)

    refused(program, r"rank 1 has parameter 'weight' of shape \(6, 2\), float32 where rank 0", ModelMismatch)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"algorithm": "sgd"}, "algorithm = 'sgd': unknown"),
        ({"group_size": 3}, "group_size = 3: must be"),
        ({"group_size": "root"}, "group_size = 'root'"),
        ({"sync_period": 0}, "sync_period = 0: must be"),
        ({"timeout_s": float("inf")}, "timeout_s = inf"),
        ({"timeout_s": -1}, "timeout_s = -1"),
    ],
)
def test_bad_settings_are_one_line_on_every_rank(options: dict[str, Any], complaint: str) -> None:
    def program(comm: LocalCommunicator) -> None:
        model = model_for(0)
        with pytest.raises(InputError, match=complaint):
            distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, **options)

    run_local(2, program)


def test_optimizers_that_need_a_closure_are_refused() -> None:
    def program(comm: LocalCommunicator) -> None:
        model = model_for(0)
        distribute(torch.optim.LBFGS(model.parameters()), model, comm=comm)

    refused(program, "LBFGS evaluates a closure several times")


def test_complex_parameters_and_models_without_parameters_are_refused() -> None:
    def complicated(comm: LocalCommunicator) -> None:
        model = model_for(0)
        model[0].weight = torch.nn.Parameter(model[0].weight.detach().to(torch.complex64))
        distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)

    refused(
        complicated,
        "parameter '0.weight' has dtype torch.complex64: must be one of torch.float16, torch.bfloat16, torch.float32",
    )

    def frozen(comm: LocalCommunicator) -> None:
        model = model_for(0).requires_grad_(False)
        distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)

    refused(frozen, "no parameters that require a gradient")


def test_freezing_after_distribute_and_wrapping_twice_are_refused() -> None:
    def program(comm: LocalCommunicator) -> None:
        model = model_for(0)
        wrapped = distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)
        with pytest.raises(InputError, match="distributed already"):
            distribute(wrapped, model, comm=comm)
        model[0].bias.requires_grad_(False)
        with pytest.raises(InputError, match=r"rank .: parameter '0.bias' was frozen since distribute"):
            wrapped.step()
        model[0].bias.requires_grad_(True)
        wrapped.close()

    run_local(2, program)


def test_a_failed_step_fails_again_instead_of_pretending() -> None:
    over = threading.Event()

    def program(comm: LocalCommunicator) -> None:
        model = model_for(0)
        wrapped = distribute(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            "allreduce_sgd",
            comm=comm,
            timeout_s=0.3 if comm.rank == 0 else 5,
        )
        model(torch.ones(2, 5)).sum().backward()
        if comm.rank == 1:
            assert over.wait(30.0)  # never comes to the step
            return
        before = digest(content(model)[0])
        try:
            for _ in range(3):
                with pytest.raises(CollectiveTimeout, match="rank 0: version 0"):
                    wrapped.step()
        finally:
            over.set()
        assert digest(content(model)[0]) == before

    run_local(2, program)


@pytest.mark.parametrize("sync_period", [10, "never"])
def test_promises_hold_when_ranks_do_nothing_but_average(sync_period: int | str) -> None:
    """Arrivals fall between the end of one execution and the start of the next all the time: the order of both is exact."""
    iterations = 400

    def program(comm: LocalCommunicator) -> Any:
        model = model_for(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with distribute(optimizer, model, comm=comm, sync_period=sync_period, record=True) as wrapped:
            for iteration in range(iterations):
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, float(comm.rank - iteration))
                wrapped.step()
        return wrapped.notes()

    table = {
        "name": "tight", "ranks": 4, "iterations": iterations, "model": {"parameters": 18},
        "algorithm": {"sync_period": sync_period}, "work": {"per_rank": 1, "unit": "steps"},
        "compute": {"kind": "constant", "seconds": 1.0},
    }  # fmt: skip
    trace = assemble(read(table, "test"), "wagma_sgd", "model", run_local(4, program))
    assert validate(trace) == []
    assert any(record.fresh is False for record in trace.iterations)


def test_what_a_rank_alone_does_is_for_the_algorithm_to_say() -> None:
    """One rank of those that come with wagma does what its optimizer does. Of another one nobody knows, wherever its file is."""
    assert all(one.plain_alone for name, one in ALL.items())
    with registered("halving"):

        @register("halving", Collectives.NONE)
        def halving(rank: RankView) -> Algorithm:
            for t in rank.iterations:
                yield ComputeGradient(t)
                yield ApplyUpdate(t)
                yield Scale(t, 0.5)

        halving.__module__ = "wagma.algorithms.halving"

        def program(comm: LocalCommunicator) -> float:
            model = torch.nn.Linear(1, 1, bias=False)
            with torch.no_grad():
                model.weight.fill_(8.0)
            with distribute(torch.optim.SGD(model.parameters(), lr=1.0), model, "halving", comm=comm) as wrapped:
                model.weight.grad = torch.full((1, 1), 2.0)
                wrapped.step()
            return float(model.weight.detach())

        assert run_local(1, program) == [3.0]
