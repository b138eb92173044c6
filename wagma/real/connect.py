"""How the ranks of an engine reach each other: what they try, in which order, and what they say of it.

Models in host memory travel through shared memory or MPI. Of models on a device the buffers may be on the device, too, shared with the
node's other processes (ipc) or carried by an MPI library that can (cuda-mpi); else they are in host memory, and models are copied there
and back in chunks (staged). Everything is tried collectively, with the same decision on every rank, from the same texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wagma.errors import InputError, OutOfDeviceMemory, WagmaError
from wagma.real.devices.place import Place
from wagma.real.limited import agree, gather_text, is_local
from wagma.real.modules import mpi_native, native
from wagma.real.node import (
    ON_DEVICE,
    Transport,
    attempt,
    first_reason,
    join_node,
    on_other_machine,
    raise_first,
    say,
    share_memory,
)

if TYPE_CHECKING:
    from wagma import _native

_KINDS = ("cuda", "emulated")
_HOST, _UNREACHED, _MEMORY = "host", "unreached: ", "memory: "


@dataclass(frozen=True, slots=True)
class Connected:
    """One rank's transport, what copies its models into its buffers (None: the engine's own way with arrays), and both in words."""

    transport: _native.Transport
    models: _native.Models | None
    name: str


def connect(
    comm: Any, config: _native.EngineConfig, transport: Transport, timeout_s: float, longest_nap_s: float | None, place: Place | None
) -> Connected:  # fmt: skip
    """This rank's side. Collective.

    place: where this rank's model is; None, on all ranks: nobody's is on a device. Raises InputError if there is no such transport here,
    OutOfDeviceMemory, WagmaError, on every rank and naming one at fault.
    """
    given = _Given(comm, config, transport, timeout_s, longest_nap_s)
    words = [_HOST] * comm.size if place is None else gather_text(comm, _word(place), timeout_s)
    if place is None or not all(word == words[0] and word in _KINDS for word in words):
        return _on_host(given, place, words)
    return _on_devices(given, place)


@dataclass(frozen=True, slots=True)
class _Given:
    comm: Any
    config: _native.EngineConfig
    transport: Transport
    timeout_s: float
    longest_nap_s: float | None

    def tell(self, text: str) -> list[str]:
        return gather_text(self.comm, text, self.timeout_s)

    @property
    def naps(self) -> dict[str, float]:
        return {} if self.longest_nap_s is None else {"longest_nap_s": self.longest_nap_s}


def _word(place: Place) -> str:
    if place.on_device:
        return place.kind
    return f"{_UNREACHED}{place}: {place.why_not}" if place.why_not else _HOST


def _on_host(given: _Given, place: Place | None, words: list[str]) -> Connected:
    """Buffers in host memory, since some rank's model is there, or can only be reached through it."""
    why = _why_host(words)
    if given.transport in ON_DEVICE:
        raise InputError(f"transport = {given.transport!r}: {why}: must be 'auto', 'shm' or 'mpi'")
    if place is not None and any(word in _KINDS for word in words):
        return _staged(given, place, [why])
    chosen = _through_host(given)
    aside = "" if place is None or not place.why_not else f", through host memory ({place}: {place.why_not})"
    return Connected(chosen, None, f"{chosen.name}{aside}")


def _why_host(words: list[str]) -> str:
    """Of the first rank that keeps models from staying on devices."""
    for rank, word in enumerate(words):
        if word == _HOST:
            return f"rank {rank}'s model is in host memory"
        if word.startswith(_UNREACHED):
            return f"rank {rank}: {word.removeprefix(_UNREACHED)}"
    other = next(rank for rank, word in enumerate(words) if word != words[0])
    return f"rank 0's model is on {words[0]}, that of rank {other} on {words[other]}"


def _on_devices(given: _Given, place: Place) -> Connected:
    """All ranks have their models on devices of one kind."""
    reasons: list[str] = []
    for name, means in (("ipc", _by_ipc), ("cuda-mpi", _by_mpi)):
        if given.transport not in ("auto", name):
            continue
        made = means(given, place)
        if isinstance(made, Connected):
            return made
        if given.transport == name:
            raise (InputError if name == "cuda-mpi" else WagmaError)(f"transport = {name!r}: {made}")
        reasons.append(f"no {name}: {made}")
    return _staged(given, place, reasons)


