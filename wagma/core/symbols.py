"""Models as digests of how they were made: what simulated messages contain when nobody trains.

A stale, torn, incomplete or wrongly merged model is a different symbol, and whoever knows what went into it can recompute
it: so timing-only runs are checked as strictly as training ones. docs/trace.md calls such digests symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

INITIAL = "initial"
NULL = "null"  # what a trace says of a contribution that is nothing, whatever its kind of digests


def symbol(*parts: object) -> str:
    """16 hexadecimal digits for an operation and its operands, in order."""
    return blake2b("|".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def reduced(contributions: Sequence[str | None], mean: bool) -> str:
    """The sum, or the mean, of a group's contributions in association order; None is null."""
    return symbol("mean" if mean else "sum", *(NULL if c is None else c for c in contributions))


def added(taken: str, own: str) -> str:
    """taken + own: gradients that no version has taken, and the next one."""
    return symbol("add", taken, own)


def merged(total: str | None, own: str, own_weight: float, divisor: float) -> str:
    """(total + own_weight * own) / divisor; an own model without weight does not matter."""
    if total is None and own_weight == divisor:
        return own
    return symbol("merge", total, own if own_weight else "", own_weight, divisor)


def weighted_sum(contributions: Sequence[str], weights: Sequence[float]) -> str | None:
    """The sum of weight * contribution in the order given; None of nothing."""
    return symbol("weighted", *contributions, *weights) if contributions else None


def scaled(own: str, factor: float) -> str:
    """factor * own."""
    return own if factor == 1 else symbol("scale", own, factor)


def paired(own: str, theirs: str, sent: str) -> str:
    """own + (theirs - sent) / 2."""
    return symbol("pair", own, theirs, sent)
