"""Several optimizers in one program, and one after the other: ends that are uneven, parts of one model, handles that are no longer open."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
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


def test_an_error_of_one_that_is_served_ends_all_of_them_at_once() -> None:
    """Rank 1 waits in the first one for rank 0, which serves the second one until rank 1 comes: rank 0 must not wait for that."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("no memory")

    def program(comm: Any) -> str:
        models, optimizers = pair(comm, timeout_s=20.0)
        if comm.rank == 0:
            optimizers[0].serve = fail
            give_up = optimizers[0].__exit__
            optimizers[0].__exit__ = lambda *error: fail(give_up(*error))  # which keeps the second one from nothing
        try:
            with wagma.together(*optimizers):
                take_steps(comm, models, optimizers, 2 + comm.rank)
        except (ZeroDivisionError, PeerFailed) as error:
            assert all(optimizer.failed for optimizer in optimizers)
            return f"{type(error).__name__}: {error}"
        return "nothing was raised"

    began = time.monotonic()
    texts = on(2, program)
    assert time.monotonic() - began < 5.0
    assert texts[0] == "ZeroDivisionError: no memory"
    assert texts[1].startswith("PeerFailed: rank 0 failed: ZeroDivisionError: no memory")


class Waiting:
    """A handle that no other rank ever closes."""

    def __init__(self) -> None:
        self.waits, self.over = threading.Event(), threading.Event()
        self.left = False  # whether the thread that served is through

    def serve(self) -> None:
        self.waits.set()
        assert self.over.wait(20.0)
        time.sleep(0.05)
        self.left = True

    def close(self) -> None:
        raise AssertionError("nothing may be waited for after Ctrl-C")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.over.set()


def test_ctrl_c_ends_the_wait_for_all_of_them_and_their_threads() -> None:
    """Those must not work on the models any more once the program has them back."""
    handles = Waiting(), Waiting()

    def press() -> None:
        assert all(handle.waits.wait(20.0) for handle in handles)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), wagma.together(*handles):
        threading.Thread(target=press).start()
    assert all(handle.left for handle in handles)


def test_a_trace_that_cannot_be_written_keeps_no_other_one_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 alone writes, after all ranks have handed in: the others would wait for it in the end of the second one."""
    written: list[Path] = []

    def write(path: Path, *_: object) -> None:
        written.append(path)
        if len(written) == 1:
            raise InputError(f"cannot write {path}")

    monkeypatch.setattr("wagma.real.seeing.monitor.write_trace", write)

    def program(comm: Any) -> str:
        models = [linear(0), linear(1)]
        optimizers = [
            distribute(sgd(one), one, comm=comm, timeout_s=20.0, trace=tmp_path / str(place))
            for place, one in enumerate(models)
        ]
        text = ""
        try:
            with wagma.together(*optimizers):
                take_steps(comm, models, optimizers, 1 + comm.rank)
        except InputError as error:
            text = str(error)
        assert all(optimizer.is_closed for optimizer in optimizers)
        return text

    began = time.monotonic()
    assert on(2, program) == [f"cannot write {tmp_path / '0'}", ""]
    assert time.monotonic() - began < 5.0
    assert len(written) == 2


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
