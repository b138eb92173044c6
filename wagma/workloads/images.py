"""The images of the digits, from the file that scikit-learn brings, and the fifth of them that is held out.

All of scikit-learn takes more than a second of a core to import (it imports scipy.stats and pandas), which every rank would pay for one
file and one shuffle. So the file is read, and the shuffle made, here; tests/test_start.py holds both to scikit-learn's own, bit for bit.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.workloads.shards import Indices

PIXELS = 64
#: Within scikit-learn, in all versions that wagma allows.
FILE = Path("datasets", "data", "digits.csv.gz")


def load_images() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(images, labels): shapes (1797, 64), values 0 to 16, and (1797,), values 0 to 9; as sklearn.datasets.load_digits has them."""
    spec = find_spec("sklearn")  # imports nothing
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, FILE)).is_file():
            with gzip.open(path, "rt", encoding="ascii") as file:
                table = np.loadtxt(file, delimiter=",")
            return table[:, :PIXELS], table[:, PIXELS].astype(np.int64)
    from sklearn.datasets import load_digits  # a version that keeps the file elsewhere knows where

    images, labels = load_digits(return_X_y=True)
    return images, labels


def stratified(labels: npt.NDArray[np.int64], share: float, seed: int) -> tuple[Indices, Indices]:
    """(others, chosen): indices, shuffled; of each label about `share` is chosen, rounded up in all.

    The same as sklearn.model_selection.train_test_split(test_size=share, stratify=labels, random_state=seed). numpy promises that a
    RandomState draws the same for ever (NEP 19), which it does not of newer generators.
    """
    chosen_count = int(np.ceil(share * len(labels)))
    draw = np.random.RandomState(seed)
    counts = np.bincount(labels)
    piles = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    others_of = _in_proportion(counts, len(labels) - chosen_count, draw)
    # All that are left; the call remains for what it draws: how labels whose parts round alike take turns.
    chosen_of = _in_proportion(counts - others_of, chosen_count, draw)
    others, chosen = [], []
    for pile, first, second in zip(piles, others_of, chosen_of, strict=True):
        shuffled = pile[draw.permutation(len(pile))]
        others.append(shuffled[:first])
        chosen.append(shuffled[first : first + second])
    return draw.permutation(np.concatenate(others)), draw.permutation(np.concatenate(chosen))


def _in_proportion(counts: npt.NDArray[Any], wanted: int, draw: np.random.RandomState) -> npt.NDArray[np.int64]:
    """`wanted` items shared out in proportion to counts; what is left goes to the largest remainders, by lot among equal ones."""
    exact = counts / counts.sum() * wanted
    parts: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    remainders, left = exact - parts, wanted - int(parts.sum())
    for remainder in np.unique(remainders)[::-1]:
        if left == 0:
            break
        equal = np.flatnonzero(remainders == remainder)
        lucky = draw.choice(equal, size=min(len(equal), left), replace=False)
        parts[lucky] += 1
        left -= len(lucky)
    return parts
