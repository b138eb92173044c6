"""What happens to optimizer state and buffers at syncs, by option; and the means that this stands on."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from training import (  # noqa: E402  after the checks
    adam,
    all_same,
    backward,
    distribute,
    linear,
    loop,
    normed,
    on,
    refused,
    same,
    sgd,
)

from wagma.errors import CollectiveTimeout, InputError  # noqa: E402
from wagma.real.wrapper.mean import CHUNK, Meetings  # noqa: E402

SYNCING = ("wagma_sgd", "local_sgd", "eager_sgd", "allreduce_sgd")


def moments(optimizer: Any, model: Any) -> list[Any]:
    found = [optimizer.state[parameter] for parameter in model.parameters()]
    return [value.clone() for one in found for key, value in sorted(one.items()) if key != "step" and value is not None]


def trained(policy: str | None, make: Any, algorithm: str = "wagma_sgd", iterations: int = 4, ranks: int = 3) -> list[Any]:
    """Each rank's moments after the last iteration, a sync."""

    def program(comm: Any) -> Any:
        model = linear(comm.rank)
        inner = make(model)
        with distribute(inner, model, algorithm, 2, 4, optimizer_state=policy, comm=comm) as optimizer:
            loop(comm, model, optimizer, iterations)
            assert optimizer.state is inner.state
            return moments(inner, model)

    return on(ranks, program)


@pytest.mark.parametrize("algorithm", SYNCING)
@pytest.mark.parametrize("make", [lambda model: sgd(model, momentum=0.9), adam], ids=["momentum", "adamw"])
def test_averaged_state_is_the_mean_and_the_same_everywhere(algorithm: str, make: Any) -> None:
    found = trained("average", make, algorithm)
    assert all_same(found)
    assert len(found[0]) in (2, 4)
    assert all(float(value.abs().sum()) > 0 for value in found[0])


def test_the_mean_of_moments_is_that_of_the_ranks_own_ones() -> None:
    """One iteration, a sync in it: without an option each rank's own is known, too."""

    def program(comm: Any, policy: str) -> Any:
        model = linear(0)
        inner = sgd(model, momentum=0.9)
        with distribute(inner, model, sync_period=1, optimizer_state=policy, comm=comm) as optimizer:
            loop(comm, model, optimizer, 1)
            return moments(inner, model)

    own = on(3, lambda comm: program(comm, "local"))
    assert not same(own[0], own[1])
    mean = [sum(values[1:], values[0].double()) / 3 for values in zip(*own, strict=True)]
    for found in on(3, lambda comm: program(comm, "average")):
        assert same(found, [value.float() for value in mean])


def test_local_state_is_each_ranks_own_and_the_default() -> None:
    local = trained("local", adam)
    assert not same(local[0], local[1])
    assert all(same(a, b) for a, b in zip(local, trained(None, adam, "allreduce_sgd"), strict=True)) is False
    assert not same(*trained(None, adam, ranks=2))


def test_a_reset_forgets_moments_and_the_number_of_steps() -> None:
    def program(comm: Any) -> Any:
        model = linear(0)
        inner = adam(model)
        with distribute(inner, model, sync_period=2, optimizer_state="reset", comm=comm) as optimizer:
            loop(comm, model, optimizer, 2)
            assert len(inner.state) == len(optimizer.state) == 0
            loop(comm, model, optimizer, 1)
            return [float(inner.state[parameter]["step"]) for parameter in model.parameters()]

    assert on(2, program) == [[1.0, 1.0]] * 2
    assert on(1, program) == [[1.0, 1.0]]  # a rank alone does what several do


def test_a_reset_goes_back_to_what_an_optimizer_begins_with() -> None:
    """Adagrad makes its state when it is created, and could not go on without."""

    def program(comm: Any) -> list[float]:
        model = linear(0)
        inner = torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.5)
        with distribute(inner, model, sync_period=1, optimizer_state="reset", comm=comm) as optimizer:
            loop(comm, model, optimizer, 3)
        return [float(inner.state[parameter]["sum"].mean()) for parameter in model.parameters()]

    assert on(2, program) == [[0.5, 0.5]] * 2


