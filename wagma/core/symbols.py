"""Models as digests of how they were made: what simulated messages contain when nobody trains.

A stale, torn, incomplete or wrongly merged model is a different symbol, and whoever knows what went into it can recompute
it: so timing-only runs are checked as strictly as training ones. docs/trace.md calls such digests symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

INITIAL = "initial"


def symbol(*parts: object) -> str:
    """16 hexadecimal digits for an operation and its operands, in order."""
    return blake2b("|".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def reduced(contributions: Sequence[str | None], mean: bool) -> str:
    """The sum, or the mean, of a group's contributions in association order."""
    return symbol("mean" if mean else "sum", *contributions)


def merged(total: str, own: str, own_weight: int, divisor: int) -> str:
    """(total + own_weight * own) / divisor; an own model without weight does not matter."""
    return symbol("merge", total, own if own_weight else "", own_weight, divisor)
