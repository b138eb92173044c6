"""What ranks train in `run_simulated` and `run_real`: small problems on numpy arrays, the same bits in both worlds.

A rank's update is that of plain SGD, W' = W - learning_rate * gradient(rank, iteration, W).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wagma.draws import uniform
from wagma.errors import InputError

Array = npt.NDArray[Any]


class Problem(Protocol):
    """Ranks of a real run are threads: methods are called on several at once, and must depend on their arguments alone."""

    @property
    def learning_rate(self) -> float:
        """What gradients are multiplied by."""

    def initial(self) -> Array:
        """The model that all ranks begin with: a new array of shape (parameters,), float32 or float64."""

    def gradient(self, rank: int, iteration: int, model: Array) -> Array:
        """The rank's gradient of the iteration, of the model's shape and dtype. `model` is not to be changed."""


class Ledger:
    """A problem whose models say what is in them: each update adds 1 at a place of its own.

    Element 0 of a model is the weight of the initial model in it, which averages whose weights add up to 1 keep at 1; element
    `place(rank, iteration)` is the weight of that rank's update of that iteration. Weights are float64, rounded as averages are.
    """

    learning_rate = 1.0

    def __init__(self, ranks: int, iterations: int) -> None:
        self.ranks, self.iterations = ranks, iterations

    def place(self, rank: int, iteration: int) -> int:
        """Which element of a model the update has."""
        return 1 + rank * self.iterations + iteration

    def initial(self) -> Array:
        """All of the initial model, and no update."""
        model = np.zeros(1 + self.ranks * self.iterations)
        model[0] = 1
        return model

    def gradient(self, rank: int, iteration: int, model: Array) -> Array:
        """-1 at the update's own place."""
        gradient = np.zeros_like(model)
        gradient[self.place(rank, iteration)] = -1
        return gradient


class TugOfWar:
    """Gradients of a given sign, which pull ranks apart as hard as a bound on gradients allows: E f(x) = sum of signs * x.

    signs: -1 to 1, shape (ranks, iterations); None: half of the ranks always pull one way, the others the other way. share: a gradient is
    sign / share with this probability, else 0, so that its mean is the sign. gradient_bound: 1 / share, which no gradient exceeds;
    gradient_rms: share^-1/2, which E |gradient|^2 does not exceed the square of. draws: the seed of which ones are 0.
    """

    def __init__(
        self,
        ranks: int,
        iterations: int,
        learning_rate: float = 1.0,
        signs: Array | None = None,
        share: float = 1.0,
        draws: int = 0,
    ) -> None:
        if signs is None:
            signs = np.repeat(np.where(np.arange(ranks) % 2, 1.0, -1.0)[:, None], iterations, axis=1)
        if signs.shape != (ranks, iterations) or not np.all(np.abs(signs) <= 1):
            raise InputError(f"signs of shape {signs.shape}: must be -1 to 1, of shape {(ranks, iterations)}")
        if not 0 < share <= 1:
            raise InputError(f"share = {share}: must be above 0 and at most 1")
        self.signs, self.learning_rate, self._share, self._draws = signs, learning_rate, share, draws
        self.gradient_bound, self.gradient_rms = 1 / share, share**-0.5

    def initial(self) -> Array:
        """One number."""
        return np.zeros(1)

    def gradient(self, rank: int, iteration: int, model: Array) -> Array:
        """The sign over the share, or 0."""
        pulls = self._share == 1 or uniform(self._draws, "tug_of_war", [rank], iteration)[0] < self._share
        return np.full_like(model, self.signs[rank, iteration] / self._share if pulls else 0.0)


class LogCosh:
    """Robust regression: f(x) = mean over ranks and their examples of log cosh(a x - b), one example drawn for each gradient.

    Each rank has examples (a, b) of its own, around a solution of its own. The derivative of log cosh is tanh, within -1 and 1, and its
    second derivative 1 - tanh^2 is at most 1, so that three constants can be computed from the data:

    gradient_bound: the largest |a|, which no gradient is longer than. gradient_rms: the root of the largest mean of |a|^2 of any rank,
    which E |gradient|^2 does not exceed the square of. smoothness: the gradient of f is Lipschitz with the largest eigenvalue of the
    mean of a a^T. seed: of the data; draws: the seed of which example a gradient is of.
    """

    def __init__(
        self,
        ranks: int,
        learning_rate: float,
        seed: int = 0,
        dimensions: int = 6,
        examples: int = 64,
        spread: float = 0.5,
        draws: int = 0,
    ) -> None:
        draw = np.random.default_rng((seed, ranks))
        rows = draw.normal(size=(ranks, examples, dimensions))
        lengths = draw.uniform(0.2, 1.0, size=(ranks, examples, 1))
        self.rows = rows / np.linalg.norm(rows, axis=2, keepdims=True) * lengths
        solutions = draw.normal(size=dimensions) + spread * draw.normal(size=(ranks, dimensions))
        noise = 0.3 * draw.normal(size=(ranks, examples))
        self.targets = np.einsum("rkd,rd->rk", self.rows, solutions) + noise
        self.learning_rate, self._draws = learning_rate, draws
        squares = (self.rows**2).sum(axis=2)
        self.gradient_bound = float(np.sqrt(squares.max()))
        self.gradient_rms = float(np.sqrt(squares.mean(axis=1).max()))
        flat = self.rows.reshape(-1, dimensions)
        self.smoothness = float(np.linalg.eigvalsh(flat.T @ flat / len(flat))[-1])

    def initial(self) -> Array:
        """Zeros."""
        return np.zeros(self.rows.shape[2])

    def gradient(self, rank: int, iteration: int, model: Array) -> Array:
        """Of the example that `draws`, rank and iteration draw, each as likely as the others: its mean is that of the rank's f."""
        examples = self.targets.shape[1]
        picked = int(uniform(self._draws, "log_cosh", [rank], iteration)[0] * examples)
        row = self.rows[rank, picked]
        gradient: Array = np.tanh(row @ model - self.targets[rank, picked]) * row
        return gradient

    def full_gradient(self, model: Array) -> Array:
        """Of f, all ranks' examples in it."""
        slopes = np.tanh(self.rows @ model - self.targets)
        gradient: Array = np.einsum("rk,rkd->d", slopes, self.rows) / slopes.size
        return gradient

    def loss(self, model: Array) -> float:
        """f, computed so that no exponential overflows."""
        distances = np.abs(self.rows @ model - self.targets)
        return float(np.mean(distances + np.log1p(np.exp(-2 * distances)) - np.log(2)))
