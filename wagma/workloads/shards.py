"""How training examples are shared out: disjoint shards of equal length, alike or skewed by label.

Every way deals all examples, so that shard lengths differ by one at most, and every choice is a draw from the scenario's
seed: both worlds and all algorithms get the same shards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.draws import bits, uniform

Indices = npt.NDArray[np.int64]


def deal(labels: npt.NDArray[Any], ranks: int, seed: int, shards: str, concentration: float) -> list[Indices]:
    """Indices into `labels` (one whole number for each example) that each rank owns; `shards` as in the scenario, checked there."""
    match shards:
        case "by_label":
            return _by_label(labels, ranks, seed)
        case "dirichlet":
            return _dirichlet(labels, ranks, seed, concentration)
        case _:
            order = _shuffled(seed, len(labels))
            return [order[rank::ranks] for rank in range(ranks)]


def _shuffled(seed: int, examples: int) -> Indices:
    return np.argsort(bits(seed, "digits.shards", np.arange(examples), 0), kind="stable")


def _by_label(labels: npt.NDArray[Any], ranks: int, seed: int) -> list[Indices]:
    """Sorted by label, cut into as many stretches as there are ranks, and these dealt out (McMahan et al., AISTATS 2017, one a rank)."""
    order = _shuffled(seed, len(labels))
    stretches = np.array_split(order[np.argsort(labels[order], kind="stable")], ranks)
    return [stretches[place] for place in np.argsort(bits(seed, "digits.owner", np.arange(ranks), 0), kind="stable")]


def _dirichlet(labels: npt.NDArray[Any], ranks: int, seed: int, concentration: float) -> list[Indices]:
    """Each rank's mixture of labels is a Dirichlet draw around the whole's (Hsu et al., arXiv 1909.06335), its shard drawn from that.

    Ranks take one example each in turn; who wants a label that is used up takes the next of what is left, by the same mixture.
    """
    kinds, place = np.unique(labels, return_inverse=True)
    order = _shuffled(seed, len(labels))
    piles = [[int(i) for i in order if place[i] == kind] for kind in range(len(kinds))]
    share = np.bincount(place) / len(labels)
    mixtures = _mixtures(seed, ranks, concentration * share)
    shards: list[list[int]] = [[] for _ in range(ranks)]
    for number in range(len(labels)):
        turn, rank = divmod(number, ranks)
        left = np.array([bool(pile) for pile in piles])
        weights = np.where(left, mixtures[rank], 0.0)
        if not weights.sum() > 0:
            weights = left.astype(np.float64)
        edges = np.cumsum(weights)
        draw = uniform(seed, "digits.pick", [rank], turn)[0] * edges[-1]
        # The first edge above the draw, which no label of weight 0 has; the product may be rounded up to the last edge itself.
        picked = min(int(np.searchsorted(edges, draw, side="right")), int(np.flatnonzero(weights)[-1]))
        shards[rank].append(piles[picked].pop())
    return [np.array(shard, np.int64) for shard in shards]


def _mixtures(seed: int, ranks: int, shapes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Dirichlet draws for each rank, shape (ranks, labels), up to a factor for each rank: gamma draws over the largest of them.

    By logarithms, since a gamma draw of a small shape a is about u^(1/a), which falls out of floating point.
    """
    from scipy.special import gammaincinv, gammaln

    logarithms = []
    for kind, a in enumerate(shapes):
        u = uniform(seed, "digits.mixture", np.arange(ranks), kind)
        x = gammaincinv(a, u)
        # P(a, x) = x^a / Gamma(a + 1) (1 + O(x)): below 1e-17 exact in float64.
        tiny = (np.log(u) + gammaln(a + 1)) / a
        logarithms.append(np.where(x > 1e-17, np.log(np.maximum(x, 1e-300)), tiny))
    logs = np.stack(logarithms, axis=1)
    draws: npt.NDArray[Any] = np.exp(logs - logs.max(axis=1, keepdims=True))
    return draws
