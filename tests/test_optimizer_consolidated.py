"""One model of all ranks, to evaluate or save: `with optimizer.consolidated()`, before and after the end, and what it refuses."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from training import (  # noqa: E402  after the checks
    adam,
    all_same,
    content,
    distribute,
    linear,
    loop,
    normed,
    on,
    parameters,
    refused,
    same,
    sgd,
)

from wagma.algorithms import ALGORITHMS  # noqa: E402
from wagma.errors import CollectiveTimeout, InputError, PeerFailed  # noqa: E402

COMMON = [name for name in ALGORITHMS if name != "ideal"]


def statistics(model: Any) -> list[Any]:
    return [buffer.clone() for buffer in model.buffers() if buffer.is_floating_point()]


def means(models: list[list[Any]]) -> list[Any]:
    return [torch.stack([value.double() for value in values]).mean(0).float() for values in zip(*models, strict=True)]


@pytest.mark.parametrize("algorithm", COMMON)
def test_inside_everybody_has_the_mean_and_outside_its_own(algorithm: str) -> None:
    def program(comm: Any) -> Any:
        model = normed(comm.rank)
        with distribute(adam(model), model, algorithm, 2, 10, buffers=None, comm=comm) as optimizer:
            loop(comm, model, optimizer, 3)
            own = [*parameters(model), *statistics(model)]
            with optimizer.consolidated():
                inside = [*parameters(model), *statistics(model)]
                model.eval()(torch.ones(1, 5))
            assert same(own, [*parameters(model), *statistics(model)])
            loop(comm, model, optimizer, 1)  # and it goes on
        return own, inside

    own, inside = zip(*on(3, program), strict=True)
    assert all_same(inside)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(inside[0], means(list(own)), strict=True))


@pytest.mark.parametrize("options", [{"resident": True}, {"check_finite": True}], ids=["resident", "plain"])
def test_whatever_happens_inside_is_undone(options: dict[str, Any]) -> None:
    def program(comm: Any) -> None:
        model = normed(0)
        with distribute(sgd(model, momentum=0.9), model, comm=comm, **options) as optimizer:
            loop(comm, model, optimizer, 2)
            before = content(model)

            def fail() -> None:
                with optimizer.consolidated(), torch.no_grad():
                    for tensor in [*model.parameters(), *statistics(model)]:
                        tensor.zero_()
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                fail()
            assert same(
                [one for one in before if one.is_floating_point()], [one for one in content(model) if one.is_floating_point()]
            )
            with optimizer.consolidated():
                pass
            loop(comm, model, optimizer, 1)

    on(2, program)


def test_one_rank_alone_has_its_own_model() -> None:
    def program(comm: Any) -> None:
        model = normed(0)
        with distribute(sgd(model), model, comm=comm) as optimizer:
            loop(comm, model, optimizer, 2)
            before = content(model)
            with optimizer.consolidated():
                assert same(before, content(model))

    on(1, program)


def test_ranks_that_have_ended_are_left_out() -> None:
    def program(comm: Any) -> Any:
        model = linear(0)
        with distribute(sgd(model), model, sync_period=2, comm=comm, timeout_s=10.0) as optimizer:
            loop(comm, model, optimizer, 3)
            if comm.rank == 0:
                return None
            own = parameters(model)
            with optimizer.consolidated():
                return own, parameters(model)

    _, *there = on(3, program)
    own, inside = zip(*there, strict=True)
    assert all_same(inside)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-7) for a, b in zip(inside[0], means(list(own)), strict=True))


@pytest.mark.parametrize("algorithm", COMMON)
def test_after_different_numbers_of_batches_nobody_hangs_and_all_get_one_model(algorithm: str) -> None:
    """Rank r has 2 + 3r batches. After the end, the mean is over those that have seen the last sync."""
    iterations = [2, 5, 8, 11]

    def program(comm: Any) -> Any:
        model = normed(comm.rank)
        with distribute(sgd(model), model, algorithm, 2, 4, comm=comm, timeout_s=15.0) as optimizer:
            loop(comm, model, optimizer, iterations[comm.rank])
        own = parameters(model)
        with optimizer.consolidated():
            inside = parameters(model)
        assert same(own, parameters(model))
        with optimizer.consolidated():  # as often as one likes
            assert same(inside, parameters(model))
        return own, inside

    began = time.monotonic()
    own, inside = zip(*on(4, program), strict=True)
    assert time.monotonic() - began < 10.0
    assert all_same(inside)
    last_sync = {"allreduce_sgd": 11, "wagma_sgd": 8, "local_sgd": 8, "eager_sgd": 8}.get(algorithm, 0)
    counted = [model for model, number in zip(own, iterations, strict=True) if number >= last_sync]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(inside[0], means(counted), strict=True))


def test_data_of_a_rank_that_ends_early_stays_in_the_others_models() -> None:
    """Rank 0 moves its model by 1 in its only iteration, and nobody else anything: after the sync all have its part of the mean."""

    def program(comm: Any) -> float:
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(4))])
        with distribute(sgd(model, lr=1.0), model, group_size=4, sync_period=4, comm=comm, timeout_s=10.0) as optimizer:
            for iteration in range(1 if comm.rank == 0 else 4):
                model[0].grad = torch.full((4,), -1.0 if comm.rank == iteration == 0 else 0.0)
                optimizer.step()
        with optimizer.consolidated():
            return float(model[0].detach().mean())

    found = on(4, program)
    assert len(set(found)) == 1
    assert 0.05 < found[0] <= 1.0


def test_a_parameter_with_nan_on_one_rank_shows_in_the_mean() -> None:
    def program(comm: Any) -> list[bool]:
        model = linear(0)
        with distribute(sgd(model), model, comm=comm) as optimizer:
            if comm.rank == 1:
                model[0].bias.data[0] = float("inf")
            with optimizer.consolidated():
                finite = [bool(torch.isfinite(parameter).all()) for parameter in model.parameters()]
            assert bool(torch.isfinite(model[0].bias).all()) is (comm.rank == 0)
        return finite

    assert on(2, program) == [[True, False]] * 2


def test_steps_ends_and_itself_are_refused_inside() -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        optimizer = distribute(sgd(model), model, comm=comm)
        with optimizer.consolidated():
            for call, what in ((optimizer.step, "step"), (optimizer.skip, "step"), (optimizer.close, "close")):
                with pytest.raises(InputError, match=f"{what}: called inside consolidated"):
                    call()
            with pytest.raises(InputError, match="called inside itself"), optimizer.consolidated():
                pass
        optimizer.close()

    on(2, program)


def test_ranks_that_never_communicate_have_no_model_in_common() -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        optimizer = distribute(sgd(model), model, "ideal", comm=comm)
        with optimizer.consolidated():
            pass

    refused(InputError, r"consolidated\(\): the ranks of ideal never communicate", program)


def test_whoever_does_not_come_is_named_within_the_limit() -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        optimizer = distribute(sgd(model), model, comm=comm, timeout_s=0.4 if comm.rank == 0 else 5.0)
        loop(comm, model, optimizer, 1)
        if comm.rank == 1:
            time.sleep(1.0)
            return
        before = content(model)
        with (
            pytest.raises(CollectiveTimeout, match=r"rank 0: consolidated\(\) waits for every rank .*rank 1"),
            optimizer.consolidated(),
        ):
            pass
        assert same(before, content(model))

    on(2, program)


def test_a_sync_on_another_rank_is_noticed() -> None:
    """Instead of mixing up one's model with the other's statistics."""

    def program(comm: Any) -> None:
        model = normed(0)
        optimizer = distribute(sgd(model), model, "allreduce_sgd", sync_period=2, comm=comm, timeout_s=5.0)
        loop(comm, model, optimizer, 1)

        def evaluate() -> None:
            with optimizer.consolidated():
                pass

        call = evaluate if comm.rank == 0 else lambda: optimizer._parts.extras.after(1)
        with pytest.raises(InputError, match=r"call it on all"):
            call()

    on(2, program)


def test_what_a_rank_alone_changes_inside_is_undone_as_well() -> None:
    def program(comm: Any) -> None:
        model = normed(0)
        with distribute(sgd(model), model, comm=comm) as optimizer:
            loop(comm, model, optimizer, 1)
            before = parameters(model)
            with optimizer.consolidated():
                model[0].weight.data.fill_(7.0)
            assert same(before, parameters(model))

    on(1, program)


@pytest.mark.parametrize("options", [{}, {"resident": True}], ids=["copied", "resident"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_parameters_that_are_made_to_look_elsewhere_inside_look_back_afterwards(ranks: int, options: dict[str, Any]) -> None:
    """As programs do that evaluate with an average of their own: `p.data` is replaced, and not written into."""

    def program(comm: Any) -> None:
        model = normed(0)
        with distribute(sgd(model), model, comm=comm, **options) as optimizer:
            loop(comm, model, optimizer, 1)
            before = content(model)
            with optimizer.consolidated():
                for tensor in [*model.parameters(), *model.buffers()]:
                    tensor.data = torch.full_like(tensor, 7)
                model[0].weight.data = model[0].weight.data.double()[:1]
            floats = [one.is_floating_point() for one in before]
            for old, now, floating in zip(before, content(model), floats, strict=True):
                assert not floating or (old.dtype is now.dtype and torch.equal(old, now))
            loop(comm, model, optimizer, 1)

    on(ranks, program)


def test_after_a_limit_it_says_the_same_again() -> None:
    """This rank stands in a meeting that nobody can leave; it is no defect of wagma, which ProtocolError would mean. So does close, and
    the other rank does not wait for this one."""
    over = threading.Event()

    def program(comm: Any) -> None:
        model = linear(0)
        optimizer = distribute(sgd(model), model, comm=comm, timeout_s=0.3 if comm.rank == 0 else 20.0)
        if comm.rank == 1:
            assert over.wait(20.0)
            began = time.monotonic()
            with pytest.raises(PeerFailed, match=r"rank 0 failed: CollectiveTimeout: rank 0: version 0"):
                optimizer.close()
            assert time.monotonic() - began < 5.0
            return
        try:
            said = []
            for _ in range(2):
                with pytest.raises(CollectiveTimeout) as caught:
                    optimizer.consolidated().__enter__()
                said.append(str(caught.value))
            assert said[0] == said[1]
            assert said[0].startswith("rank 0: consolidated() waits for every rank that has not closed: rank 0: version 0")
            with pytest.raises(CollectiveTimeout, match="rank 0: version 0"):
                optimizer.close()
            assert optimizer.is_closed
            optimizer.close()  # once is enough
        finally:
            over.set()

    on(2, program)


def test_close_after_the_limit_of_a_step_says_it_again() -> None:
    """What the program has caught is what has happened, and the other ranks hear of it; both give up what they show."""
    over = threading.Event()

    def program(comm: Any) -> None:
        model, lines = linear(0), []
        optimizer = distribute(
            sgd(model), model, "allreduce_sgd", comm=comm, timeout_s=0.3 if comm.rank == 0 else 20.0, progress=lines.append
        )
        if comm.rank == 1:
            assert over.wait(20.0)
            with pytest.raises(PeerFailed, match=r"rank 0 failed: CollectiveTimeout: rank 0: version 0"):
                optimizer.close()
        else:
            try:
                with pytest.raises(CollectiveTimeout, match="rank 0: version 0"):
                    loop(comm, model, optimizer, 1)
                with pytest.raises(CollectiveTimeout, match="rank 0: version 0"):
                    optimizer.close()
            finally:
                over.set()
        assert optimizer.failed
        assert optimizer._parts.monitor._ended

    on(2, program)
