"""Algorithms of one's own on real ranks: all that the simulator lets them yield, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")
pytest.importorskip("sklearn")

from real_ranks import Numbers, registered, total  # noqa: E402  after the checks that they can be imported

from wagma.algorithms import Collectives, register  # noqa: E402
from wagma.core.effects import (  # noqa: E402
    Allreduce,
    ApplyUpdate,
    Average,
    AwaitIteration,
    Barrier,
    ComputeGradient,
    Exchange,
    GroupAllreduce,
    PairAverage,
    Scale,
    Value,
)
from wagma.core.graphs import ring  # noqa: E402
from wagma.errors import InputError, WagmaError  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402


def run_own(
    algorithm: Callable[[Any], Any], kind: Collectives, ranks: int = 3, sync_period: int | str = 2, **options: Any
) -> list[float]:
    """Register, run three iterations, forget; the models. None of them is torn."""
    with registered("own"):
        register("own", kind, **options)(algorithm)

        def program(comm: LocalCommunicator) -> float:
            numbers = Numbers(comm, "own", group_size=comm.size, sync_period=sync_period)
            with numbers.optimizer:
                for t in range(3):
                    numbers.step(t)
            return numbers.value

        return run_local(ranks, program)


def test_gradients_can_be_exchanged_and_models_scaled() -> None:
    def own(rank: Any) -> Any:
        others = ring(rank.schedule.world_size, rank.rank)
        for t in rank.iterations:
            yield ComputeGradient(t)
            outcome = yield Exchange(t, Value.GRADIENT, others, others, share=0.5, mass=0.5)
            yield Average(t, 1, 1 + outcome.mass, Value.GRADIENT)
            yield Scale(t, 2)
            yield ApplyUpdate(t)

    models = run_own(own, Collectives.NEIGHBOURS, value=Value.GRADIENT)
    gradients = [[100.0 * (rank + 1) + t for rank in range(3)] for t in range(3)]
    for rank, model in enumerate(models):
        expected = 0.0
        for row in gradients:
            before, after = row[(rank - 1) % 3], row[(rank + 1) % 3]
            expected = 2 * expected + (row[rank] + before / 2 + after / 2) / 2
        assert model == expected


def test_weights_of_a_group_average_may_be_fractions() -> None:
    def own(rank: Any) -> Any:
        for t in rank.iterations:
            yield ComputeGradient(t)
            yield ApplyUpdate(t)
            if rank.schedule.is_sync(t):
                yield Allreduce(t, Value.MODEL)
            else:
                outcome = yield GroupAllreduce(t, Value.MODEL)
                yield Average(t, 0.5 * outcome.fresh, 0.5 + 0.5 * outcome.fresh)

    (model,) = run_own(own, Collectives.GROUPED, ranks=1)
    # 100, of which (100 + 50) / 1; then + 101, a sync of one; then + 102, and once more half as much on top.
    assert model == 1.5 * (150 + 101 + 102)


def test_weights_of_a_group_average_may_be_any_number() -> None:
    """The kernel itself adds a model once or not at all."""

    def own(rank: Any) -> Any:
        for t in rank.iterations:
            yield ComputeGradient(t)
            yield ApplyUpdate(t)
            yield GroupAllreduce(t, Value.MODEL)
            yield Average(t, *((3, 4), (-3, -1), (1, 1))[t])

    (model,) = run_own(own, Collectives.GROUPED, ranks=1, sync_period="never")
    # 100; then 201 (201 - 3 * 201 = -402, over -1: 402); then + 102, twice.
    assert model == 2 * (402 + 102)


def test_groups_of_gradients_begin_with_zeros() -> None:
    """A passive rank has no gradient before its first: what it contributes must not be its model."""

    def own(rank: Any) -> Any:
        for t in rank.iterations:
            yield ComputeGradient(t)
            if not rank.schedule.is_sync(t):
                yield GroupAllreduce(t, Value.GRADIENT)
                yield Average(t, 0, rank.schedule.world_size, Value.GRADIENT)
                yield ApplyUpdate(t)
            else:
                yield Allreduce(t, Value.GRADIENT)
                yield ApplyUpdate(t)

    with registered("own"):
        register("own", Collectives.GROUPED, Value.GRADIENT)(own)

        def program(comm: LocalCommunicator) -> float:
            numbers = Numbers(comm, "own", group_size=2, sync_period="never")
            with torch.no_grad():
                numbers.model.weight.fill_(1e6)
            with numbers.optimizer:
                if comm.rank == 0:
                    numbers.step(0)
                    value = numbers.value
                    comm.allgather(None)
                    return value
                comm.allgather(None)  # rank 0 has taken its step by then
            return 0.0

        assert run_local(2, program)[0] == 1e6 + 100 / 2


@pytest.mark.parametrize(
    ("kind", "effect", "complaint"),
    [
        (Collectives.PERIODIC, Exchange(0, Value.MODEL, (), ()), r"own: registered as periodic, but yields Exchange.*neighbours or pairs"),
        (Collectives.NEIGHBOURS, PairAverage(0, 1), r"own: registered as neighbours, but yields PairAverage.*registered as pairs"),
        (Collectives.NEIGHBOURS, Allreduce(0, Value.MODEL), r"own: registered without collectives, but yields Allreduce"),
        (Collectives.NONE, Barrier(0), r"own: registered as none, but yields Barrier"),
        (Collectives.PAIRS, Exchange(0, Value.MODEL, (7,), ()), r"an exchange with ranks \[7\]: must be distinct other ranks, of 3"),
        (Collectives.PAIRS, AwaitIteration(0), r"AwaitIteration\(iteration=0\) is no effect that a real rank knows"),
    ],
)  # fmt: skip
def test_what_an_algorithm_was_not_registered_for_is_refused(kind: Collectives, effect: Any, complaint: str) -> None:
    def own(rank: Any) -> Any:
        for t in rank.iterations:
            yield ComputeGradient(t)
            yield effect

    with pytest.raises(WagmaError, match=complaint) as caught:
        run_own(own, kind)
    assert "\n" not in str(caught.value)


def test_exchanges_that_nobody_asked_for_and_second_ones_are_reported() -> None:
    def unasked(rank: Any) -> Any:
        for t in rank.iterations:
            yield ComputeGradient(t)
            yield Exchange(t, Value.MODEL, to=(0,) if rank.rank == 1 else (), sources=())

    with pytest.raises(WagmaError, match=r"rank 0 never took the models that ranks \[1\] sent it in iteration 0"):
        run_own(unasked, Collectives.NEIGHBOURS)

    def twice(rank: Any) -> Any:
        for t in rank.iterations:
            yield ComputeGradient(t)
            for _ in range(2):
                yield Exchange(t, Value.MODEL, (), ())

    with pytest.raises(InputError, match="algorithm own: a second Exchange in iteration 0"):
        run_own(twice, Collectives.NEIGHBOURS)


@pytest.mark.parametrize(("ranks", "last"), [(3, 1), (1, 3)])
def test_what_a_second_activity_raises_ends_the_rank(ranks: int, last: int) -> None:
    """Also if it comes after the last step, when a rank that is alone has nothing to wait for any more."""

    def own(rank: Any) -> Any:
        for t in rank.iterations:
            yield ComputeGradient(t)
            time.sleep(0.05)
            yield ApplyUpdate(t)

    def second(rank: Any) -> Any:
        yield AwaitIteration(last)
        if rank.rank == ranks - 1:
            raise ArithmeticError("no partner")

    with pytest.raises(WagmaError, match=rf"rank {ranks - 1}: its second activity: ArithmeticError\('no partner'\)"):
        run_own(own, Collectives.PAIRS, ranks, companion=second)


def test_pairs_beside_a_collective() -> None:
    """A second activity may average in pairs while the first one joins collectives: syncs make all models alike."""

    def own(rank: Any) -> Any:
        for t in rank.iterations:
            yield ComputeGradient(t)
            yield ApplyUpdate(t)
            if rank.schedule.is_sync(t):
                yield Allreduce(t, Value.MODEL)

    def second(rank: Any) -> Any:
        for t in rank.iterations:
            yield AwaitIteration(t)
            if t % 2 == 0:
                yield PairAverage(t, (rank.rank + 1) % rank.schedule.world_size)

    models = run_own(own, Collectives.PERIODIC, companion=second)
    assert len(models) == 3


@pytest.mark.parametrize("with_pairs", [False, True])
@pytest.mark.parametrize("kind", [Collectives.PERIODIC, Collectives.GROUPED])
def test_collectives_and_letters_end_together(kind: Collectives, with_pairs: bool) -> None:
    """Whoever ends first goes on with both: one that served the collectives alone would be missed in exchanges, and the other way round."""
    counts = (2, 7, 4)

    def own(rank: Any) -> Any:
        others = ring(rank.schedule.world_size, rank.rank)
        for t in rank.iterations:
            yield ComputeGradient(t)
            yield ApplyUpdate(t)
            if rank.schedule.is_sync(t):
                yield Allreduce(t, Value.MODEL)
            elif kind is Collectives.GROUPED:
                outcome = yield GroupAllreduce(t, Value.MODEL)
                yield Average(t, 1 - outcome.fresh, outcome.group_length + 1 - outcome.fresh)
            if t % 2 == 0:
                outcome = yield Exchange(t, Value.MODEL, others, others)
                yield Average(t, 1, 1 + outcome.mass)
            yield Barrier(t)

    def second(rank: Any) -> Any:
        for t in rank.iterations:
            yield AwaitIteration(t)
            if with_pairs:
                yield PairAverage(t, (rank.rank + 1) % rank.schedule.world_size)

    with registered("own"):
        register("own", kind, companion=second)(own)

        def program(comm: LocalCommunicator) -> float:
            numbers = Numbers(comm, "own", group_size=comm.size, sync_period=3, timeout_s=5.0)
            with numbers.optimizer:
                for t in range(counts[comm.rank]):
                    numbers.step(t)
            return numbers.value

        models = run_local(3, program)
    if (
        kind is Collectives.PERIODIC and not with_pairs
    ):  # else what pairs did during a sync, and late ranks, move the mean of all models
        assert sum(models) == pytest.approx(total(counts))
