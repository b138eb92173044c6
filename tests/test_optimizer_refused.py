"""Bad input to the distributed optimizer: one clear line on the rank at fault, naming parameter and rank, and an orderly end elsewhere."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

from training import all_same, content, distribute, linear, loop, on, parameters, refused, sgd  # noqa: E402  after the checks

from wagma import errors  # noqa: E402
from wagma.errors import InputError, ModelChanged, ModelMismatch, NotFinite, PeerFailed, WagmaError  # noqa: E402
from wagma.real.limited import TEXT_BYTES, _cut  # noqa: E402


def test_every_error_can_be_caught_as_one_and_as_what_python_has() -> None:
    found = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert all(issubclass(kind, WagmaError) for kind in found.values())
    assert all(name in errors.__doc__ for name in found)
    assert issubclass(ModelMismatch, ValueError)
    assert issubclass(ModelChanged, ValueError)
    assert issubclass(NotFinite, ArithmeticError)
    import wagma

    assert all(getattr(wagma, name) is kind for name, kind in found.items())


# -- models that differ --------------------------------------------------------------------------------------------------------


def other_shape(model: Any) -> None:
    model[2].weight = torch.nn.Parameter(torch.zeros(2, 9))


def other_dtype(model: Any) -> None:
    model[2].double()


def frozen(model: Any) -> None:
    model[2].bias.requires_grad_(False)


def tied(model: Any) -> None:
    model[2].weight = model[1].weight


def longer(model: Any) -> None:
    model.append(torch.nn.Linear(2, 2))


def buffered(model: Any) -> None:
    model[0].register_buffer("mask", torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            other_shape,
            r"rank 2 has parameter '2.weight' of shape \(2, 9\), float32 where rank 0 has parameter '2.weight' of shape \(3, 3\)",
        ),
        (other_dtype, r"rank 2 has parameter '2.weight' of shape \(3, 3\), float64 where rank 0"),
        (
            frozen,
            r"rank 2 has parameter '2.bias' of shape \(3,\), float32, frozen where rank 0 has parameter '2.bias' of shape \(3,\), float32:",
        ),
        (tied, r"rank 2 has parameter '2.weight' of shape \(3, 3\), float32, the same as '1.weight' where rank 0"),
        (longer, r"rank 2 has parameter '3.weight' of shape \(2, 2\), float32 where rank 0 has no further one"),
        (buffered, r"rank 2 has buffer '0.mask' of shape \(4,\), bool where rank 0 has no further one"),
    ],
)
def test_models_that_differ_name_rank_and_first_difference(change: Any, complaint: str) -> None:
    def program(comm: Any) -> None:
        model = linear(0, (3, 3), (3, 3))
        if comm.rank == 2:
            change(model)
        distribute(sgd(model), model, comm=comm)

    refused(ModelMismatch, complaint, program, ranks=4)


def test_other_optimizers_are_refused() -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        kind = torch.optim.Adam if comm.rank else torch.optim.SGD
        distribute(kind(model.parameters(), lr=0.1), model, comm=comm)

    refused(InputError, "rank 1 has wagma_sgd, .*Adam.*; rank 0 has .*SGD", program)


# -- models that change --------------------------------------------------------------------------------------------------------


def replaced(model: Any) -> None:
    model[1].weight = torch.nn.Parameter(model[1].weight.detach().clone())


def unfrozen(model: Any) -> None:
    model[1].bias.requires_grad_(True)


def grown(model: Any) -> None:
    model[0].register_parameter("scale", torch.nn.Parameter(torch.ones(1)))


def deepened(model: Any) -> None:
    model.append(torch.nn.Linear(2, 2))


def removed(model: Any) -> None:
    model[0].bias = None


def reshaped(model: Any) -> None:
    model[0].bias.data = torch.zeros(1)  # the model still runs


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (reshaped, "rank 1: parameter '0.bias' has shape (1,) since distribute, and had (3,); wrap anew after the change"),
        (replaced, "rank 1: parameter '1.weight' was replaced since distribute; change its data in place"),
        (unfrozen, "rank 1: parameter '1.bias' was unfrozen since distribute"),
        (grown, "rank 1: module '0' has got or lost parameters"),
        (deepened, "rank 1: module '' has got or lost parameters or modules"),
        (removed, "rank 1: parameter '0.bias' was replaced since distribute"),
    ],
)
def test_a_model_that_changes_ends_the_run_in_order(change: Any, complaint: str) -> None:
    said: dict[int, BaseException] = {}

    def program(comm: Any) -> None:
        model = linear(0, (3, 2))
        model[1].bias.requires_grad_(False)
        try:
            with distribute(sgd(model), model, sync_period=1, comm=comm, timeout_s=10.0) as optimizer:
                loop(comm, model, optimizer, 2)
                if comm.rank == 1:
                    change(model)
                loop(comm, model, optimizer, 5)
        except WagmaError as error:
            said[comm.rank] = error

    began = time.monotonic()
    on(3, program)
    assert time.monotonic() - began < 5.0
    assert isinstance(said[1], ModelChanged)
    assert complaint in str(said[1])
    for rank in (0, 2):
        assert isinstance(said[rank], PeerFailed)
        assert complaint in str(said[rank])


def test_data_changed_in_place_is_no_change() -> None:
    def program(comm: Any) -> Any:
        model = linear(0)
        with distribute(sgd(model), model, sync_period=1, comm=comm) as optimizer:
            model[0].weight.data = model[0].weight.data.clone() * 2
            loop(comm, model, optimizer, 1)
        return content(model)

    assert all_same(on(2, program))


# -- what cannot be averaged ---------------------------------------------------------------------------------------------------


def embedding(sparse: bool) -> Any:
    return torch.nn.Sequential(torch.nn.Embedding(6, 3, sparse=sparse))


def test_sparse_gradients_are_refused_where_gradients_are_averaged() -> None:
    said: dict[int, BaseException] = {}

    def program(comm: Any) -> None:
        model = embedding(comm.rank == 1)
        try:
            with distribute(sgd(model), model, "allreduce_sgd", comm=comm, timeout_s=10.0) as optimizer:
                model(torch.tensor([comm.rank])).sum().backward()
                optimizer.step()
        except WagmaError as error:
            said[comm.rank] = error

    on(2, program)
    line = "rank 1: parameter '0.weight' has a sparse gradient: must be dense for an algorithm that averages gradients"
    assert type(said[1]) is InputError
    assert str(said[1]) == line
    assert isinstance(said[0], PeerFailed)
    assert line in str(said[0])


def test_sparse_gradients_do_where_models_are_averaged() -> None:
    def program(comm: Any) -> Any:
        with torch.no_grad():
            model = embedding(True)
            model[0].weight.fill_(1.0)
        with distribute(sgd(model), model, sync_period=1, comm=comm) as optimizer:
            model(torch.tensor([comm.rank])).sum().backward()
            optimizer.step()
        return content(model)

    models = on(2, program)
    assert all_same(models)
    assert torch.allclose(models[0][0][:2], torch.tensor(0.95))


@pytest.mark.parametrize("algorithm", ["wagma_sgd", "allreduce_sgd", "eager_sgd", "sgp"])
def test_nan_is_not_averaged_into_the_others_if_so_asked(algorithm: str) -> None:
    said: dict[int, BaseException] = {}
    models: dict[int, Any] = {}

    def program(comm: Any) -> None:
        models[comm.rank] = model = linear(0)
        try:
            with distribute(sgd(model), model, algorithm, 2, 2, check_finite=True, comm=comm, timeout_s=10.0) as optimizer:
                loop(comm, model, optimizer, 3)
                for parameter in model.parameters():
                    parameter.grad = torch.zeros_like(parameter)
                if comm.rank == 1:
                    model[0].bias.grad[1] = float("nan")
                optimizer.step()
                loop(comm, model, optimizer, 20)
        except WagmaError as error:
            said[comm.rank] = error

    on(3, program)
    assert isinstance(said[1], NotFinite)
    assert "rank 1: parameter '0.bias' has NaN or infinity in its" in str(said[1])
    assert "\n" not in str(said[1])
    for rank in (0, 2):
        assert isinstance(said[rank], PeerFailed)
        assert "'0.bias' has NaN" in str(said[rank])
        assert all(bool(torch.isfinite(one).all()) for one in parameters(models[rank]))


def test_finite_values_whose_sum_overflows_pass() -> None:
    def program(comm: Any) -> None:
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.full((4,), 3e38))])
        with distribute(sgd(model, lr=0.0), model, check_finite=True, comm=comm) as optimizer:
            optimizer.step()

    on(1, program)


# -- what is no model, and no optimizer ----------------------------------------------------------------------------------------


def test_sharded_and_lazy_models_are_refused() -> None:
    class FullyShardedDataParallel(torch.nn.Module):  # by its name: importing torch's own takes seconds
        pass

    class DTensor(torch.Tensor):
        pass

    def lazy(comm: Any) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LazyLinear(3))
        distribute(sgd(model[0]), model, comm=comm)

    def sharded(comm: Any) -> None:
        model = linear(0).append(FullyShardedDataParallel())
        distribute(sgd(model), model, comm=comm)

    def tensors(comm: Any) -> None:
        model = linear(0)
        model[0].weight = torch.nn.Parameter(torch.zeros(3, 5).as_subclass(DTensor))
        distribute(sgd(model), model, comm=comm)

    refused(InputError, "rank 0: parameter '1.weight' has no shape yet: call the model once", lazy)
    refused(InputError, "rank 0: model: its FullyShardedDataParallel is sharded", sharded)
    refused(InputError, "rank 0: parameter '0.weight' is a DTensor: every rank must hold a whole model", tensors)


def test_wrapping_twice_is_refused_until_the_first_has_closed() -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        inner, other = sgd(model), sgd(model)
        with distribute(inner, model, comm=comm) as optimizer:
            for given, complaint in (
                (optimizer, "optimizer: it is distributed already; wrap each optimizer once"),
                (inner, "optimizer: it is distributed already"),
                (other, "model: it is distributed already, with another optimizer; give one optimizer all of its parameters"),
            ):
                with pytest.raises(InputError, match=f"rank 0: {complaint}"):
                    distribute(given, model, comm=comm)
        distribute(inner, model, comm=comm).close()

    on(2, program)


def test_without_mpi_it_is_one_line() -> None:
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import torch, wagma\n"
        "model = torch.nn.Linear(2, 2)\n"
        "try: wagma.distribute(torch.optim.SGD(model.parameters()), model)\n"
        "except wagma.MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "mpi4py" in done.stdout
    assert done.stdout.count("\n") == 1


def test_tensors_that_cannot_be_written_are_refused() -> None:
    def expanded(name: str) -> Any:
        model = linear(0)
        if name == "mask":
            model.register_buffer(name, torch.ones(1).expand(4))
        else:
            model[0].bias = torch.nn.Parameter(torch.zeros(1).expand(3))
        return model

    def on_meta() -> Any:
        return torch.nn.Linear(3, 3, device="meta")

    def empty() -> Any:
        return torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(0, 2))])

    for make, complaint in (
        (lambda: expanded("mask"), r"rank 0: buffer 'mask' has strides \(0,\): its elements share memory"),
        (lambda: expanded("bias"), r"rank 0: parameter '0.bias' has strides \(0,\): its elements share memory"),
        (on_meta, "rank 0: parameter 'weight' is on meta and has no values"),
        (empty, r"rank 0: the model's parameters are empty: '0' has shape \(0, 2\)"),
    ):

        def program(comm: Any, make: Any = make) -> None:
            model = make()
            distribute(sgd(model), model, comm=comm)

        refused(InputError, complaint, program)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"seed": "x"}, "seed = 'x': must be a whole number"),
        ({"seed": -1}, "seed = -1: must be a whole number, at least 0"),
        ({"seed": 1 << 63}, "seed = 9223372036854775808: must be"),
        ({"settings": [1]}, r"settings = \[1\]: must be a dict"),
        ({"timeout_s": "5"}, "timeout_s = '5': must be above 0"),
        ({"timeout_s": None}, "timeout_s = None: must be above 0"),
        ({"check_finite": "yes"}, "check_finite = 'yes': must be True or False"),
        ({"merge_once": 3}, "merge_once = 3: must be True or False"),
        ({"resident": "x"}, "resident = 'x': must be True or False"),
    ],
)
def test_options_of_other_types_are_refused(options: dict[str, Any], complaint: str) -> None:
    def program(comm: Any) -> None:
        model = linear(0)
        distribute(sgd(model), model, comm=comm, **options)

    refused(InputError, f"rank 0: {complaint}", program)


def test_long_texts_that_differ_at_their_ends_do_not_agree() -> None:
    """Ranks compare texts of a fixed length, and what is cut away must count."""
    same, other = (_cut("x" * 600 + end) for end in "ab")
    assert len(same) == len(other) == TEXT_BYTES
    assert same != other
    assert _cut("short \udcff") == b"short \\udcff"