def test_a_rank_without_state_is_waited_for_until_it_has_some() -> None:
    """Its every update before the sync was skipped: it brings nothing, and keeps nothing; later all are averaged."""

    def program(comm: Any) -> Any:
        model = linear(0)
        inner = sgd(model, momentum=0.9)
        found = []
        with distribute(inner, model, sync_period=2, optimizer_state="average", comm=comm) as optimizer:
            generator = torch.Generator().manual_seed(comm.rank)
            for iteration in range(4):
                optimizer.zero_grad()
                backward(model, generator)
                if comm.rank == 1 and iteration < 2:
                    optimizer.skip()
                else:
                    optimizer.step()
                if iteration % 2:
                    found.append(moments(inner, model))
        return found

    first, second, third = on(3, program)
    assert second[0] == []
    assert not same(first[0], third[0])
    assert all_same([first[1], second[1], third[1]])


@pytest.mark.parametrize("algorithm", SYNCING)
@pytest.mark.parametrize("policy", ["local", "average", "broadcast", None])
def test_buffers_after_a_sync(algorithm: str, policy: Any) -> None:
    def program(comm: Any) -> Any:
        model = normed(0)
        constant = torch.tensor([0.1, float("-inf")])
        model.register_buffer("mask", constant.clone())
        with distribute(sgd(model), model, algorithm, 2, 2, buffers=policy, comm=comm) as optimizer:
            loop(comm, model, optimizer, 1)
            before = [model[1].running_mean.clone(), model[1].running_var.clone()]
            loop(comm, model, optimizer, 1)
            after = [model[1].running_mean.clone(), model[1].running_var.clone()]
        assert torch.equal(model.mask, constant)  # to the bit, infinity included
        assert int(model[1].num_batches_tracked) == 2
        return before, after

    results = on(3, program)
    before, after = zip(*results, strict=True)
    assert not same(before[0], before[1])
    assert all_same(after) is (policy != "local")


def test_broadcast_is_the_first_ranks_and_average_the_mean() -> None:
    def program(comm: Any, policy: str) -> Any:
        model = normed(0)
        with distribute(sgd(model), model, sync_period=1, buffers=policy, comm=comm) as optimizer:
            model[1].running_mean.fill_(0.1 * (comm.rank + 1))
            optimizer.step()
        return model[1].running_mean

    for found in on(3, lambda comm: program(comm, "broadcast")):
        assert torch.equal(found, torch.full((4,), 0.1))
    for found in on(3, lambda comm: program(comm, "average")):
        assert torch.allclose(found, torch.full((4,), 0.2))


def test_statistics_that_are_not_finite_on_a_rank_get_the_mean_of_the_others() -> None:
    def program(comm: Any) -> Any:
        model = normed(0)
        with distribute(sgd(model), model, sync_period=1, comm=comm) as optimizer:
            model[1].running_mean.fill_(float("nan") if comm.rank == 1 else comm.rank)
            optimizer.step()
        return model[1].running_mean

    assert all(torch.equal(found, torch.ones(4)) for found in on(3, program))


