"""A small causal transformer that predicts the next byte of real text, in batches of uneven length.

The sequences are functions of their natural lengths (`wagma.workloads.corpus`). They are sorted into buckets of similar length; a batch is
batch_size sequences of one bucket, or fewer where these would be more than batch_tokens: so do the loaders of fairseq (--max-sentences,
--max-tokens) and of Tensor2Tensor. An epoch's batches come in an order of its own and are dealt to the ranks in turn: in one iteration a
rank may have eight short functions and another two long ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from wagma.draws import bits
from wagma.errors import InputError
from wagma.scenario import Scenario
from wagma.scores import BITS_PER_BYTE
from wagma.workloads.checks import check_model, check_uneven
from wagma.workloads.corpus import LONGEST, functions
from wagma.workloads.seeded import seeded

WIDTH, HEADS, LAYERS = 32, 2, 1
VOCABULARY = 256
#: Longest sequence of each bucket.
BUCKETS = (48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, LONGEST)
#: One function in so many is held out, the same ones in every run; so many of them are what the score is measured on.
HELD_OUT, EVALUATED = 10, 64
SPLIT_SEED = 0
#: Of targets that are padding; cross_entropy leaves them out.
NOTHING = -100

Indices = npt.NDArray[np.int64]


class Block(nn.Module):
    """Pre-norm attention and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (batch, length, WIDTH) to the same."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.first(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        result: torch.Tensor = x + self.down(gelu(self.up(self.second(x))))
        return result


class Transformer(nn.Module):
    """Bytes, shape (batch, length), to logits of the next ones, (batch, length, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.bytes(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        logits: torch.Tensor = self.head(self.norm(self.blocks(x)))
        return logits


@dataclass(frozen=True, slots=True)
class Batch:
    """inputs and targets, int64 of shape (sequences, longest of them less 1); tokens: how many targets are no padding."""

    inputs: torch.Tensor
    targets: torch.Tensor
    tokens: int

    def to(self, device: torch.device) -> Batch:
        """The same batch there."""
        return Batch(self.inputs.to(device), self.targets.to(device), self.tokens)


class Text:
    """The workload for one scenario. Raises InputError if its model or settings do not fit."""

    score = BITS_PER_BYTE

    def __init__(self, scenario: Scenario) -> None:
        training = scenario.training
        with torch.device("meta"):
            parameters = sum(p.numel() for p in Transformer().parameters())
        check_model(scenario, parameters)
        check_uneven(scenario)
        if training.batch_tokens < LONGEST:
            raise InputError(
                f"{scenario.source}: training.batch_tokens = {training.batch_tokens}: must be at least {LONGEST}, the longest sequence"
            )
        sequences = [np.frombuffer(one, np.uint8) for one in functions()]
        held_out = bits(SPLIT_SEED, "text.held_out", np.arange(len(sequences)), 0) % HELD_OUT == 0
        self._sequences = [one for one, out in zip(sequences, held_out, strict=True) if not out]
        tested = sorted([one for one, out in zip(sequences, held_out, strict=True) if out][:EVALUATED], key=len)
        self._tests = [_padded(tested[first : first + 8]) for first in range(0, len(tested), 8)]
        self._device = torch.device("cpu")
        self._seed, self._ranks = scenario.seed, scenario.ranks
        self._most, self._most_tokens = training.batch_size, training.batch_tokens
        lengths = np.array([one.size for one in self._sequences])
        self._buckets = [np.flatnonzero(np.searchsorted(BUCKETS, lengths) == b) for b in range(len(BUCKETS))]
        self._epoch: tuple[int, list[Indices]] = -1, []
        # A rank's epoch is what all have of each: the few batches that are left over are others in every epoch.
        self._batches = len(self._plan(0)) // self._ranks
        if not self._batches:
            raise InputError(
                f"{scenario.source}: ranks = {self._ranks}: the workload text has {len(self._plan(0))} batches to share out"
            )

    def to(self, device: torch.device) -> None:
        """What models are judged by, once; batches as they come, since each is put together anew."""
        self._device = device
        self._tests = [test.to(device) for test in self._tests]

    def model(self) -> Transformer:
        """The network; initial values from the scenario's seed."""
        with seeded(self._seed):
            return Transformer()

    def stream(self, rank: int) -> Passage:
        """The rank's batches."""
        return Passage(self, rank)

    def batch(self, rank: int, iteration: int) -> Batch:
        """The rank's batch of the iteration."""
        epoch, place = divmod(iteration, self._batches)
        return _padded([self._sequences[i] for i in self._plan(epoch)[place * self._ranks + rank]]).to(self._device)

    def evaluate(self, model: nn.Module) -> float:
        """Cross entropy of held-out bytes, in bits."""
        with torch.inference_mode():
            nats = sum(float(_cross_entropy(model, test, "sum")) for test in self._tests)
        return nats / sum(test.tokens for test in self._tests) / math.log(2)

    def _plan(self, epoch: int) -> list[Indices]:
        """The epoch's batches, as indices of sequences, in order."""
        if self._epoch[0] != epoch:
            batches: list[Indices] = []
            for number, bucket in enumerate(self._buckets):
                shuffled = bucket[_order(self._seed, f"text.bucket.{number}", bucket.size, epoch)]
                size = max(1, min(self._most, self._most_tokens // BUCKETS[number]))
                batches += [shuffled[first : first + size] for first in range(0, bucket.size, size)]
            self._epoch = epoch, [batches[i] for i in _order(self._seed, "text.order", len(batches), epoch)]
        return self._epoch[1]


class Passage:
    """A rank's batches: a function of the iteration. work: bytes predicted by the last one."""

    def __init__(self, text: Text, rank: int) -> None:
        self._text = text
        self._rank = rank
        self.work: float | None = 0.0

    def loss(self, model: nn.Module, iteration: int) -> torch.Tensor:
        """Mean cross entropy of the batch's bytes, in nats."""
        batch = self._text.batch(self._rank, iteration)
        self.work = float(batch.tokens)
        return _cross_entropy(model, batch, "mean")


def _cross_entropy(model: nn.Module, batch: Batch, reduction: str) -> torch.Tensor:
    logits = model(batch.inputs)
    return cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NOTHING, reduction=reduction)


def _padded(sequences: list[npt.NDArray[np.uint8]]) -> Batch:
    """Attention looks back only, so that padding at the end reaches nothing that counts."""
    shape = len(sequences), max(one.size for one in sequences) - 1
    inputs, targets = np.zeros(shape, np.int64), np.full(shape, NOTHING, np.int64)
    for row, one in enumerate(sequences):
        inputs[row, : one.size - 1] = one[:-1]
        targets[row, : one.size - 1] = one[1:]
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), int((targets != NOTHING).sum()))


def _order(seed: int, purpose: str, size: int, epoch: int) -> Indices:
    return np.argsort(bits(seed, purpose, np.arange(size), epoch), kind="stable")