def _by_ipc(given: _Given, place: Place) -> Connected | str:
    """Buffers on the device, opened by the other ranks of the machine; or why not, the same text on all ranks. Collective."""
    comm, config = given.comm, given.config
    other = None if is_local(comm) else on_other_machine(comm, given.timeout_s)
    if other is not None:
        return f"rank {other} is not on the machine (or in the container) of rank 0"
    own = _buffers(given, place)
    addresses = given.tell(say(attempt(lambda: own.address), str))
    if (reason := first_reason(addresses)) is not None:
        return reason
    if is_local(comm):
        made = attempt(lambda: comm.make_device_transport(own, addresses))
    else:
        node, reason = join_node(comm, native().Node, (comm.size, 0, 0), given.timeout_s)
        if node is None:
            return reason
        made = attempt(lambda: node.device_transport(comm.rank, own, addresses))
    if (reason := first_reason(given.tell(say(made)))) is not None:
        made = None  # closes what it has opened
        given.tell("")  # only then may anybody free what others had open
        return reason
    models = _agreed(given, lambda: native().device_models(place.device, config, own.stamp_offset))
    return Connected(made, models, f"{made.name}{models.suffix}")


def _by_mpi(given: _Given, place: Place) -> Connected | str:
    """Buffers on the device, carried by MPI; or why not, the same text on all ranks. Collective."""
    comm, config = given.comm, given.config
    if is_local(comm):
        return "the ranks are threads of one process, without MPI"
    if (reason := first_reason(given.tell(say(attempt(lambda: _check_mpi(given, place)))))) is not None:
        return reason
    own = _buffers(given, place)
    sizes = config.buffers, config.buffer_bytes
    made = _agreed(  # there may be no room for what comes in, which only then is known
        given,
        lambda: mpi_native().connect(comm.py2f(), *sizes, given.timeout_s, device_buffers=own, **given.naps),
        "what comes from other ranks",
    )
    models = _agreed(given, lambda: native().device_models(place.device, config, own.stamp_offset))
    return Connected(made, models, f"{made.name}{models.suffix}")


def _check_mpi(given: _Given, place: Place) -> None:
    """Raise WagmaError if the MPI library does not say that it carries memory of devices.

    The emulated one's is the host's, which every library carries: whoever asks for that by name gets it.
    """
    carries = mpi_native().cuda_support()
    if not carries and not (place.kind == "emulated" and given.transport == "cuda-mpi"):
        raise WagmaError("the MPI library does not say that it carries device memory")


def _staged(given: _Given, place: Place, reasons: list[str]) -> Connected:
    """Buffers in host memory, where the models of some ranks may be, too. Collective."""
    if given.config.resident:  # on all ranks alike
        raise not_resident("; ".join(reasons) or f"transport = {given.transport!r}")
    chosen, device = _through_host(given), place.device
    models = _agreed(
        given, lambda: None if device is None else native().staged_models(device, given.config, chosen), "models on their way"
    )
    aside = f" ({'; '.join(reasons)})" if reasons else ""
    return Connected(chosen, models, f"{chosen.name}{aside if models is None else models.suffix + aside}")


def not_resident(why: str) -> InputError:
    """Of a model on a device whose buffers are not there."""
    return InputError(f"resident = True: a model on a device lives in buffers there, with transport 'ipc' or 'cuda-mpi': {why}")


def _through_host(given: _Given) -> Any:
    """The transport for buffers in host memory. Collective."""
    comm, config, timeout_s = given.comm, given.config, given.timeout_s
    if is_local(comm):
        return comm.make_transport(config.buffers, config.buffer_bytes)
    if given.transport != "mpi":
        shared = share_memory(comm, native().Node, config, timeout_s, required=given.transport == "shm")
        if shared is not None:
            return shared

    def describe() -> str:
        mpi_native()
        return "MPI"

    agree(comm, describe, timeout_s)
    return mpi_native().connect(comm.py2f(), config.buffers, config.buffer_bytes, timeout_s, **given.naps)


def _buffers(given: _Given, place: Place) -> Any:
    """This rank's buffers on its device. Raises OutOfDeviceMemory on every rank if one's are too large for its device. Collective."""
    config = given.config
    what = f"{config.buffers} buffers of {config.buffer_bytes:,} bytes"
    advice = "; transport = 'shm' or 'mpi' keeps them in host memory"
    return _agreed(given, lambda: native().DeviceBuffers(place.device, config.buffers, config.buffer_bytes), what, advice)


def _agreed(given: _Given, make: Callable[[], Any], what: str = "models", advice: str = "") -> Any:
    """What it returns; or its error, on every rank, if it fails on one. Collective.

    what: needs the memory that there may not be. advice: for then, behind the error.
    """
    made = attempt(make)
    said = given.tell(f"{_MEMORY}{what}: {made}{advice}" if isinstance(made, OutOfDeviceMemory) else say(made))
    for rank, text in enumerate(said):
        if text.startswith(_MEMORY):
            raise OutOfDeviceMemory(f"rank {rank}: {text.removeprefix(_MEMORY)}")
    raise_first(said)
    return made
