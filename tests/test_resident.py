"""Parameters that live in the kernel's buffers: the same bits as copying them in and out, and what is refused."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from wagma import GroupAllreduce  # noqa: E402  after the checks that they can be imported
from wagma.errors import CollectiveTimeout, InputError, ModelChanged, PeerFailed  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402
from wagma.real.wrapper.distribute import distribute  # noqa: E402
from wagma.workloads.seeded import seeded  # noqa: E402

RANKS = 3
everywhere = pytest.mark.parametrize("device", [None, "emulated"])
OPTIMIZERS = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
}


def model_for(rank: int) -> Any:
    """A frozen bias, a buffer, a weight that two layers share, and a parameter without dimensions."""
    with seeded(rank):
        first, again = torch.nn.Linear(5, 7), torch.nn.Linear(5, 7)
        model = torch.nn.Sequential(first, torch.nn.BatchNorm1d(7), torch.nn.Tanh(), torch.nn.Linear(7, 5), again)
    first.bias.requires_grad_(False)
    again.weight = first.weight
    model.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.5)))
    return model


def in_turns(barrier: threading.Barrier, rank: int, step: Callable[[], object]) -> None:
    """Who is late, and what a late rank merges, is then always the same."""
    for turn in range(RANKS):
        if turn == rank:
            step()
        barrier.wait()


def trained(algorithm: str, make: Callable[..., Any], sync_period: int | str, **options: Any) -> list[list[bytes]]:
    """Each rank's model, bit by bit, after syncs together and other steps in turns; then two steps alone."""
    turns = threading.Barrier(RANKS, timeout=30.0)
    models = [model_for(rank) for rank in range(RANKS)]  # not in the threads: torch has one source of random numbers for all

    def program(comm: LocalCommunicator) -> list[bytes]:
        model = models[comm.rank]
        optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])
        generator = torch.Generator().manual_seed(comm.rank)

        def step(optimizer: Any) -> None:
            optimizer.zero_grad()
            (model.scale * model(torch.randn(8, 5, generator=generator))).square().mean().backward()
            optimizer.step()

        with distribute(optimizer, model, algorithm, RANKS, sync_period, comm=comm, timeout_s=30.0, **options) as wrapped:
            for t in range(7):
                if algorithm == "local_sgd" or (isinstance(sync_period, int) and (t + 1) % sync_period == 0):
                    step(wrapped)
                else:
                    in_turns(turns, comm.rank, lambda: step(wrapped))
        for _ in range(2):
            step(optimizer)
        return [value.numpy().tobytes() for value in model.state_dict().values()]

    return run_local(RANKS, program)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    ("algorithm", "sync_period", "options"),
    [
        ("wagma_sgd", 1, {}),
        ("wagma_sgd", 3, {}),
        ("wagma_sgd", "never", {"merge_once": True}),
        ("local_sgd", 2, {}),
    ],
)
def test_the_same_bits_as_copied_parameters(
    algorithm: str, sync_period: int | str, options: dict[str, Any], make: Callable[..., Any]
) -> None:
    copied = trained(algorithm, make, sync_period, **options)
    assert trained(algorithm, make, sync_period, resident=True, **options) == copied
    assert len({tuple(rank) for rank in copied}) == RANKS  # after the last sync each went its own way


@everywhere
def test_parameters_stay_those_that_the_program_knows(device: Any) -> None:
    def program(comm: LocalCommunicator) -> None:
        model = model_for(0)
        known = dict(model.named_parameters())
        frozen = model[0].bias.data_ptr()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with distribute(optimizer, model, group_size=2, sync_period=1, comm=comm, resident=True, device=device) as wrapped:
            seen = set()
            for _ in range(4):
                model(torch.ones(4, 5)).sum().backward()
                wrapped.step()
                assert all(known[name] is parameter for name, parameter in model.named_parameters())
                assert model[4].weight is model[0].weight
                assert model[0].bias.data_ptr() == frozen
                assert model.scale.shape == ()
                seen.add(model[3].weight.data_ptr())
            assert len(seen) > 1  # the model moves from buffer to buffer
        values = [parameter.detach().clone() for parameter in known.values()]
        assert model[3].weight.data_ptr() not in seen  # memory of its own again
        wrapped.close()
        del wrapped
        gc.collect()
        assert all(torch.equal(a, b) for a, b in zip(values, known.values(), strict=True))

    run_local(2, program)


