"""The ranks of `wagma bench collective --device`: the kernel and a staged MPI_Allreduce on tensors of a device, and copies on it.

`mpiexec -n N python -m mpi4py -m wagma.real.bench.device SPECIFICATION`; one JSON line on rank 0. What is timed ends when the device
has done it, not when it has been told. Nothing here needs torch: tensors are memory of the native device that says where it is.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wagma.errors import InputError, MissingDependencyError, WagmaError
from wagma.real.bench.kernels import BFLOAT16_ONE, STORED, TIMEOUT_S, needed, run_on_ranks
from wagma.real.bench.rounds import WARM_UP, Rounds, block, lateness, library
from wagma.real.collective import GroupAllreduce
from wagma.real.devices.arrays import ITEM_BYTES
from wagma.real.devices.place import Place, emulated_devices, emulated_index, place_at
from wagma.real.launching.ranks import local_rank
from wagma.real.limited import agree
from wagma.real.modules import cuda_native

if TYPE_CHECKING:
    from wagma import _native

#: Copied within a GPU to find its rate: far more than its caches hold, and so much that beginning and waiting take little beside it. An
#: emulated device has no rate of its own.
COPIED_BYTES = {"cuda": 1 << 30, "emulated": 1 << 25}
#: ... but no more of the memory that is free, for each of the two places.
MOST_MEMORY = 0.125
COPY_ROUNDS = 5
#: The version of the first call that counts: the kernel is checked by one call, and warmed up.
FIRST_VERSION = 1 + WARM_UP


def devices_for(asked: str) -> int:
    """How many devices there are for what `--device` says; asks for no memory on any. Raises InputError if that one is not there."""
    if asked == "emulated":
        try:
            return emulated_devices()
        except InputError as error:
            raise InputError(f"--device {asked}: {error}") from error
    try:
        module = cuda_native()
    except MissingDependencyError as error:
        raise InputError(f"--device {asked}: {error}") from error
    there, number = int(module.devices()), _number(asked)
    if not there:
        raise InputError(f"--device {asked}: {module.why_not or module.why_no_device}")
    if number is not None and number >= there:
        raise InputError(f"--device {asked}: there are {there} CUDA devices, numbered from 0")
    return there


def _number(asked: str) -> int | None:
    return int(asked.removeprefix("cuda:")) if ":" in asked else None


def place_for(asked: str, rank: int) -> Place:
    """The device of a rank: "cuda", in turns over those of its machine; "cuda:N", that one; "emulated". Raises InputError."""
    if asked == "emulated":
        return place_at("emulated", emulated_index(rank))
    there, number = devices_for(asked), _number(asked)
    place = place_at("cuda", local_rank() % there if number is None else number)
    if place.device is None:
        raise InputError(f"--device {asked}: {place.why_not}")
    return place


class Tensor:
    """`count` items in a device's memory, for whoever knows `__cuda_array_interface__`."""

    def __init__(self, place: Place, values: npt.NDArray[Any]) -> None:
        assert place.device is not None
        self._device, self._like = place.device, values[:0]
        self.count, self.bytes = values.size, values.nbytes
        self.address: int = self._device.allocate(self.bytes)
        self.write(values)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. No stream: nothing works on it but what is called here, which waits."""
        return {
            "shape": (self.count,),
            "typestr": self._like.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "stream": None,
        }

    def write(self, values: npt.NDArray[Any]) -> None:
        """Take these."""
        write(self._device, self, values)

    def read(self) -> npt.NDArray[Any]:
        """What is in it."""
        return read(self._device, self)

    def close(self) -> None:
        """Free it."""
        self._device.release(self.address)


def write(device: _native.Device, array: Any, values: npt.NDArray[Any]) -> None:
    """Into an array that says where in the device's memory it is."""
    device.copy(array.__cuda_array_interface__["data"][0], values.ctypes.data, values.nbytes)


def read(device: _native.Device, array: Any) -> npt.NDArray[Any]:
    """What is in one."""
    told = array.__cuda_array_interface__
    values = np.empty(told["shape"], told["typestr"])
    device.copy(values.ctypes.data, told["data"][0], values.nbytes)
    return values


def ones(count: int, dtype: str) -> npt.NDArray[Any]:
    """Of a dtype that numpy may not know."""
    return np.full(count, BFLOAT16_ONE if dtype == "bfloat16" else 1, STORED.get(dtype, dtype))


