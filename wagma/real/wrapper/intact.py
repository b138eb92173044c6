"""Whether a model is still the one that was distributed: looked at in every step, in a few microseconds for each hundred parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from wagma.errors import InputError, ModelChanged, NotFinite
from wagma.workloads.flat import plain


class Intact:
    """The parameters of a model as they were when it was distributed. `rank` is for the messages."""

    def __init__(self, model: torch.nn.Module, rank: int) -> None:
        self._rank = rank
        self._modules = [
            (name, module._parameters, len(module._parameters), module._modules, len(module._modules))
            for name, module in ((plain(name), module) for name, module in model.named_modules())
        ]
        self._places: list[tuple[dict[str, Any], str, torch.nn.Parameter, bool, str]] = []
        for name, module in model.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    full = plain(f"{name}.{key}".lstrip("."))
                    self._places.append((module._parameters, key, parameter, parameter.requires_grad, full))
        self.trained = {id(parameter): name for _, _, parameter, trained, name in reversed(self._places) if trained}

    def check(self) -> None:
        """Raise ModelChanged, naming the parameter, if one was replaced, frozen, unfrozen, added or removed."""
        for place, key, parameter, trained, name in self._places:
            # By key in the module, as a forward pass finds it: one that was replaced would be trained by nobody.
            if place.get(key) is not parameter:
                raise self._changed(
                    f"parameter {name!r} was replaced", "change its data in place, or wrap anew after the change"
                )
            if parameter.requires_grad is not trained:
                was = "frozen" if trained else "unfrozen"
                raise self._changed(f"parameter {name!r} was {was}", "freeze and unfreeze before it")
        for name, parameters, number, modules, children in self._modules:
            if len(parameters) != number or len(modules) != children:
                raise self._changed(f"module {name!r} has got or lost parameters or modules", "complete the model before it")

    def _changed(self, what: str, advice: str) -> ModelChanged:
        return ModelChanged(f"rank {self._rank}: {what} since distribute; {advice}")

    def named(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """The trained parameters, each once."""
        seen = set()
        for _, _, parameter, trained, name in self._places:
            if trained and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def check_dense(self) -> None:
        """Raise InputError, naming the parameter, if a gradient is sparse: it cannot be averaged."""
        for name, parameter in self.named():
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise InputError(
                    f"rank {self._rank}: parameter {name!r} has a sparse gradient: must be dense for an algorithm that averages gradients"
                )

    def check_finite(self, gradients: bool = False) -> None:
        """Raise NotFinite, naming the parameter, if it (or its gradient) has NaN or infinity."""
        for name, parameter in self.named():
            values = parameter.grad if gradients else parameter.detach()
            # A sum is finite only if all terms are, and is the cheapest to know; it may overflow where they are.
            if values is not None and not math.isfinite(float(values.sum())) and not bool(torch.isfinite(values).all()):
                what = "gradient" if gradients else "value"
                raise NotFinite(
                    f"rank {self._rank}: parameter {name!r} has NaN or infinity in its {what}: not averaged into the other ranks' models"
                )
