"""Handwritten digits: 1,797 real images of 8 x 8 pixels that come with scikit-learn, and two small networks.

A fixed, stratified fifth is held out; the rest is dealt to the ranks as disjoint shards (`wagma.workloads.shards`). Every rank passes
through its shard in an order of its own, a new one in each epoch, all from the scenario's seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from wagma.draws import bits
from wagma.errors import InputError
from wagma.scenario import Scenario
from wagma.scores import ACCURACY
from wagma.workloads.checks import check_model
from wagma.workloads.images import load_images, stratified
from wagma.workloads.seeded import seeded
from wagma.workloads.shards import Indices, deal

HELD_OUT = 0.2
SPLIT_SEED = 0  # of the held-out fifth: the same in every run, whatever the scenario's seed


def _convolutional() -> torch.nn.Module:
    """Two convolutions and a linear layer."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1, stride=2),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 4 * 4, 10),
    )


def _perceptron() -> torch.nn.Module:
    """One hidden layer of 32: small enough for hundreds of simulated ranks."""
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 10),
    )


#: Workload -> its network and number of parameters.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "digits": (_convolutional, 9_930),
    "digits_mlp": (_perceptron, 2_410),
}


class Digits:
    """The workload for one scenario. Raises InputError if its model, dtype or number of ranks does not fit."""

    score = ACCURACY

    def __init__(self, scenario: Scenario) -> None:
        where, training = scenario.source, scenario.training
        name = training.workload
        self._network, parameters = NETWORKS[name]
        check_model(scenario, parameters)
        pixels, labels = load_images()
        images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        own, held_out = stratified(labels, HELD_OUT, SPLIT_SEED)
        train, train_labels = images[own], labels[own]
        if scenario.ranks > len(train):
            raise InputError(f"{where}: ranks = {scenario.ranks}: the workload {name} has {len(train)} images to share out")
        smallest, batch = len(train) // scenario.ranks, training.batch_size
        if batch > smallest:
            raise InputError(
                f"{where}: training.batch_size = {batch}: the smallest shard of {scenario.ranks} has {smallest} images"
            )
        if scenario.work_per_rank != batch:
            # Throughput counts work_per_rank: it has to be what a rank does.
            raise InputError(f"{where}: work.per_rank = {scenario.work_per_rank:g}: must be training.batch_size, {batch}")
        self._train, self._train_labels = torch.from_numpy(train), torch.from_numpy(train_labels)
        self._test, self._test_labels = torch.from_numpy(images[held_out]), torch.from_numpy(labels[held_out])
        self._seed = scenario.seed
        self._batch_size = batch
        self._shards = deal(train_labels, scenario.ranks, self._seed, training.shards, training.concentration)
        self._orders: dict[int, tuple[int, Indices]] = {}  # rank -> epoch, and the order of its shard in it

    def to(self, device: torch.device) -> None:
        """All images, once."""
        self._train, self._train_labels = self._train.to(device), self._train_labels.to(device)
        self._test, self._test_labels = self._test.to(device), self._test_labels.to(device)

    def model(self) -> torch.nn.Module:
        """The network; initial values from the scenario's seed."""
        with seeded(self._seed):
            return self._network()

    def shard(self, rank: int) -> Indices:
        """Indices into the training images that are this rank's own."""
        return self._shards[rank]

    def labels(self, rank: int) -> torch.Tensor:
        """What the images of a rank's shard show, 0 to 9."""
        return self._train_labels.cpu()[torch.from_numpy(self._shards[rank])]

    def batch(self, rank: int, iteration: int) -> Indices:
        """Indices into the training images: the rank's batch of the iteration, batch_size of them."""
        shard, size = self._shards[rank], self._batch_size
        epoch, place = divmod(iteration, len(shard) // size)
        known, order = self._orders.get(rank, (None, shard))
        if known != epoch:
            places = np.argsort(bits(self._seed, f"digits.order.{rank}", np.arange(len(shard)), epoch), kind="stable")
            order = shard[places]
            self._orders[rank] = epoch, order
        return order[place * size : (place + 1) * size]

    def examples(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, labels) of these training images."""
        chosen = torch.from_numpy(indices).to(self._train.device)
        return self._train[chosen], self._train_labels[chosen]

    def criterion(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy."""
        return torch.nn.functional.cross_entropy(outputs, labels)

    def stream(self, rank: int) -> Shard:
        """The rank's batches."""
        return Shard(self, rank)

    def evaluate(self, model: torch.nn.Module) -> float:
        """Share of the held-out images that the model recognises, from 0 to 1."""
        with torch.no_grad():
            predicted = model(self._test).argmax(dim=1)
        return float((predicted == self._test_labels).double().mean())


class Shard:
    """A rank's batches, all of the same size: a function of the iteration, nothing else is kept."""

    work = None

    def __init__(self, digits: Digits, rank: int) -> None:
        self._digits = digits
        self._rank = rank

    def loss(self, model: torch.nn.Module, iteration: int) -> torch.Tensor:
        """Mean cross entropy of the rank's batch."""
        images, labels = self._digits.examples(self._digits.batch(self._rank, iteration))
        return self._digits.criterion(model(images), labels)