def test_means_go_on_without_ranks_that_have_ended() -> None:
    """Rank r takes 2 + 3r iterations: state and buffers are those of who is there, and nobody waits for who is not."""

    def program(comm: Any) -> Any:
        model = normed(0)
        inner = sgd(model, momentum=0.9)
        found = []
        with distribute(inner, model, sync_period=2, optimizer_state="average", comm=comm, timeout_s=10.0) as optimizer:
            for _ in range(2 + 3 * comm.rank):
                loop(comm, model, optimizer, 1)
                found.append([*moments(inner, model), model[1].running_mean.clone()])
        return found

    began = time.monotonic()
    found = on(4, program)
    assert time.monotonic() - began < 8.0
    for sync, there in ((1, [0, 1, 2, 3]), (3, [1, 2, 3]), (5, [2, 3]), (7, [2, 3])):
        assert all_same([found[rank][sync] for rank in there])
    assert not same(found[2][7], found[1][3])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"optimizer_state": "mean"}, "optimizer_state = 'mean': must be one of local, average, reset"),
        ({"buffers": "reset"}, "buffers = 'reset': must be one of local, average, broadcast"),
        (
            {"algorithm": "d_psgd", "buffers": "average"},
            "buffers = 'average' happens at syncs, and d_psgd has no syncs: must be 'local'",
        ),
        ({"algorithm": "ideal", "optimizer_state": "reset"}, "ideal has no syncs"),
        ({"sync_period": "never", "buffers": "average"}, "there are none with sync_period = \"never\": must be 'local'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], complaint: str) -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        distribute(sgd(model), model, comm=comm, **options)

    refused(InputError, complaint, program)


def test_algorithms_without_syncs_leave_everything_local() -> None:
    for algorithm in ("d_psgd", "ideal"):

        def program(comm: Any, algorithm: str = algorithm) -> Any:
            model = normed(0)
            with distribute(sgd(model), model, algorithm, comm=comm, sync_period=1) as optimizer:
                loop(comm, model, optimizer, 2)
            return [model[1].running_mean]

        assert not all_same(on(2, program))


# -- the means -----------------------------------------------------------------------------------------------------------------


def test_a_mean_of_many_pieces_and_shapes_without_those_that_closed() -> None:
    """More than a chunk; not contiguous, halves, scalars; of ranks that are there, and of one alone at last."""

    def program(comm: Any) -> Any:
        meetings = Meetings(comm, 1 << 30, timeout_s=10.0)
        results = []
        for turn in range(comm.size):
            if turn > comm.rank:
                break
            tensors = [
                torch.full((CHUNK + 3,), float(comm.rank)),
                torch.arange(6.0).reshape(2, 3).t() * comm.rank,
                torch.tensor(comm.rank, dtype=torch.bfloat16),
                # Where a large number was, a small one comes next, of which a closed rank gives back the large one.
                torch.full((2,), (1e9, 1e-9)[turn % 2] * (comm.rank + 1), dtype=torch.float64),
            ]
            present = meetings.meet(10 * comm.rank + turn, "turn", str(turn))
            assert present.iterations == {rank: 10 * rank + turn for rank in range(turn, comm.size)}
            assert present.alike == (True, True)
            owners = meetings.average(tensors, [True, True, comm.rank != turn, True])
            others = comm.size - turn - 1
            assert owners == [others + 1, others + 1, others, others + 1]
            results.append(tensors)
        meetings.close()
        return results

    found = on(4, program)
    for turn in range(4):
        there = list(range(turn, 4))
        mean = sum(there) / len(there)
        without = sum(there[1:]) / len(there[1:]) if there[1:] else float(turn)
        assert all_same([found[rank][turn] for rank in there])
        one, transposed, half, large = found[turn][turn]
        assert torch.allclose(one, torch.tensor(mean))
        assert torch.allclose(transposed, torch.arange(6.0).reshape(2, 3).t() * mean)
        assert half == torch.tensor(without, dtype=torch.bfloat16)
        assert torch.allclose(large, torch.tensor((1e9, 1e-9)[turn % 2] * (mean + 1), dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("ranks", [2, 3, 5, 7])
def test_the_mean_of_equal_values_is_that_value(ranks: int) -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(1)) - 0.5

    def program(comm: Any) -> Any:
        meetings = Meetings(comm, 64, timeout_s=10.0)
        mine = [values.clone()]
        for turn in range(3):
            meetings.average(mine, [comm.rank == 0 or turn != 1])  # at times rank 0's alone: a broadcast
        meetings.close()
        return mine

    assert all(torch.equal(values, one[0]) for one in on(ranks, program))


def test_texts_that_differ_are_noticed_by_all() -> None:
    def program(comm: Any) -> Any:
        meetings = Meetings(comm, 8, timeout_s=10.0)
        alike = meetings.meet(0, "same", f"of rank {comm.rank // 3}").alike, meetings.meet(0, f"{comm.rank == 1}").alike
        meetings.close()
        return alike

    assert on(4, program) == [((True, False), (False, True))] * 4


def test_whoever_does_not_come_is_named_within_the_limit() -> None:
    def program(comm: Any) -> None:
        meetings = Meetings(comm, 8, timeout_s=0.3 if comm.rank == 0 else 5.0)
        if comm.rank == 1:
            time.sleep(0.8)
            return
        with pytest.raises(CollectiveTimeout, match=r"rank 0: version 0 .*rank 1"):
            meetings.meet(0, "here")

    on(2, program)


def test_a_dropped_optimizer_leaves_no_thread() -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        distribute(sgd(model), model, comm=comm)
        comm.allgather(None)

    before = threading.active_count()
    on(2, program)
    gc.collect()
    deadline = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_content_is_untouched_by_a_model_of_constants() -> None:
    """A buffer that nobody changes is the same after many syncs, with five ranks whose sums are rounded."""

    def program(comm: Any) -> Any:
        model = linear(0)
        model.register_buffer("table", torch.linspace(0.1, 0.9, 50))
        before = model.table.clone()
        with distribute(sgd(model), model, sync_period=1, comm=comm) as optimizer:
            loop(comm, model, optimizer, 20)
        return torch.equal(before, model.table)

    assert on(5, program) == [True] * 5


def test_state_is_averaged_by_parameter_whatever_the_order_in_the_optimizer() -> None:
    """Groups may be made from sets or by size; the model's order is the one that all ranks have."""

    def program(comm: Any) -> Any:
        model = linear(0, (3, 2))
        given = list(model.parameters())
        if comm.rank == 1:
            given.reverse()
        inner = torch.optim.SGD(given, lr=0.1, momentum=0.9)
        with distribute(inner, model, sync_period=1, optimizer_state="average", comm=comm) as optimizer:
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 10.0 * number + comm.rank)
            optimizer.step()
        return [inner.state[parameter]["momentum_buffer"] for parameter in model.parameters()]

    for moments in on(2, program):
        for number, moment in enumerate(moments):
            assert (moment == 10.0 * number + 0.5).all()


def test_a_buffer_that_has_grown_is_its_ranks_own_and_shifts_no_other() -> None:
    """Tables that grow with the longest sequence seen are as long as each rank's own. What follows them in the model must not move."""

    def program(comm: Any) -> Any:
        model = normed(0)
        model.insert(0, torch.nn.Identity())
        model[0].register_buffer("table", torch.zeros(2))
        with distribute(sgd(model), model, sync_period=2, comm=comm) as optimizer:
            loop(comm, model, optimizer, 1)
            if comm.rank == 1:
                model[0].table = torch.arange(5.0)
            else:
                model[0].table.fill_(3.0 + comm.rank)
            means = model[2].running_mean
            loop(comm, model, optimizer, 1)
            own = model[0].table.clone()
            with optimizer.consolidated():
                assert torch.equal(own, model[0].table) or comm.rank != 1
        return own, means.clone()

    (shorter, mean), (grown, other), (last, _) = on(3, program)
    assert torch.equal(mean, other)
    assert torch.equal(grown, torch.arange(5.0))
    assert shorter.tolist() == last.tolist() == [4.0, 4.0]  # of ranks 0 and 2


def test_buffers_of_dtypes_that_cannot_be_averaged_stay_local() -> None:
    def program(comm: Any) -> Any:
        model = linear(0)
        model.register_buffer("scale", torch.full((3,), 1.0 + comm.rank).to(torch.float8_e4m3fn))
        model.register_buffer("phase", torch.full((3,), 1.0 + comm.rank, dtype=torch.complex64))
        with distribute(sgd(model), model, sync_period=1, comm=comm) as optimizer:
            model.scale.copy_(torch.full((3,), 2.0 * (1 + comm.rank)))
            loop(comm, model, optimizer, 1)
            with optimizer.consolidated():
                pass
        return model.scale.float().tolist(), model.phase.tolist()

    assert on(2, program) == [([2.0] * 3, [1.0] * 3), ([4.0] * 3, [1.0] * 3)]
