"""Proximal policy optimization (Schulman et al., arXiv 1707.06347) of one small policy on several environments.

An iteration is one gradient. Every `training.epochs`-th iteration collects first: one episode, from its beginning to its end or to
`training.batch_size` steps, of an environment that is drawn for the rank and the iteration. That iteration and the ones after it, `epochs`
in all, each take one gradient of PPO's clipped loss on the whole of it: so an epoch of PPO is an iteration, and model averaging or
gradient averaging happens between epochs.

Nothing is injected: an episode takes as long as it takes. It begins as the draws of (seed, rank, iteration) say, and so are its actions
drawn, so that it is a function of these and of the model: both worlds see the same ones if they have the same models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wagma.draws import bits, uniform
from wagma.errors import InputError
from wagma.scenario import Scenario
from wagma.scores import EPISODE_RETURN
from wagma.workloads.checks import check_model, check_uneven
from wagma.workloads.environments import ACTIONS, INPUTS, JUDGED_STEPS, KINDS, LONGEST, Environment, drawn_kind
from wagma.workloads.seeded import seeded

HIDDEN = 64
DISCOUNT, TRACE_DECAY = 0.99, 0.95  # gamma, and lambda of generalized advantage estimation
CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT = 0.2, 0.5, 0.01
#: Rewards come to the network in this unit: sums of hundreds of them would be far from what it begins with.
REWARD_SCALE = 0.01
#: Evaluation: so many episodes of each environment. Actions are drawn, as in training: the most probable one alone may go round in circles.
EPISODES, EVALUATION_SEED = 10, 0
#: An action that an environment does not have.
IMPOSSIBLE = -1e9

Floats = npt.NDArray[np.float32]


class ActorCritic(nn.Module):
    """Observations, shape (steps, INPUTS), to logits of actions (steps, ACTIONS) and values (steps,)."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = _perceptron(ACTIONS, 0.01), _perceptron(1, 1.0)

    def forward(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, values)."""
        return self.actor(seen), self.critic(seen).squeeze(-1)


def _perceptron(outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers; orthogonal values, the last layer small, as PPO's authors have it."""
    layers = [nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, outputs)]
    for layer, own in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, own)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Policy:
    """A model's actor as numpy sees it, for one observation at a time, where torch's own overhead would be most of a step."""

    def __init__(self, model: nn.Module) -> None:
        assert isinstance(model, ActorCritic)
        linear = [layer for layer in model.actor if isinstance(layer, nn.Linear)]
        self._weights = [(layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()) for layer in linear]

    def logits(self, seen: Floats, actions: int) -> Floats:
        """Of the first `actions` actions."""
        (w1, b1), (w2, b2), (w3, b3) = self._weights
        hidden = np.tanh(w2 @ np.tanh(w1 @ seen + b1) + b2)
        result: Floats = (w3 @ hidden + b3)[:actions]
        return result


