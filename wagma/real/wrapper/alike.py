"""Before the first iteration: the ranks' models have to be alike in their shapes, and then are in their values."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import torch

from wagma.errors import InputError, ModelMismatch
from wagma.real.limited import broadcast, gather_text
from wagma.workloads.flat import plain

_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def check_whole(model: torch.nn.Module) -> None:
    """Raise InputError, naming the parameter or buffer, if a rank holds a part of the model only, or what it holds cannot be written."""
    for module in model.modules():
        if any(base.__name__ in _SHARDED for base in type(module).__mro__):
            raise InputError(f"model: its {type(module).__name__} is sharded (FSDP): every rank must hold a whole model")
    for name, parameter in model.named_parameters():
        if any(base.__name__ == "DTensor" for base in type(parameter).__mro__):
            raise InputError(f"parameter {plain(name)!r} is a DTensor: every rank must hold a whole model")
        if torch.nn.parameter.is_lazy(parameter):
            raise InputError(f"parameter {plain(name)!r} has no shape yet: call the model once before distribute")
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_meta:
                raise InputError(
                    f"{kind} {plain(name)!r} is on meta and has no values: call model.to_empty(device=...) and fill it first"
                )
            strided = zip(tensor.shape, tensor.stride(), strict=True) if tensor.layout is torch.strided else ()
            if tensor.numel() and any(size > 1 and not stride for size, stride in strided):
                raise InputError(
                    f"{kind} {plain(name)!r} has strides {tensor.stride()}: its elements share memory; give it clone()"
                )


def agree_on_model(comm: Any, model: torch.nn.Module, timeout_s: float) -> None:
    """Collective: raise ModelMismatch on every rank, naming a rank and its first difference, unless all models are alike.

    Alike are names, shapes and dtypes of parameters and buffers, which parameters are frozen, and which are shared.
    """
    parts = _parts(model)

    def gather(count: int) -> list[str]:
        return gather_text(comm, f"{zlib.crc32(repr(parts[:count]).encode())} {len(parts)}", timeout_s)

    sums = gather(len(parts))
    if len(set(sums)) == 1:
        return
    usual = sums.index(Counter(sums).most_common(1)[0][0])
    other = next(rank for rank, text in enumerate(sums) if text != sums[usual])
    # Where the two begin to differ: every rank takes part in each step of the search, since they all know the same texts.
    alike, differs = 0, max(int(sums[rank].split()[1]) for rank in (usual, other))
    while differs - alike > 1:
        middle = (alike + differs) // 2
        found = [text.split()[0] for text in gather(middle)]
        alike, differs = (middle, differs) if found[usual] == found[other] else (alike, middle)
    texts = gather_text(comm, parts[alike] if alike < len(parts) else "no further one", timeout_s)
    raise ModelMismatch(
        f"rank {other} has {texts[other]} where rank {usual} has {texts[usual]}: all ranks need models of the same parameters and buffers"
    )


def _parts(model: torch.nn.Module) -> list[str]:
    parts: list[str] = []
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared = seen.setdefault(id(parameter), name)
        parts.append(
            f"parameter {plain(name)!r} of shape {tuple(parameter.shape)}, {_dtype(parameter)}"
            + ("" if parameter.requires_grad else ", frozen")
            + ("" if shared == name else f", the same as {plain(shared)!r}")
        )
    for name, buffer in model.named_buffers():
        parts.append(f"buffer {plain(name)!r} of shape {tuple(buffer.shape)}, {_dtype(buffer)}")
    return parts


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def start_alike(comm: Any, model: torch.nn.Module, timeout_s: float) -> None:
    """Everything that a model's output depends on, frozen parameters and buffers included, becomes rank 0's."""
    for tensor in [*model.parameters(), *model.buffers()]:
        content = tensor.detach().cpu().contiguous().clone()
        # As bytes: buffers may be integers, and numpy does not know every dtype of torch.
        raw = content.reshape(-1).view(torch.uint8).numpy()
        if raw.size:
            broadcast(comm, raw, timeout_s, "distribute the model")
            with torch.no_grad():
                tensor.copy_(content)
