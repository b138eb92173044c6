"""The collective on a device: what holds in host memory holds there, bit for bit, by the tests that say so of host memory."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("wagma._native")

import device_memcheck
import test_collective_local as host
from device_arrays import OnDevice
from device_arrays import where as device_of
from devices import DEVICES
from mpi_launch import mpiexec
from published import DTYPES, MANY, Case, evolve, run

from wagma.core.digest import digest
from wagma.real.local import run_local

RULES: list[Callable[[], None]] = [
    host.test_late_rank_merges_the_newest_sum_in_every_iteration_that_it_missed,
    host.test_merge_once_merges_no_sum_twice,
    host.test_records_keep_the_promises,
    host.test_records_use_pythons_monotonic_clock_and_are_handed_out_once,
    host.test_uneven_numbers_of_iterations_are_served,
    host.test_first_error_is_raised_with_its_rank_and_peers_hear_of_it,
    host.test_close_after_a_limit_was_caught_tells_the_others,
]


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("resident", [False, True], ids=["tensor", "resident"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("test_"))
def test_rules_of_the_collective_hold(
    rule: Callable[[], None], resident: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "GroupAllreduce", partial(OnDevice, kind=kind, resident=resident))
    rule()


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize(("ranks", "group_size"), [(3, 2), (1, 1)])
def test_syncs_make_all_models_the_mean(ranks: int, group_size: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "GroupAllreduce", partial(OnDevice, kind=kind))
    for dtype in (np.float32, np.float64):
        host.test_sync_makes_all_models_the_mean(ranks, group_size, dtype)


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize(
    ("transport", "resident"), [("ipc", False), ("shm", False), ("ipc", True)], ids=["shared", "staged", "resident"]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_the_host(dtype: str, transport: str, resident: bool, kind: str) -> None:
    """What wagma.core makes of the same contributions, late and fresh ones, in every dtype; and a whole run's end, beside the host's."""
    late = 0
    for ranks, size, period, count in ((2, 2, 0, MANY), (3, 2, 5, 3), (4, 4, 4, 1001)):
        case = Case(size, period, dtype, count, resident=resident, merge_once=size == 3)
        program = partial(run, case=case, collective_of=partial(OnDevice, kind=kind, transport=transport))
        late += sum(found[1] for found in run_local(ranks, program))
    assert late > 0  # else nothing was merged late, and half of the rule was not seen
    case = Case(4, 1, dtype, 1001, 4, resident=resident)
    there = run_local(4, partial(evolve, case=case, collective_of=partial(OnDevice, kind=kind, transport=transport)))
    (here, *_) = run_local(4, partial(evolve, case=replace(case, resident=False)))
    assert {digest(model) for model in there} == {digest(here)}


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("kind", DEVICES)
def test_bits_between_processes(kind: str) -> None:
    """Ranks are processes that map each other's memory, through pinned host memory, over shared memory and over MPI.

    Every MPI carries what an emulated device has, since that is the host's memory; of a GPU's that is up to the library.
    """
    transports = ("ipc", "ipc,resident", "shm", "mpi", *(["cuda-mpi", "cuda-mpi,resident"] if kind == "emulated" else []))
    job = mpiexec(3, "bits_device.py", kind, *transports, timeout=90)
    assert job.returncode == 0, job.output
    assert job.output.count("ok, ") == 3, job.output
    assert "ok, 0 late" not in job.output
    for dtype in DTYPES:
        (final, *_) = run_local(3, lambda comm, dtype=dtype: evolve(comm, Case(3, 1, dtype, 1001, 4)))
        assert job.output.count(f"rank 0: {dtype} {digest(final)}\n") == len(transports), job.output


def test_the_program_for_the_memory_checker_runs(capsys: pytest.CaptureFixture[str]) -> None:
    device_memcheck.main("emulated")
    assert capsys.readouterr().out.splitlines() == [f"{dtype} ok" for dtype in DTYPES]


@pytest.mark.gpu
@pytest.mark.timeout(700)
@pytest.mark.parametrize("kind", [one for one in DEVICES if one != "emulated"])
def test_no_kernel_touches_memory_that_is_not_its_own(kind: str) -> None:
    checker = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if checker is None:
        pytest.skip("no compute-sanitizer on PATH or in /usr/local/cuda/bin: it comes with the CUDA toolkit")
    options = [
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
    ]  # queues are kept for the next call: no leaks, which it would call them
    program = [sys.executable, str(Path(device_memcheck.__file__)), kind]
    done = subprocess.run([checker, *options, *program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok") == len(DTYPES)
    assert "ERROR SUMMARY: 0 errors" in done.stdout


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("kind", DEVICES)
def test_tensors_of_torch_are_averaged_where_they_are(kind: str, resident: bool) -> None:
    torch = pytest.importorskip("torch")

    def program(comm: Any) -> Any:
        from wagma import GroupAllreduce

        where = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
        models = {
            dtype: torch.full((33,), float(comm.rank), dtype=dtype, device=where)
            for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        }
        found = []
        for first in models.values():
            before, option = first.data_ptr(), "emulated" if kind == "emulated" else None
            with GroupAllreduce(comm, first, comm.size, 1, device=option, resident=resident) as collective:
                model, version = collective.model, collective.model._version
                assert collective.average().synced
                assert model._version > version  # what is the peers' now, too
                assert kind.replace("cuda", "CUDA") in collective.transport
                if resident:
                    model, version = collective.model, 0
                assert collective.model is model
            assert (model.device, model.dtype, model.shape) == (first.device, first.dtype, first.shape)
            assert (model.data_ptr() == before) != resident
            assert model._version > version  # autograd would notice
            del collective
            gc.collect()
            found.append((model.dtype, model.cpu().unique().tolist()))  # it outlives the collective
        return found

    for found in run_local(2, program):
        assert found == [(dtype, [0.5]) for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)]


@pytest.mark.parametrize("kind", DEVICES)
def test_a_rank_in_host_memory_averages_with_one_on_a_device(kind: str) -> None:
    """Documented fallback: what is on the device goes through pinned host memory."""

    def program(comm: Any) -> tuple[float, str]:
        from wagma import GroupAllreduce

        model = np.full(1001, float(comm.rank), np.float32)
        make: Callable[..., Any] = GroupAllreduce if comm.rank == 0 else partial(OnDevice, kind=kind)
        with make(comm, model, 2, 1) as collective:
            collective.average()
            transport = collective.transport
        assert (model == model[0]).all()
        return float(model[0]), transport

    (zero, _), (one, transport) = run_local(2, program)
    assert zero == one == 0.5
    assert "through pinned host memory" in transport


@pytest.mark.parametrize("kind", DEVICES)
def test_a_resident_model_of_other_libraries_is_where_it_says(kind: str) -> None:
    """`__cuda_array_interface__` as the first value has it, of memory that stays; host arrays stay host arrays on an emulated device."""
    from wagma import GroupAllreduce
    from wagma.real.bench.device import Tensor, place_for, read

    def program(comm: Any) -> None:
        place = place_for(device_of(kind), comm.rank)
        values = np.full(37, 0x3F80 + 0x40 * comm.rank, np.uint16)  # 1 and 1.5 in bfloat16
        first = Tensor(place, values)
        with GroupAllreduce(comm, first, 2, 1, dtype="bfloat16", device=device_of(kind), resident=True) as collective:
            first.close()  # it was the first value only
            assert collective.copies == 3
            before = collective.model
            told = before.__cuda_array_interface__
            assert (told["shape"], told["typestr"], told["version"], told["stream"]) == ((37,), "<u2", 3, None)
            assert np.array_equal(read(place.device, before), values)
            collective.average()
            after = collective.model
            assert after.__cuda_array_interface__["data"] != told["data"]
        del collective, before
        gc.collect()
        assert (read(place.device, after) == 0x3FA0).all()  # 1.25, also when the collective is gone

    run_local(2, program)


def test_a_resident_numpy_array_on_an_emulated_device() -> None:
    from wagma import GroupAllreduce

    def program(comm: Any) -> Any:
        with GroupAllreduce(comm, np.full(5, float(comm.rank)), 2, 1, device="emulated", resident=True) as collective:
            collective.model[:] += 1
            collective.average()
            last = collective.model
        assert isinstance(last, np.ndarray)
        del collective
        gc.collect()
        return last

    for last in run_local(2, program):
        assert (last.dtype, last.tolist()) == (np.float64, [1.5] * 5)


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize(
    ("transport", "on_host", "why"),
    [
        ("shm", False, "transport = 'shm'"),
        ("mpi", False, "transport = 'mpi'"),
        ("auto", True, "rank 0's model is in host memory"),
    ],
)
def test_a_resident_model_needs_buffers_on_its_device(transport: Any, on_host: bool, why: str, kind: str) -> None:
    """Refused on all ranks, in the same words."""
    from wagma import GroupAllreduce
    from wagma.errors import InputError

    def program(comm: Any) -> str:
        make: Callable[..., Any] = GroupAllreduce if on_host and comm.rank == 0 else partial(OnDevice, kind=kind)
        with pytest.raises(InputError) as caught:
            make(comm, np.zeros(4, np.float32), 2, 2, transport=transport, resident=True, timeout_s=20.0)
        return str(caught.value)

    said = run_local(2, program)
    assert (
        said == [f"resident = True: a model on a device lives in buffers there, with transport 'ipc' or 'cuda-mpi': {why}"] * 2
    )
