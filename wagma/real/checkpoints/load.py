"""Going on from a checkpoint: all of it is read and checked, on every rank, before anything is changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wagma.errors import InputError
from wagma.real.algorithms import has_syncs
from wagma.real.checkpoints import files
from wagma.real.checkpoints.parts import (
    OWN,
    State,
    agreed_of,
    buffers_of,
    check_open,
    check_state,
    extra_states,
    folder_of,
    layout_of,
    restore_extra_states,
    tensors_of,
    together,
    told,
)
from wagma.real.checkpoints.values import Tensors, decode, restore_random_states
from wagma.real.limited import agree, barrier
from wagma.real.wrapper.alike import start_alike

if TYPE_CHECKING:
    from wagma.real.wrapper.optimizer import DistributedOptimizer


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was loaded. ranks: how many had saved it; extra: what this rank (else rank r modulo `ranks`) had given to `save_checkpoint`."""

    path: Path
    iteration: int
    ranks: int
    extra: dict[str, Any]


def load_checkpoint(
    folder: str | Path, optimizer: DistributedOptimizer, *, state: State | None = None, consolidated: bool = False
) -> Checkpoint:
    """Go on from the newest checkpoint in `folder` (or from `folder`, if it is one), before the first step; returns what was loaded.

    Collective. Everything is put back where save_checkpoint found it: model, optimizer (its learning rate, too), `state`, generators of
    random numbers, iteration; `extra` is in what is returned. Make schedulers before, since making one changes the learning rate. The
    next step is that of `optimizer.iteration`; which examples it sees is the program's business.

    On another number of ranks the model is the same, rank r gets the optimizer state, `state` and `extra` of rank r modulo the old
    number, and generators of random numbers stay as the program has seeded them. consolidated: the same, whatever the algorithm and its
    settings were; else they have to be what they were.

    Raises InputError, on every rank and saying why, if there is none, if a file is missing, damaged or foreign, or if it is one of
    another model, optimizer, algorithm or format version; nothing was changed then. CollectiveTimeout if a rank does not come.
    """
    agreed, folder, first = agreed_of(optimizer), folder_of(folder), optimizer._parts.driver.rank == 0
    found: list[_Loaded] = []

    def begin() -> str:
        files.require()
        _check_fresh(optimizer)
        if first:
            with told(f"checkpoint {folder}"):  # a folder that this rank may not look into
                files.locate(folder)
        return f"folder = {folder}"

    def read() -> str:
        with told(f"checkpoint {path}"):
            found.append(_read(path, optimizer, state or {}, consolidated))
        return f"the checkpoint {found[0].manifest['checksum'][:12]}, consolidated = {consolidated}"

    def restore() -> str:
        with told(f"checkpoint {path}"):  # torch's own complaints, or those of load_state_dict of a program's class
            _restore_own(found[0], optimizer, state or {})
        return ""

    agree(agreed.comm, begin, agreed.timeout_s)
    # One rank looks, since what is the newest may change.
    path = folder / together(agreed, lambda: str(files.locate(folder).relative_to(folder)) if first else "")[0]
    agree(agreed.comm, read, agreed.timeout_s)
    agree(agreed.comm, restore, agreed.timeout_s)
    _restore_common(found[0], optimizer)
    agreed.run = found[0].manifest["run"]
    barrier(agreed.comm, agreed.timeout_s, "go on from a checkpoint")  # nobody arrives before all have begun there
    return Checkpoint(path, found[0].manifest["iteration"], found[0].manifest["ranks"], found[0].parts["extra"])


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A checkpoint as one rank has read it. model: on rank 0."""

    manifest: files.Manifest
    parts: dict[str, Any]
    model: Tensors
    own_random: bool


def _check_fresh(optimizer: DistributedOptimizer) -> None:
    algorithm = agreed_of(optimizer).algorithm
    if not has_syncs(algorithm):
        raise InputError(
            f"{algorithm} has no syncs, and so no checkpoints: load {files.MODEL} into the model before distribute"
        )
    check_open(optimizer, "load_checkpoint")
    if optimizer.is_closed:
        raise InputError(
            "load_checkpoint: called after close, which says that this rank has no further iteration; wrap anew to go on"
        )
    if optimizer.iteration != optimizer._parts.driver.schedule.begin:
        raise InputError(f"{optimizer.iteration} iterations are done: a checkpoint is loaded before the first step")


def _read(path: Path, optimizer: DistributedOptimizer, state: State, consolidated: bool) -> _Loaded:
    """All that this rank needs, checked; nothing is changed yet. Raises InputError."""
    agreed = agreed_of(optimizer)
    manifest = files.read_manifest(path)
    _check_fits(path, manifest, optimizer, state, consolidated)
    ranks = manifest["ranks"]
    tensors_name, values_name = files.rank_files(agreed.comm.rank % ranks)
    tensors = files.read_tensors(files.check_file(path, tensors_name, manifest))
    try:
        values = json.loads(files.check_file(path, values_name, manifest).read_bytes())
        parts = {name: decode(values[name], tensors) for name in OWN}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint {path}: {values_name} cannot be read: {type(error).__name__}: {error}") from error
    for name in parts["modules"].keys() ^ extra_states(agreed.model).keys():
        has = "this one has none" if name in parts["modules"] else "it has none"
        raise InputError(f"checkpoint {path}: of another model: {name!r} is what one of their modules keeps, and {has}")
    # The manifest speaks of rank 0's: a program may have given each rank a buffer of another shape, or have taken it away.
    _check_layout(f"checkpoint {path}: {tensors_name}", layout_of(parts["buffers"]), layout_of(buffers_of(agreed.model)))
    model: Tensors = {}
    if agreed.comm.rank == 0:
        model = files.read_tensors(files.check_file(path, files.MODEL, manifest))
        _check_model(path, layout_of(model), agreed.model)
    return _Loaded(manifest, parts, model, ranks == agreed.comm.size)


def _check_fits(
    path: Path, manifest: files.Manifest, optimizer: DistributedOptimizer, state: State, consolidated: bool
) -> None:
    """Raise InputError unless it is a checkpoint of such a run."""
    agreed, where = agreed_of(optimizer), f"checkpoint {path}"
    check_state(state)
    _check_model(path, manifest["model"], agreed.model)
    kind = type(optimizer.optimizer).__name__
    if kind != manifest["optimizer"]:
        raise InputError(f"{where}: it has the state of {manifest['optimizer']}, the optimizer is {kind}")
    if sorted(state) != manifest["state"]:
        listed = [", ".join(names) or "nothing" for names in (manifest["state"], sorted(state))]
        raise InputError(f"{where}: it was saved with state {listed[0]}; given: {listed[1]}")
    if consolidated:
        return
    now = {"algorithm": agreed.algorithm, **agreed.settings}
    before = {"algorithm": manifest["algorithm"], **manifest["settings"]}
    if manifest["ranks"] != agreed.comm.size:
        now = {name: value for name, value in now.items() if name not in ("group_size", "initiators")}
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(
                f"{where}: it was saved with {name} = {before.get(name)!r}, this run has {value!r}; consolidated=True goes on all the same"
            )


def _check_model(path: Path, saved: dict[str, Any], model: torch.nn.Module) -> None:
    _check_layout(f"checkpoint {path}", saved, layout_of(tensors_of(model)))


def _check_layout(where: str, saved: dict[str, Any], own: dict[str, Any]) -> None:
    for name in [*own, *saved]:
        if own.get(name) != saved.get(name):
            texts = [
                f"{found[0]} of shape {tuple(found[1])}" if found else "none" for found in (saved.get(name), own.get(name))
            ]
            raise InputError(f"{where}: of another model: tensor {name!r} is {texts[0]} in it, {texts[1]} in this one")


def _restore_own(loaded: _Loaded, optimizer: DistributedOptimizer, state: State) -> None:
    """This rank's own things; on rank 0 the model, too, as far as it has it."""
    agreed, parts = agreed_of(optimizer), loaded.parts
    _restore_optimizer(optimizer, parts["optimizer"])  # first: it refuses groups of other sizes, before anything is changed
    for name, one in state.items():
        one.load_state_dict(parts["state"][name])
    restore_extra_states(agreed.model, parts["modules"])
    with torch.no_grad():
        for name, tensor in tensors_of(agreed.model).items() if loaded.model else ():
            tensor.copy_(loaded.model[name])


def _restore_optimizer(optimizer: DistributedOptimizer, saved: dict[str, Any]) -> None:
    optimizer.load_state_dict(saved)
    # torch rounds state to its parameter's dtype; an optimizer that keeps float32 moments of bfloat16 parameters has more bits.
    parameters = [p for group in optimizer.optimizer.param_groups for p in group["params"]]
    for position, content in saved["state"].items():
        now = optimizer.optimizer.state[parameters[position]]
        for key, value in content.items():
            if isinstance(value, torch.Tensor) and isinstance(now.get(key), torch.Tensor) and now[key].dtype != value.dtype:
                now[key] = value.to(now[key].device)


def _restore_common(loaded: _Loaded, optimizer: DistributedOptimizer) -> None:
    """The model from rank 0, which has read it for all; then everything stands where the next iteration begins."""
    agreed, parts = agreed_of(optimizer), optimizer._parts
    start_alike(agreed.comm, agreed.model, agreed.timeout_s)
    with torch.no_grad():
        for name, buffer in buffers_of(agreed.model).items():
            buffer.copy_(loaded.parts["buffers"][name])
    parts.driver.begin_at(loaded.manifest["iteration"], loaded.parts["published"])
    if loaded.own_random:
        restore_random_states(loaded.parts["random"])