class OnDevice:
    """One call: publish the model, average, have the average. mode "tensor": in a tensor; "resident": in the library's buffers."""

    def __init__(self, comm: Any, place: Place, count: int, mode: str, what: Mapping[str, Any]) -> None:
        assert place.device is not None
        self._device = place.device
        self._comm = comm
        tensor = Tensor(place, ones(count, what["dtype"]))
        self._tensor = None if mode == "resident" else tensor
        device = "emulated" if place.kind == "emulated" else f"cuda:{place.index}"
        self.collective = GroupAllreduce(
            comm, tensor, what["group_size"], 1 if what["syncs"] else "never", timeout_s=TIMEOUT_S, device=device, record=True,
            **needed(mode, what["dtype"]), **what["options"],
        )  # fmt: skip
        if self._tensor is None:
            tensor.close()  # it was the first value
        self.fresh: list[bool] = []
        self()
        found = read(self._device, self.collective.model)
        if not (found == ones(1, what["dtype"])[0]).all():
            raise WagmaError(f"rank {comm.rank}: the average of ones is {found.min()} to {found.max()}")

    def __call__(self) -> None:
        """Average once, and wait for the device."""
        self.fresh.append(self.collective.average().fresh)
        self._device.synchronize()

    def reductions(self) -> list[float]:
        """On rank 0: `reductions` of all ranks."""
        executions, _ = self.collective.take_records()
        everyone = self._comm.gather({one["version"]: (one["started_ns"], one["completed_ns"]) for one in executions})
        return [] if everyone is None else reductions(everyone)

    def close(self) -> None:
        """Collective."""
        self.collective.close()
        if self._tensor is not None:
            self._tensor.close()


def reductions(everyone: Sequence[Mapping[int, tuple[int, int]]]) -> list[float]:
    """Seconds of each version that counts, from when the last rank has begun it until all have their sums.

    everyone: of each rank version -> (when it began it, when it had the sum), in ns. What is added up is published by then, here or before.
    """
    found = []
    for version in sorted(set(everyone[0]).intersection(*everyone[1:])):
        if version >= FIRST_VERSION:
            began, done = zip(*(versions[version] for versions in everyone), strict=True)
            found.append((max(done) - max(began)) * 1e-9)
    return found


class Staged:
    """MPI_Allreduce of tensors, over this rank's group: to pinned host memory, added up there, and back.

    mode "tensor": from one buffer of the host into another; "resident": in place.
    """

    def __init__(self, group: Any, place: Place, count: int, dtype: str, mode: str) -> None:
        from mpi4py import MPI

        assert place.device is not None
        self._group, self._device, self._operation = group, place.device, MPI.SUM
        self._tensor = Tensor(place, ones(count, dtype))
        self._pinned = [self._device.allocate_host(self._tensor.bytes) for _ in range(1 if mode == "resident" else 2)]
        own, *rest = [_host_array(address, count, dtype) for address in self._pinned]
        self._own, self._sum = own, rest[0] if rest else own
        self._source = self._own if rest else MPI.IN_PLACE
        self()
        found = self._tensor.read()
        if not (found == group.size).all():
            raise WagmaError(f"MPI_Allreduce of {group.size} times 1 gave {found.min()} to {found.max()}")
        self._tensor.write(np.zeros(count, dtype))  # sums of sums would grow beyond all numbers

    def __call__(self) -> None:
        """Add up once. Each copy waits for the device."""
        address, size = self._tensor.address, self._tensor.bytes
        self._device.copy(self._pinned[0], address, size)
        self._group.Allreduce(self._source, self._sum, self._operation)
        self._device.copy(address, self._pinned[-1], size)

    def close(self) -> None:
        """Free what it has."""
        self._tensor.close()
        for address in self._pinned:
            self._device.release_host(address)


def _host_array(address: int, count: int, dtype: str) -> npt.NDArray[Any]:
    """Memory of the host as an array. Whoever has allocated it keeps it for as long."""
    memory = (ctypes.c_char * (count * ITEM_BYTES[dtype])).from_address(address)
    return np.frombuffer(memoryview(memory).cast("B"), dtype)


