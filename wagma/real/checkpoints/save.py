"""Checkpoints of a distributed run: everything that the next iteration depends on, saved at a sync, where all ranks hold one model.

    wagma.save_checkpoint("run", optimizer, state={"scheduler": scheduler}, extra={"epoch": epoch}, keep=2)
    saved = wagma.load_checkpoint("run", optimizer, state={"scheduler": scheduler})

Both are collective. Why a run that goes on from a sync has the bits of one that was never stopped: at a sync each rank's published model
is replaced by its result, so nothing older is ever contributed (gradients: none is left untaken), and groups, candidates and syncs are
functions of the iteration alone. So a machine that begins there (`Schedule.begin`) with that result as its initial model is in
the same state. Which rank is late is a matter of time, and no file's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wagma.algorithms import ALGORITHMS
from wagma.core.digest import digest
from wagma.errors import InputError, WagmaError
from wagma.real.algorithms import has_syncs
from wagma.real.checkpoints import files
from wagma.real.checkpoints.parts import (
    State,
    agreed_of,
    buffers_of,
    check_open,
    check_state,
    extra_states,
    folder_of,
    layout_of,
    tensors_of,
    together,
    told,
)
from wagma.real.checkpoints.values import Encoder, Tensors, random_states, storable
from wagma.real.limited import agree

if TYPE_CHECKING:
    from wagma.real.wrapper.optimizer import DistributedOptimizer


def save_checkpoint(
    folder: str | Path,
    optimizer: DistributedOptimizer,
    *,
    state: State | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int | None = 2,
) -> Path:
    """Save all that the next iteration depends on as a new checkpoint in `folder`, which all ranks share; returns its path.

    Collective: every rank calls it after the same iteration, one that ended with a sync. state: objects with state_dict() and
    load_state_dict() by name (learning-rate schedulers, samplers, a GradScaler), each rank's own. extra: each rank's own values, of
    types that `wagma.real.checkpoints.values` names. keep: how many checkpoints of this run stay, None for all; older ones go when
    the new one is complete.

    Raises InputError between syncs, naming the next one, and for what cannot be stored, naming the key; WagmaError if a file
    cannot be written, naming it; on every rank, with the rank at fault. CollectiveTimeout if a rank does not come.
    """
    agreed, folder, iteration = agreed_of(optimizer), folder_of(folder), optimizer.iteration
    own: dict[str, bytes | Tensors] = {}

    def describe() -> str:
        files.require()
        check_open(optimizer, "save_checkpoint")
        _check_sync(optimizer)
        if keep is not None and (type(keep) is not int or keep < 1):
            raise InputError(f"keep = {keep!r}: must be a whole number, at least 1, or None for all")
        if not isinstance(extra or {}, Mapping):
            raise InputError(f"extra is a {type(extra).__name__}: must be a dict")
        with told("checkpoint"):
            own.update(_own_files(optimizer, state or {}, extra or {}))
            model = _model_digest(agreed.model)
        return f"iteration {iteration}, the model {model}, keep = {keep} and folder = {folder}"

    agree(agreed.comm, describe, agreed.timeout_s)
    first = agreed.comm.rank == 0
    path = folder / together(agreed, lambda: files.begin(folder, iteration).name if first else "")[0]

    def store() -> str:
        files.make_folder(path)  # a file system that the ranks share may show it late
        for name, content in own.items():
            if isinstance(content, bytes):
                files.write(path / name, content)
            else:
                files.write_tensors(path / name, content)
        files.settle(path)
        return json.dumps({name: list(files.sealed(path / name).values()) for name in own})

    try:
        stored = [json.loads(text) for text in together(agreed, store)]
        names = {name: {"bytes": size, "sha256": sha} for one in stored for name, (size, sha) in one.items()}
        manifest = _manifest(optimizer, state or {}, path, names)
        together(agreed, lambda: files.finish(path, manifest) if first else "")
    except WagmaError:
        if first and not (path / files.MANIFEST).exists():
            files.remove_folder(path)
        raise
    together(agreed, lambda: files.prune(folder, agreed.run, keep) if first else "")
    return path


def _check_sync(optimizer: DistributedOptimizer) -> None:
    agreed, schedule, iteration = agreed_of(optimizer), optimizer._parts.driver.schedule, optimizer.iteration
    if not has_syncs(agreed.algorithm):
        allowed = ", ".join(filter(has_syncs, ALGORITHMS))
        raise InputError(
            f"{agreed.algorithm} has no syncs, at which all ranks hold one model: no checkpoint; algorithms that have: {allowed}; "
            "or save the model inside optimizer.consolidated()"
        )
    if optimizer.synced:
        return
    if schedule.sync_period == 0:
        raise InputError('sync_period = "never": a checkpoint is saved at a sync, and there is none')
    due = -(-iteration // schedule.sync_period) * schedule.sync_period
    raise InputError(
        f"{iteration} iterations are done, and the last one was no sync: a checkpoint is saved after one, next after {due} iterations "
        f"(sync_period = {schedule.sync_period})"
    )


def _model_digest(model: torch.nn.Module) -> str:
    """Of the parameters, which all ranks have in common; buffers may be each rank's own."""
    flat = [parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for parameter in model.parameters()]
    return digest(np.frombuffer("".join(map(digest, flat)).encode(), np.uint8))


def _own_files(optimizer: DistributedOptimizer, state: State, extra: Mapping[str, Any]) -> dict[str, bytes | Tensors]:
    """What this rank writes, by file name; all in memory, so that whatever cannot be stored is known before anything is written."""
    agreed, encoder = agreed_of(optimizer), Encoder()
    check_state(state)
    parts = {
        "optimizer": encoder.encode(optimizer.optimizer.state_dict(), "optimizer"),
        "buffers": encoder.encode(buffers_of(agreed.model), "buffers"),
        "modules": encoder.encode(extra_states(agreed.model), "modules"),
        "published": encoder.encode(optimizer._parts.driver.carrier.published(), "published"),
        "state": encoder.encode({name: _state_of(name, one) for name, one in state.items()}, "state"),
        "random": encoder.encode(random_states(), "random"),
        "extra": encoder.encode(dict(extra), "extra"),
    }
    tensors, values = files.rank_files(agreed.comm.rank)
    own: dict[str, bytes | Tensors] = {tensors: encoder.tensors, values: (json.dumps(parts, allow_nan=False) + "\n").encode()}
    if agreed.comm.rank == 0:
        memory: set[int] = set()
        own[files.MODEL] = {name: storable(tensor, name, memory) for name, tensor in tensors_of(agreed.model).items()}
    return own


def _state_of(name: str, one: Any) -> Any:
    with told(f"state[{name!r}].state_dict()"):
        return one.state_dict()


def _manifest(optimizer: DistributedOptimizer, state: State, path: Path, names: dict[str, Any]) -> files.Manifest:
    agreed = agreed_of(optimizer)
    return {
        "format": files.FORMAT,
        "format_version": files.FORMAT_VERSION,
        "wagma": version("wagma"),
        "run": agreed.run,
        "sequence": files.sequence_of(path),
        "iteration": optimizer.iteration,
        "ranks": agreed.comm.size,
        "algorithm": agreed.algorithm,
        "settings": agreed.settings,
        "optimizer": type(optimizer.optimizer).__name__,
        "state": sorted(state),
        "model": layout_of(tensors_of(agreed.model)),
        "files": names,
    }
