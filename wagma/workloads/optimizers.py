"""torch's optimizers without torch's compiler, which they import as soon as one of them is made, more than a second of a core.

Decorators of torch.optim import torch._dynamo to tell it what not to trace. A workload is never compiled, so its optimizers are torch's
methods without these decorators: the same updates, bit for bit. A program's own optimizer is as torch makes it.
"""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch


class _Untraced(torch.optim.Optimizer):
    """What all optimizers inherit, without the decorators."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


def _untraced(step: Any) -> Any:
    """A step; one that cannot be differentiated, which is what torch's decorator sees to."""
    return torch.no_grad()(unwrap(step))


class SGD(_Untraced, torch.optim.SGD):
    """Stochastic gradient descent, with momentum if asked."""

    step = _untraced(torch.optim.SGD.step)


class AdamW(_Untraced, torch.optim.AdamW):
    """Adam with decoupled weight decay."""

    step = _untraced(torch.optim.AdamW.step)
