"""What a decision machine answers: what has to happen now. `wagma.core.protocol` says when; whoever runs the machine carries them out."""

from __future__ import annotations

from typing import NamedTuple


class Forward(NamedTuple):
    """Send an activation of `version` to `rank`; the receiver is reached over `dimension`."""

    version: int
    dimension: int
    rank: int


class Start(NamedTuple):
    """Execute `version`: contribute `buffer` (whose model has `stamp`), put the sum (at a sync: the mean) into `target`.

    Gradients of the iterations `oldest` to `stamp` where they accumulate; a model has oldest == stamp. buffer NONE: contribute nothing.
    """

    version: int
    buffer: int
    target: int
    stamp: int
    oldest: int


class Complete(NamedTuple):
    """The application returns from `version`: merge `buffer`, the result of `merged_version`; NONE: nothing to merge."""

    version: int
    fresh: bool
    merged_version: int
    buffer: int


class Retracted(NamedTuple):
    """The application reads `buffer`, the sum of its gradients `oldest` to `stamp`, until merge_done: no version takes them now."""

    buffer: int
    stamp: int
    oldest: int


class Solo(NamedTuple):
    """Tell `rank` that from `version` on everybody may activate; the receiver is reached over `dimension`."""

    version: int
    dimension: int
    rank: int


Output = Forward | Start | Complete | Retracted | Solo
