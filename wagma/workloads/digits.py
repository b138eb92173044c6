"""Handwritten digits: 1,797 real images of 8 x 8 pixels that come with scikit-learn, and a small convolutional network.

A fixed, stratified fifth is held out; the rest is dealt to the ranks as disjoint shards. Every rank passes through its shard in an
order of its own, a new one in each epoch, all from the scenario's seed.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from wagma.draws import bits
from wagma.errors import InputError
from wagma.scenario import Scenario

PARAMETERS = 9_930
HELD_OUT = 0.2
SPLIT_SEED = 0  # of the held-out fifth: the same in every run, whatever the scenario's seed


class Digits:
    """The workload for one scenario. Raises InputError if its model, dtype or number of ranks does not fit."""

    def __init__(self, scenario: Scenario) -> None:
        where = scenario.source
        if scenario.parameters != PARAMETERS:
            raise InputError(f"{where}: model.parameters = {scenario.parameters}: the workload digits has {PARAMETERS}")
        if scenario.dtype != "float32":
            raise InputError(f'{where}: model.dtype = "{scenario.dtype}": the workload digits has float32')
        images, labels = load_digits(return_X_y=True)
        images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        train, test, train_labels, test_labels = train_test_split(
            images, labels, test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED
        )
        if scenario.ranks > len(train):
            raise InputError(f"{where}: ranks = {scenario.ranks}: the workload digits has {len(train)} images to share out")
        smallest, batch = len(train) // scenario.ranks, scenario.training.batch_size
        if batch > smallest:
            raise InputError(
                f"{where}: training.batch_size = {batch}: the smallest shard of {scenario.ranks} has {smallest} images"
            )
        if scenario.work_per_rank != batch:
            # Throughput counts work_per_rank: it has to be what a rank does.
            raise InputError(f"{where}: work.per_rank = {scenario.work_per_rank:g}: must be training.batch_size, {batch}")
        self._train, self._train_labels = torch.from_numpy(train), torch.from_numpy(train_labels)
        self._test, self._test_labels = torch.from_numpy(test), torch.from_numpy(test_labels)
        self._seed = scenario.seed
        self._batch_size = scenario.training.batch_size
        deal = np.argsort(bits(self._seed, "digits.shards", np.arange(len(train)), 0), kind="stable")
        self._shards = [deal[rank :: scenario.ranks] for rank in range(scenario.ranks)]

    def model(self) -> torch.nn.Module:
        """Two convolutions and a linear layer; initial values from the scenario's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return torch.nn.Sequential(
                torch.nn.Conv2d(1, 16, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.Conv2d(16, 32, 3, padding=1, stride=2),
                torch.nn.ReLU(),
                torch.nn.Flatten(),
                torch.nn.Linear(32 * 4 * 4, 10),
            )

    def shard(self, rank: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Indices into the training images that are this rank's own."""
        return self._shards[rank]

    def loss(self, model: torch.nn.Module, rank: int, iteration: int) -> torch.Tensor:
        """Mean cross entropy of the rank's batch."""
        batch = torch.from_numpy(self._batch(rank, iteration))
        return torch.nn.functional.cross_entropy(model(self._train[batch]), self._train_labels[batch])

    def accuracy(self, model: torch.nn.Module) -> float:
        """Share of the held-out images that the model recognises."""
        with torch.no_grad():
            predicted = model(self._test).argmax(dim=1)
        return float((predicted == self._test_labels).float().mean())

    def _batch(self, rank: int, iteration: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        shard = self._shards[rank]
        size = self._batch_size
        epoch, place = divmod(iteration, len(shard) // size)
        order = np.argsort(bits(self._seed, f"digits.order.{rank}", np.arange(len(shard)), epoch), kind="stable")
        return shard[order[place * size : (place + 1) * size]]
