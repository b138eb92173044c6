"""The environments that a policy of the workload `rl` learns at the same time, each made alike for every rank and run.

Both are gymnasium's own classic control. They differ in what a step costs (integrating a double pendulum takes several times as long as
one Euler step of a pole) and above all in how long an episode is: a good policy makes it longer in one and shorter in the other.
CartPole's own limit of 500 steps is lifted for training, since balancing has no end; for evaluation it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

#: What the network sees: the observation in units of its usual size, zeros, and which environment it is.
SEEN = 6
ACTIONS = 3
#: Steps of an evaluated episode, as the environments' own definitions have it.
JUDGED_STEPS = 500

Observation = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Kind:
    """An environment: its id, how many actions it has, and the usual size of its observations' components.

    longest: steps of an episode in training; share: of the episodes, from 0 to 1.
    """

    name: str
    actions: int
    scale: tuple[float, ...]
    longest: int
    share: float


KINDS = (
    Kind("CartPole-v1", 2, (1.0, 1.0, 0.1, 1.0), 1000, 0.3),
    Kind("Acrobot-v1", 3, (1.0, 1.0, 1.0, 1.0, 4.0, 8.0), 500, 0.7),
)
LONGEST = max(kind.longest for kind in KINDS)
INPUTS = SEEN + len(KINDS)


def drawn_kind(chance: float) -> int:
    """The number of the kind whose stretch of shares `chance`, from 0 to 1, falls into."""
    edges = np.cumsum([kind.share for kind in KINDS])
    return min(int(np.searchsorted(edges, chance, side="right")), len(KINDS) - 1)


class Environment:
    """One of KINDS, seen as the network wants it. An episode ends by itself or is cut off after so many steps (default: of the kind)."""

    def __init__(self, number: int, longest: int | None = None) -> None:
        self.kind = KINDS[number]
        # Without gymnasium's checker, which would cost more than a step does.
        self._environment: gymnasium.Env[Any, Any] = gymnasium.make(
            self.kind.name, max_episode_steps=longest or self.kind.longest, disable_env_checker=True
        )
        self._scale = np.array(self.kind.scale, np.float32)
        self._seen = np.zeros(INPUTS, np.float32)
        self._seen[SEEN + number] = 1

    def reset(self, seed: int) -> Observation:
        """The first observation of an episode that begins as `seed` (below 2^32) says."""
        observation, _ = self._environment.reset(seed=seed)
        return self._view(observation)

    def step(self, action: int) -> tuple[Observation, float, bool, bool]:
        """(observation, reward, whether the episode came to its end, whether it was cut off)."""
        observation, reward, ended, cut, _ = self._environment.step(action)
        return self._view(observation), float(reward), bool(ended), bool(cut)

    def _view(self, observation: Any) -> Observation:
        view = self._seen.copy()
        view[: self._scale.size] = observation / self._scale
        return view