@everywhere
def test_training_after_an_abort_still_has_its_parameters(device: Any) -> None:
    """The program may want to save what it has."""
    kept: list[Any] = []

    def program(comm: LocalCommunicator) -> None:
        model = model_for(comm.rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        kept.append(model)
        with distribute(optimizer, model, group_size=2, comm=comm, resident=True, device=device) as wrapped:
            model(torch.ones(4, 5)).sum().backward()
            wrapped.step()
            raise ValueError("bad batch")

    with pytest.raises(ValueError, match="bad batch"):
        run_local(2, program)
    gc.collect()
    assert all(torch.isfinite(parameter).all() for model in kept for parameter in model.parameters())


@everywhere
def test_a_wait_that_is_given_up_leaves_the_model_as_it_is(device: Any) -> None:
    """At a sync, whose end would free the buffer in which the application still works: the others wrote their next sum into it."""
    gave_up, went_on = threading.Event(), threading.Event()

    def impatient(comm: LocalCommunicator) -> list[float]:
        collective = GroupAllreduce(comm, np.full(4, 1.0), 2, 2, resident=True, device=device, timeout_s=1.0)
        collective.average()
        collective.model[:] = 5
        with pytest.raises(CollectiveTimeout):
            collective.average()
        gave_up.set()
        assert went_on.wait(20)
        with pytest.raises(CollectiveTimeout):
            collective.close()
        return list(collective.model)

    def patient(comm: LocalCommunicator) -> str:
        collective = GroupAllreduce(comm, np.full(4, 2.0), 2, 2, resident=True, device=device, timeout_s=20.0)
        collective.average()
        assert gave_up.wait(20)

        def go_on() -> None:
            for t in range(1, 4):
                collective.model[:] = 100 * t
                collective.average()

        with pytest.raises(PeerFailed) as caught:
            go_on()
        went_on.set()
        return str(caught.value)

    model, said = run_local(2, lambda comm: (patient if comm.rank else impatient)(comm))
    assert model == [5.0] * 4
    assert said.startswith("rank 0 failed: CollectiveTimeout: rank 0")


@everywhere
def test_a_late_rank_moves_no_model_by_itself(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine merges is what it was given: parameters need not be copied to where it writes."""
    from wagma.real.wrapper.resident import ResidentModel

    collect, places = ResidentModel._collect, []

    def collected(model: ResidentModel) -> None:
        before = [parameter.data_ptr() for parameter in model._parameters]
        collect(model)
        places.append(before == [parameter.data_ptr() for parameter in model._parameters])

    monkeypatch.setattr(ResidentModel, "_collect", collected)
    turns = threading.Barrier(RANKS, timeout=30.0)

    def program(comm: LocalCommunicator) -> None:
        model = model_for(0)
        optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
        with distribute(optimizer, model, "wagma_sgd", RANKS, 3, comm=comm, resident=True, device=device) as wrapped:
            for t in range(6):
                model(torch.ones(4, 5)).square().mean().backward()
                wrapped.step() if t % 3 == 2 else in_turns(turns, comm.rank, wrapped.step)

    run_local(RANKS, program)
    assert places == [True] * (6 * RANKS)


@pytest.mark.parametrize("transport", ["shm", "mpi"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_buffers_in_host_memory_are_refused_on_a_device(ranks: int, transport: Any) -> None:
    def program(comm: LocalCommunicator) -> str:
        model = model_for(0)
        optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
        with pytest.raises(InputError) as caught:
            distribute(optimizer, model, "wagma_sgd", comm=comm, resident=True, device="emulated", transport=transport)
        return str(caught.value)

    for said in run_local(ranks, program):
        assert said == (
            "resident = True: a model on a device lives in buffers there, with transport 'ipc' or 'cuda-mpi': "
            f"transport = '{transport}'"
        )


@pytest.mark.parametrize("option", ["resident", "merge_once"])
def test_options_of_the_collective_that_are_no_truth(option: str) -> None:
    with pytest.raises(InputError, match=f"^rank 0: {option} = 'yes': must be True or False"):
        run_local(2, lambda comm: GroupAllreduce(comm, np.zeros(3), **{option: "yes"}))  # type: ignore[arg-type]


def test_models_that_cannot_be_resident_are_refused_on_every_rank() -> None:
    def transposed() -> Any:
        model = torch.nn.Linear(5, 3)
        model.weight = torch.nn.Parameter(model.weight.detach().t())
        return model

    def expanded() -> Any:
        model = torch.nn.Linear(5, 3)
        model.bias = torch.nn.Parameter(torch.zeros(1).expand(3))
        return model

    def mixed() -> Any:
        model = torch.nn.Linear(5, 3)
        model.weight = torch.nn.Parameter(model.weight.detach().bfloat16())
        return model

    plain = "allreduce_sgd averages no models in collectives; must be False, or the algorithm one of local_sgd, wagma_sgd"
    for make, algorithm, complaint in (
        (lambda: torch.nn.Linear(5, 3), "allreduce_sgd", f"resident = True: {plain}"),
        (lambda: torch.nn.Linear(5, 3), "ideal", "resident = True: ideal averages no models"),
        (transposed, "wagma_sgd", "parameter 'weight' has strides (1, 5): resident parameters must be contiguous"),
        (expanded, "local_sgd", "parameter 'bias' has strides (0,): its elements share memory; give it clone()"),
        (
            mixed,
            "wagma_sgd",
            "parameter 'weight' is torch.bfloat16 in a model of torch.float32: resident parameters must be of one",
        ),
        (lambda: torch.nn.Linear(5, 3, device="meta"), "wagma_sgd", "parameter 'weight' is on meta"),
    ):
        refused = []

        def program(comm: LocalCommunicator, make=make, algorithm=algorithm, refused=refused) -> None:
            model = make() if comm.rank == 1 else torch.nn.Linear(5, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with pytest.raises(InputError) as caught:
                distribute(optimizer, model, algorithm, comm=comm, resident=True)
            refused.append(str(caught.value))

        run_local(2, program)
        rank = 0 if algorithm in ("allreduce_sgd", "ideal") else 1
        assert refused[0].startswith(f"rank {rank}: {complaint}"), refused
        assert set(refused) == {refused[0]}
        assert "\n" not in refused[0]


def test_resident_on_one_rank_only_is_refused_on_all() -> None:
    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(5, 3)
        with pytest.raises(InputError, match=r"rank 1 has .*resident = True.*; rank 0 has .*resident = False"):
            distribute(torch.optim.SGD(model.parameters()), model, comm=comm, resident=comm.rank == 1)

    run_local(3, program)


@everywhere
def test_merge_once_leaves_a_resident_model_as_it_is(device: Any) -> None:
    ahead = threading.Event()

    def program(comm: LocalCommunicator) -> int:
        nothing = 0
        with GroupAllreduce(
            comm, np.zeros(3), 2, "never", merge_once=True, resident=True, device=device, timeout_s=20.0
        ) as collective:
            if comm.rank == 1:
                assert ahead.wait(20.0)
            for t in range(6):
                collective.model[:] = t
                outcome = collective.average()
                if outcome.merged_version is None:
                    nothing += 1
                    assert (collective.model == t).all()
            ahead.set()
        return nothing

    fast, late = run_local(2, program)
    assert fast == 0
    assert late >= 3  # rank 0's six sums are all there: the newest is merged, after it none


def test_the_array_of_a_resident_collective() -> None:
    def program(comm: LocalCommunicator) -> None:
        first = np.full(5, float(comm.rank))
        with GroupAllreduce(comm, first, 2, 1, resident=True) as collective:
            assert collective.copies == 3
            before = collective.model
            assert before is not first
            assert np.array_equal(before, first)
            collective.model[:] += 1
            collective.average()
            assert collective.model is not before
            assert (collective.model == 1.5).all()
        del before
        last = collective.model
        del collective
        gc.collect()
        assert (last == 1.5).all()  # a buffer lives as long as somebody looks at it
        assert (first == comm.rank).all()  # only the first value

    run_local(2, program)
    assert run_local(2, lambda comm: GroupAllreduce(comm, np.zeros(5)).copies) == [3, 3]


class Replacing(torch.optim.Optimizer):
    """Gives parameters new data in place of writing into theirs, as older optimizers do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.data = parameter.data - 0.1 * parameter.grad


def test_updates_that_replace_data_are_not_lost() -> None:
    """The kernel would average what is in its buffers, and the update would be gone after it."""

    def train(comm: LocalCommunicator, resident: bool) -> list[bytes]:
        with seeded(3):
            model = torch.nn.Linear(5, 3)
        generator = torch.Generator().manual_seed(comm.rank)
        with distribute(Replacing(model.parameters()), model, "local_sgd", 1, 2, comm=comm, resident=resident) as wrapped:
            for t in range(6):
                wrapped.zero_grad()
                model(torch.randn(8, 5, generator=generator)).square().mean().backward()
                wrapped.step()
                if t == 3:  # and a program that does so between two steps
                    flat = torch.nn.utils.parameters_to_vector(model.parameters())
                    torch.nn.utils.vector_to_parameters(flat / 2, model.parameters())
        return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]

    copied = run_local(2, lambda comm: train(comm, False))
    assert run_local(2, lambda comm: train(comm, True)) == copied
    assert copied[0] == copied[1]


@pytest.mark.parametrize("change", ["swapped", "transposed"])
def test_values_that_look_at_parts_of_the_buffer_are_not_lost(change: str) -> None:
    """Two parameters that look at each other's part, or one at its own in another order: each is read before anything is written."""

    def train(comm: LocalCommunicator, resident: bool) -> list[bytes]:
        with seeded(3 + comm.rank):
            model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        first, second = model[0].weight, model[1].weight
        with distribute(
            torch.optim.SGD(model.parameters(), lr=0.1), model, "local_sgd", 1, 1, comm=comm, resident=resident
        ) as wrapped:
            for _ in range(4):
                if change == "swapped":
                    first.data, second.data = second.data, first.data
                else:
                    first.data = first.data.t()
                for parameter in model.parameters():  # a product would be rounded otherwise with a transposed matrix
                    parameter.grad = torch.full_like(parameter, 1.0 + comm.rank)
                wrapped.step()
        return [parameter.detach().contiguous().numpy().tobytes() for parameter in model.parameters()]

    copied = run_local(2, lambda comm: train(comm, False))
    assert run_local(2, lambda comm: train(comm, True)) == copied


@pytest.mark.parametrize(
    ("new", "complaint"),
    [
        (
            lambda old: old.double(),
            r"parameter 'weight' was \(3, 5\), torch.float32 on cpu .* is \(3, 5\), torch.float64 on cpu",
        ),
        (lambda old: old[:, :1], r"parameter 'weight' was \(3, 5\), .* is \(3, 1\), torch.float32 on cpu"),
    ],
)
def test_data_that_does_not_fit_any_more_is_refused(new: Callable[..., Any], complaint: str) -> None:
    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(5, 3)
        with distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, resident=True) as wrapped:
            model.weight.data = new(model.weight.data)
            wrapped.step()

    with pytest.raises(ModelChanged, match=complaint):
        run_local(2, program)


def test_parameters_that_share_memory_are_refused() -> None:
    """They would become two. Parts of one array that do not overlap may move."""

    def attempt(comm: LocalCommunicator, model: Any) -> None:
        with distribute(torch.optim.SGD([model[0].weight], lr=0.1), model, comm=comm, resident=True) as wrapped:
            wrapped.step()

    def tied_by_data(comm: LocalCommunicator) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        model[1].weight.data = model[0].weight.data
        attempt(comm, model)

    def seen_by_a_buffer(comm: LocalCommunicator) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3))
        model.register_buffer("row", model[0].weight.detach()[1])
        attempt(comm, model)

    for program, names in ((tied_by_data, "'0.weight' and '1.weight'"), (seen_by_a_buffer, "'0.weight' and 'row'")):
        with pytest.raises(InputError, match=f"rank 0: parameters {names} share memory: resident parameters must be") as caught:
            run_local(2, program)
        assert "\n" not in str(caught.value)

    def parts_of_one_array(comm: LocalCommunicator) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        flat = torch.zeros(18)
        model[0].weight.data, model[1].weight.data = flat[:9].view(3, 3), flat[9:].view(3, 3)
        attempt(comm, model)

    run_local(2, parts_of_one_array)