class Measurement:
    """All blocks of one job."""

    def __init__(self, comm: Any, what: Mapping[str, Any], progress: Callable[[int, int], None] | None) -> None:
        self._comm, self._what, self._progress = comm, what, progress
        places: list[Place] = []

        def choose() -> str:
            places.append(place_for(what["device"], comm.rank))
            return "here"

        agree(comm, choose, TIMEOUT_S)
        self._place = places[0]
        assert self._place.device is not None
        self._device = self._place.device
        self._rounds = Rounds(comm)
        self._group = comm.Split(what["colours"][comm.rank], comm.rank)
        self._devices = comm.allgather({name: getattr(self._device, name) for name in ("kind", "index", "name", "identity")})
        identities = [one["identity"] for one in self._devices]
        #: Of the ranks on a device one measures copies on it, alone.
        self._first = identities.index(identities[comm.rank]) == comm.rank
        self._found: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any] | None:
        """The blocks on rank 0, None elsewhere."""
        what = self._what
        done, total = 0, len(what["counts"]) * what["blocks"]
        for count, most in what["counts"]:
            for _ in range(what["blocks"]):
                self._copies()
                self._publishing(count, most)
                for mode, late_s in product(what["modes"], lateness(what)):
                    self._collective(count, most, mode, late_s)
                    if late_s > 0:
                        self._collective(count, most, mode, late_s, rested=True)
                for mode in ("tensor", "resident") if "mpi" in what["against"] else ():
                    for late_s in lateness(what):
                        self._staged(count, most, mode, late_s)
                done += 1
                if self._progress is not None:
                    self._progress(done, total)
        self._group.Free()
        if self._comm.rank:
            return None
        return {"library": library(), "blocks": self._found, "devices": self._devices}

    def _add(self, found: dict[str, Any] | None, **more: Any) -> None:
        if found is not None:
            self._found.append(found | more)

    def _copies(self) -> None:
        free = min(self._comm.allgather(self._device.memory()[0]))
        size = min(COPIED_BYTES[self._place.kind], int(free * MOST_MEMORY)) // 256 * 256
        places = [self._device.allocate(size) for _ in range(2)] if self._first else []
        call = (lambda: self._device.copy(places[1], places[0], size)) if places else _nothing
        self._add(block(self._rounds, call, COPY_ROUNDS, 0.0, kernel="copy", mode="device", bytes=2 * size))
        for address in places:
            self._device.release(address)

    def _publishing(self, count: int, most: int) -> None:
        """What publishing takes, and a copy of as many bytes, on one rank of each device while the others do nothing."""
        tensor = Tensor(self._place, ones(count, self._what["dtype"])) if self._first else None
        calls: dict[str, Callable[[], object]] = {"publish": _nothing, "publish_copy": _nothing}
        if tensor is not None:
            own, room = tensor, self._device.allocate(tensor.bytes)
            parts = self._device.parts(self._what["dtype"], [(own.address, count, self._what["dtype"])])
            calls = {
                "publish": lambda: self._device.publish(parts, room),
                "publish_copy": lambda: self._device.copy(room, own.address, own.bytes),
            }
        for kernel, call in calls.items():
            self._add(block(self._rounds, call, most, 0.0, kernel=kernel, mode="tensor", count=count))
        if tensor is not None:
            self._device.release(room)
            tensor.close()

    def _collective(self, count: int, most: int, mode: str, late_s: float, rested: bool = False) -> None:
        call = OnDevice(self._comm, self._place, count, mode, self._what)
        found = block(self._rounds, call, most, late_s, rested=rested, kernel="wagma", mode=mode, count=count)
        fresh = self._comm.allreduce(sum(call.fresh)) / (self._comm.size * len(call.fresh))
        transport = call.collective.transport
        call.close()
        self._add(found, fresh_share=fresh, transport=transport, reduction_s=call.reductions())

    def _staged(self, count: int, most: int, mode: str, late_s: float) -> None:
        call = Staged(self._group, self._place, count, self._what["dtype"], mode)
        self._add(block(self._rounds, call, most, late_s, kernel="mpi", mode=mode, count=count))
        call.close()


def _nothing() -> None:
    """What ranks do that only wait for another one."""


def measure(
    comm: Any, specification: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any] | None:
    """Everything that the specification asks for, on rank 0; None elsewhere."""
    return Measurement(comm, specification, progress).run()


if __name__ == "__main__":
    run_on_ranks(measure, sys.argv[1:])
