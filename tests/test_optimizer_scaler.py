"""`torch.amp.GradScaler` with a distributed optimizer: an overflow on one rank, and everything else as without wagma."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from training import adam, all_same, backward, content, distribute, linear, on, same, sgd  # noqa: E402  after the checks

from wagma.errors import InputError  # noqa: E402

ITERATIONS = 7


def scaled_loop(model: Any, optimizer: Any, overflow_at: int | None, clip: bool, seed: int) -> tuple[Any, list[float]]:
    """As torch's documentation has it; where asked for, one gradient overflows."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    generator = torch.Generator().manual_seed(seed)
    scales = []
    for iteration in range(ITERATIONS):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 5, generator=generator)).square().mean()
        scaler.scale(loss).backward()
        if iteration == overflow_at:
            next(model.parameters()).grad[0, 0] = float("inf")
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return content(model), scales


@pytest.mark.parametrize("clip", [False, True], ids=["unscaled by step", "unscaled before clipping"])
@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adamw"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_one_loop_with_and_without_wagma_gives_the_same_bits_and_scales(ranks: int, make: Any, clip: bool) -> None:
    """Equal data and overflows on all ranks and nothing but syncs, so that every mean is of equal models."""
    alone = linear(1)
    expected, scales = scaled_loop(alone, make(alone), 2, clip, 5)
    assert scales[1:4] == [2048.0, 1024.0, 1024.0]  # it grew, and fell at the overflow

    def program(comm: Any) -> Any:
        model = linear(1)
        with distribute(make(model), model, sync_period=1, comm=comm) as optimizer:
            return scaled_loop(model, optimizer, 2, clip, 5)

    for model, seen in on(ranks, program):
        assert same(model, expected)
        assert seen == scales


@pytest.mark.parametrize("clip", [False, True], ids=["unscaled by step", "unscaled before clipping"])
@pytest.mark.parametrize("algorithm", ["wagma_sgd", "allreduce_sgd", "local_sgd", "eager_sgd", "d_psgd", "ad_psgd"])
def test_an_overflow_on_one_rank_hangs_nobody_and_spoils_no_model(algorithm: str, clip: bool) -> None:
    """At iteration 3; with a sync in the last one every rank holds the same finite model."""

    def program(comm: Any) -> Any:
        model = linear(comm.rank)
        with distribute(sgd(model, momentum=0.9), model, algorithm, 2, ITERATIONS, comm=comm, timeout_s=15.0) as optimizer:
            found = scaled_loop(model, optimizer, 3 if comm.rank == 1 else None, clip, comm.rank)
            assert optimizer.iteration == ITERATIONS
            assert not hasattr(optimizer, "found_inf")
        return found

    results = on(4, program)
    assert all(bool(torch.isfinite(value).all()) for model, _ in results for value in model)
    if algorithm not in ("d_psgd", "ad_psgd"):  # those have no syncs
        assert all_same([model for model, _ in results])
    scales = [found[-1] for _, found in results]
    assert scales[1] < scales[0] == scales[2] == scales[3]


def test_a_rank_without_a_gradient_still_takes_the_mean_of_the_others() -> None:
    """Where gradients are averaged models stay the same: the overflowing rank contributes zeros."""

    def program(comm: Any) -> Any:
        model = linear(0)
        with distribute(sgd(model, lr=1.0), model, "allreduce_sgd", comm=comm) as optimizer:
            before = content(model)
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 6.0)
            if comm.rank == 0:
                optimizer.skip()
            else:
                optimizer.step()
            return [float((a - b).mean()) for a, b in zip(before, content(model), strict=True)]

    assert on(3, program) == [pytest.approx([4.0, 4.0], abs=1e-5)] * 3


def test_float16_gradients_are_refused_as_torch_does() -> None:
    def program(comm: Any) -> None:
        model = linear(0).half()
        with distribute(sgd(model), model, comm=comm) as optimizer:
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
            scaler.scale(model(torch.ones(2, 5, dtype=torch.float16)).square().mean()).backward()
            with pytest.raises(InputError, match=r"GradScaler: a parameter of shape \(3, 5\) is float16: must be float32"):
                scaler.step(optimizer)

    on(1, program)


def test_a_disabled_scaler_changes_nothing() -> None:
    def program(comm: Any) -> Any:
        model = linear(1)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        with distribute(sgd(model), model, sync_period=1, comm=comm) as optimizer:
            scaler.scale(backward(model, torch.Generator().manual_seed(comm.rank)))
            scaler.step(optimizer)
            scaler.update()
            assert optimizer.iteration == 1
        return content(model)

    assert all_same(on(2, program))
