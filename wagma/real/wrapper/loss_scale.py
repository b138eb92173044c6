"""What `torch.amp.GradScaler` tells an optimizer that handles scaled gradients by itself.

It sets two attributes for the time of a step: `found_inf`, a number above 0 after an overflow, and `grad_scale`, by which gradients
are still to be divided (None: `unscale_` has done so). An optimizer that says nothing of all this is not called at all after an overflow.
"""

from __future__ import annotations

from typing import Any

import torch

from wagma.errors import InputError


def found_overflow(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this step's gradients are not to be used."""
    return bool(getattr(optimizer, "found_inf", 0))


def unscale(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Divide the gradients by the scale, to the bit as GradScaler.unscale_ does. Raises InputError for float16, which would underflow."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    inverse = scale.double().reciprocal().float()  # as torch has it: a division in float32 would round differently
    by_device = {inverse.device: inverse}
    for group in groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.dtype is torch.float16:
                raise InputError(
                    f"GradScaler: a parameter of shape {tuple(parameter.shape)} is float16: must be float32, computed with under autocast"
                )
            if gradient.device not in by_device:
                by_device[gradient.device] = inverse.to(gradient.device)
            gradient.mul_(by_device[gradient.device])
