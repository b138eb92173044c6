"""What a workload is judged by: a name, which direction is better, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

#: What "better" means: more of it, or less.
DIRECTIONS = ("up", "down")


@dataclass(frozen=True, slots=True)
class Score:
    """A measure of a model. direction: "up" if more is better, else "down". margin: how far from the best one a target is by default.
    held_out: whether it is one on data that nobody trained on, and not, say, on episodes, of which there are as many as one likes.

    An accuracy is a share, from 0 to 1, and is written in percent; any other score as a number with so many digits.
    """

    name: str
    direction: str = "up"
    digits: int = 3
    margin: float = 0.05
    share: bool = False
    held_out: bool = True

    @property
    def basis(self) -> str:
        """What it is of, for the line below a table."""
        return "of the mean of all models" + (", held-out data" if self.held_out else "")

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is truly better than `other`."""
        return one > other if self.direction == "up" else one < other

    def reaches(self, value: float, target: float) -> bool:
        """Whether `value` is at the target or beyond it."""
        return not self.better(target, value)

    def best(self, values: Iterable[float]) -> float:
        """The best of at least one."""
        return max(values) if self.direction == "up" else min(values)

    def worst(self, values: Iterable[float]) -> float:
        """The worst of at least one."""
        return min(values) if self.direction == "up" else max(values)

    def near(self, best: float) -> float:
        """A target a margin short of `best`, rounded away from it to a number that reads well; a share is never below 1 %."""
        digits = 2 if self.share else self.digits - 1
        scale: float = 10.0**digits
        if self.direction == "down":
            return math.ceil(scale * (best + self.margin) - 1e-9) / scale
        rounded = math.floor(scale * (best - self.margin) + 1e-9) / scale
        return max(1 / scale, rounded) if self.share else rounded

    def show(self, value: float | None) -> str:
        """As tables have it; nothing for None."""
        if value is None:
            return ""
        return f"{100 * value:.1f} %" if self.share else f"{value:.{self.digits}f}"

    def show_short(self, value: float) -> str:
        """Without the unit, for an end of an interval."""
        return f"{100 * value:.1f}" if self.share else f"{value:.{self.digits}f}"

    def show_target(self, value: float) -> str:
        """With no more digits than it has, and no more than other scores have."""
        return f"{100 * value:g} %" if self.share else f"{round(value, self.digits):g}"


ACCURACY = Score("accuracy", share=True)
BITS_PER_BYTE = Score("bits per byte", "down")
EPISODE_RETURN = Score("episode return", digits=1, margin=20.0, held_out=False)

SCORES = {score.name: score for score in (ACCURACY, BITS_PER_BYTE, EPISODE_RETURN)}


def score_named(name: str | None, direction: str | None = None) -> Score | None:
    """What a record calls its score; one that is not known here is a number of the direction that the record says."""
    if name is None:
        return None
    return SCORES.get(name, Score(name, direction or "up", held_out=False))
