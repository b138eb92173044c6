"""Several optimizers in one program, and one after the other: ends that are uneven, parts of one model, handles that are no longer open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from training import all_same, backward, distribute, linear, loop, on, parameters, refused, same, sgd  # noqa: E402

import wagma  # noqa: E402
from wagma.errors import CollectiveTimeout, InputError, PeerFailed  # noqa: E402


def pair(comm: Any, algorithm: str = "wagma_sgd", **options: Any) -> Any:
    models = [linear(0), linear(1)]
    return models, [distribute(sgd(one), one, algorithm, sync_period=1, comm=comm, **options) for one in models]


def take_steps(comm: Any, models: Any, optimizers: Any, number: int) -> None:
    generator = torch.Generator().manual_seed(comm.rank)
    for _ in range(number):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, generator)
            optimizer.step()


@pytest.mark.parametrize("algorithm", ["wagma_sgd", "d_psgd", "ad_psgd"])
def test_uneven_ends_of_several_optimizers_wait_for_nobody(algorithm: str) -> None:
    """A `with` of each would have rank 0 wait in the end of the second, and rank 1 in a sync of the first, until the limit."""
    options = {} if algorithm == "wagma_sgd" else {"optimizer_state": "local"}

    def program(comm: Any) -> Any:
        models, optimizers = pair(comm, algorithm, timeout_s=20.0, progress=lambda _: None, **options)
        with wagma.together(*optimizers):
            take_steps(comm, models, optimizers, (3, 5, 4)[comm.rank])
        assert all(optimizer.is_closed for optimizer in optimizers)
        assert (optimizers[0].summary is not None) is (comm.rank == 0)
        with pytest.raises(InputError, match="step: called after close"):
            optimizers[0].step()
        with optimizers[0].consolidated():
            return parameters(models[0])

    assert all_same(on(3, program, timeout_s=40.0))


def test_without_it_they_wait_until_the_limit() -> None:
    """What docs/training.md warns of: if this one day ends in order, `together` is not needed any more."""

    def program(comm: Any) -> None:
        models, (first, second) = pair(comm, timeout_s=0.5)
        with first, second:
            take_steps(comm, models, (first, second), (3, 5)[comm.rank])

    with pytest.raises(CollectiveTimeout, match=r"rank \d: .* (after|for) 0\.5 s"):
        on(2, program)


def test_an_error_inside_ends_all_of_them_on_all_ranks() -> None:
    def program(comm: Any) -> str:
        models, optimizers = pair(comm, timeout_s=20.0)
        try:
            with wagma.together(*optimizers):
                take_steps(comm, models, optimizers, 2)
                if comm.rank == 1:
                    raise ZeroDivisionError("bad batch")
                take_steps(comm, models, optimizers, 1)
        except (ZeroDivisionError, PeerFailed) as error:
            assert all(optimizer.failed for optimizer in optimizers)
            return f"{type(error).__name__}: {error}"
        return "nothing was raised"

    texts = on(2, program)
    assert texts[1] == "ZeroDivisionError: bad batch"
    assert texts[0].startswith("PeerFailed: rank 1 failed: ZeroDivisionError: bad batch")


def test_an_optimizer_and_an_array_end_together_and_exits_are_ends() -> None:
    def program(comm: Any) -> float:
        (model, _), (optimizer, other) = pair(comm)
        other.close()
        array = np.full(4, float(comm.rank))
        collective = wagma.GroupAllreduce(comm, array, sync_period=1)
        with pytest.raises(SystemExit), wagma.together(optimizer, collective):
            leave_after(1 + comm.rank, comm, model, optimizer, collective)
        return float(array[0])

    def leave_after(number: int, comm: Any, model: Any, optimizer: Any, collective: Any) -> None:
        for _ in range(number):
            take_steps(comm, [model], [optimizer], 1)
            collective.average()
        raise SystemExit(0)

    assert on(2, program)[0] == 0.5


@pytest.mark.parametrize(("make", "complaint"), [
    (lambda one: (one, one), "handle 1 is there twice"),
    (lambda one: (one, 3), "handle 1 is a int"),
])  # fmt: skip
def test_other_things_are_no_handles(make: Any, complaint: str) -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        with distribute(sgd(model), model, comm=comm) as optimizer, wagma.together(*make(optimizer)):
            pass

    refused(InputError, complaint, program)


def test_two_optimizers_of_one_parameter_are_refused() -> None:
    """Each would put its own mean in place of what the other one has written."""

    def program(comm: Any) -> None:
        model = linear(0, (3, 2))
        head = sgd(model[1])
        with distribute(sgd(model), model, comm=comm):
            distribute(head, model[1], comm=comm)

    refused(
        InputError, "rank 0: model: its parameter 'weight' is distributed already, with another model and optimizer", program
    )

    def apart(comm: Any) -> None:
        model = linear(0, (3, 2))
        first, second = (distribute(sgd(part), part, comm=comm) for part in model)
        with wagma.together(first, second):
            pass
        distribute(sgd(model), model, comm=comm).close()  # once those have ended

    on(2, apart)


@pytest.mark.parametrize("end", ["close", "error"])
def test_a_handle_that_has_ended_leaves_alone_what_belongs_to_the_next_one(end: str) -> None:
    """Closed again, it must neither take the parameters out of the next one's buffers nor let them be wrapped a third time."""

    def program(comm: Any) -> Any:
        model = linear(0)
        inner = sgd(model)
        first = distribute(inner, model, sync_period=1, comm=comm, resident=True)
        if end == "close":
            first.close()
        else:
            with pytest.raises(ValueError, match="bad"), first:
                raise ValueError("bad")
        with distribute(inner, model, sync_period=1, comm=comm, resident=True) as second:
            where = model[0].weight.data_ptr()
            first.close()
            assert model[0].weight.data_ptr() == where
            with pytest.raises(InputError, match="distributed already"):
                distribute(inner, model, comm=comm)
            before = parameters(model)
            loop(comm, model, second, 2)
        assert not same(before, parameters(model))
        return parameters(model)

    assert all_same(on(2, program))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_after_the_end_is_refused(ranks: int) -> None:
    """A rank alone would go on by itself without a word."""

    def program(comm: Any) -> None:
        model = linear(0)
        optimizer = distribute(sgd(model), model, comm=comm)
        loop(comm, model, optimizer, 1)
        optimizer.close()
        before = parameters(model)
        for step in (optimizer.step, optimizer.skip):
            with pytest.raises(InputError, match="step: called after close"):
                step()
        assert same(before, parameters(model))

    on(ranks, program)