@dataclass(frozen=True, slots=True)
class Episode:
    """What PPO needs of an episode of n steps, with advantages and returns by the critic of the time it was collected.

    seen: (n, INPUTS); actions: (n,), int64; allowed: (ACTIONS,), 0 or IMPOSSIBLE; log_probabilities, advantages, returns: (n,).
    """

    seen: torch.Tensor
    actions: torch.Tensor
    allowed: torch.Tensor
    log_probabilities: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def to(self, device: torch.device) -> Episode:
        """The same episode there."""
        return Episode(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def loss(self, model: nn.Module) -> torch.Tensor:
        """PPO's clipped loss, with the critic's and an entropy bonus."""
        logits, values = model(self.seen)
        log_all = torch.log_softmax(logits + self.allowed, dim=-1)
        ratio = torch.exp(log_all.gather(1, self.actions[:, None]).squeeze(1) - self.log_probabilities)
        gained = torch.minimum(ratio * self.advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * self.advantages)
        entropy = -(log_all.exp() * log_all).sum(dim=-1)
        critic = (values - self.returns).square()
        loss: torch.Tensor = (VALUE_WEIGHT * critic - gained - ENTROPY_WEIGHT * entropy).mean()
        return loss


class Rl:
    """The workload for one scenario. Raises InputError if its model or settings do not fit."""

    score = EPISODE_RETURN

    def __init__(self, scenario: Scenario) -> None:
        training = scenario.training
        with torch.device("meta"):
            parameters = sum(p.numel() for p in ActorCritic().parameters())
        check_model(scenario, parameters)
        check_uneven(scenario)
        if training.batch_size > LONGEST:
            raise InputError(
                f"{scenario.source}: training.batch_size = {training.batch_size}: must be at most {LONGEST}, steps of the longest episode"
            )
        self.seed, self.epochs, self.most_steps = scenario.seed, training.epochs, training.batch_size
        self.device = torch.device("cpu")
        self._judged = [Environment(number, JUDGED_STEPS) for number in range(len(KINDS))]

    def to(self, device: torch.device) -> None:
        """Episodes are collected with a copy of the policy in host memory, and learned from there."""
        self.device = device

    def model(self) -> ActorCritic:
        """Actor and critic; initial values from the scenario's seed."""
        with seeded(self.seed):
            return ActorCritic()

    def stream(self, rank: int) -> Experience:
        """The rank's episodes."""
        return Experience(self, rank)

    def evaluate(self, model: nn.Module) -> float:
        """Mean return over all environments, of episodes that begin alike, and draw their actions alike, for every model."""
        policy = Policy(model)
        returns = []
        for environment in self._judged:
            for number in range(EPISODES):
                seen = environment.reset(_seed(EVALUATION_SEED, "rl.judge", 0, number))
                total = 0.0
                for chance in uniform(EVALUATION_SEED, "rl.judge.action", np.arange(JUDGED_STEPS), number).tolist():
                    seen, reward, ended, cut = environment.step(_drawn(policy.logits(seen, environment.kind.actions), chance))
                    total += reward
                    if ended or cut:
                        break
                returns.append(total)
        return sum(returns) / len(returns)


class Experience:
    """A rank's environments and its last episode. work: steps that the last iteration took, 0 if it learned from earlier ones."""

    def __init__(self, workload: Rl, rank: int) -> None:
        self._workload = workload
        self._rank = rank
        self._environments: dict[int, Environment] = {}
        self._episode: Episode | None = None
        self.work: float | None = 0.0

    def loss(self, model: nn.Module, iteration: int) -> torch.Tensor:
        """Of the episode at hand, a new one in every `epochs`-th iteration."""
        if self._episode is None or iteration % self._workload.epochs == 0:
            self._episode = self._collect(model, iteration)
            self.work = float(len(self._episode.actions))
        else:
            self.work = 0.0
        return self._episode.loss(model)

    def state_dict(self) -> dict[str, Any]:
        """The episode at hand, for a checkpoint between two of its epochs."""
        return {} if self._episode is None else {"episode": asdict(self._episode)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._episode = Episode(**state["episode"]).to(self._workload.device) if state else None

    def _collect(self, model: nn.Module, iteration: int) -> Episode:
        seed, rank = self._workload.seed, self._rank
        number = drawn_kind(float(uniform(seed, "rl.environment", [rank], iteration)[0]))
        if number not in self._environments:
            self._environments[number] = Environment(number)
        environment, policy = self._environments[number], Policy(model)
        chances = uniform(seed, f"rl.action.{rank}", np.arange(self._workload.most_steps), iteration).tolist()
        seen = [environment.reset(_seed(seed, "rl.begin", rank, iteration))]
        actions, rewards = [], []
        ended = cut = False
        for chance in chances:
            action = _drawn(policy.logits(seen[-1], environment.kind.actions), chance)
            view, reward, ended, cut = environment.step(action)
            actions.append(action)
            rewards.append(reward)
            seen.append(view)
            if ended or cut:
                break
        return _episode(model, self._workload.device, environment.kind.actions, np.stack(seen), actions, rewards, ended)


def _episode(
    model: nn.Module, device: torch.device, possible: int, seen: Floats, actions: list[int], rewards: list[float], ended: bool
) -> Episode:  # fmt: skip
    """Advantages by GAE. seen has the state after the last step, too, whose value counts unless the episode came to its end."""
    allowed = torch.tensor([0.0 if action < possible else IMPOSSIBLE for action in range(ACTIONS)], device=device)
    taken = torch.tensor(actions, device=device)
    states = torch.from_numpy(seen).to(device)
    with torch.no_grad():
        logits, values = model(states)
        log_all = torch.log_softmax(logits[:-1] + allowed, dim=-1)
    value = values.tolist()
    advantages, running, following = [0.0] * len(actions), 0.0, 0.0 if ended else value[-1]
    for t in range(len(actions) - 1, -1, -1):
        surprise = REWARD_SCALE * rewards[t] + DISCOUNT * following - value[t]
        running = surprise + DISCOUNT * TRACE_DECAY * running
        advantages[t], following = running, value[t]
    raw = torch.tensor(advantages, device=device)
    return Episode(
        states[:-1], taken, allowed, log_all.gather(1, taken[:, None]).squeeze(1),
        (raw - raw.mean()) / (raw.std(correction=0) + 1e-8), raw + values[:-1],
    )  # fmt: skip


def _drawn(logits: Floats, chance: float) -> int:
    """The action whose stretch of cumulative probability `chance`, from 0 to 1, falls into."""
    weights = np.exp(logits - logits.max())
    return min(int(np.searchsorted(np.cumsum(weights), chance * weights.sum(), side="right")), len(weights) - 1)


def _seed(seed: int, purpose: str, rank: int, iteration: int) -> int:
    return int(bits(seed, purpose, np.array([rank]), iteration)[0]) % 2**32
