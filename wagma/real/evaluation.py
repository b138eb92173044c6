"""How good a real run's models were on the way: copies are taken while it runs, and judged when it is over, so that judging takes no time
from anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wagma.core.averaging import mean
from wagma.core.effects import Value
from wagma.real.limited import barrier, is_local
from wagma.scores import Score
from wagma.trace import Evaluation, Trace
from wagma.workloads import has_common_model
from wagma.workloads.replica import Replica


class Snapshots:
    """Copies of one rank's model: before the first of its iterations, after every `every` (None: no copies) and at the end."""

    def __init__(self, replica: Replica, every: int | None) -> None:
        self._replica = replica
        self._every = every
        self.taken: dict[int, Any] = {}

    def after(self, done: int, last: bool = False) -> bool:
        """The rank has done so many iterations; `last`: all of them. Returns whether that took a copy, a memcpy of the model."""
        wanted = last or (self._every is not None and done % self._every == 0)
        if wanted:
            self.taken[done] = self._replica.flat(Value.MODEL).read()
        return wanted


@dataclass(frozen=True, slots=True)
class Judgement:
    """Scores of the mean of all models on the way, none if ranks have no model in common, and the mean of the ranks' own last scores."""

    score: Score
    evaluations: list[Evaluation]
    own: float

    def enter(self, trace: Trace, on_the_way: bool) -> None:
        """Put it into the run's trace."""
        header = trace.header
        header.judged_by(self.score)
        header.score = self.evaluations[-1].score if self.evaluations else None
        header.own_score = self.own
        trace.evaluations = self.evaluations if on_the_way else []


def judge(comm: Any, replica: Replica, snapshots: Snapshots, algorithm: str, limit_s: float) -> Judgement:
    """Collective, when the run is over, the same on all ranks. The ranks share the work. Replaces the replica's own model.

    All ranks have taken their copies after the same iterations. Raises CollectiveTimeout if a rank does not come.
    """
    barrier(comm, limit_s, "judge the models")
    own = replica.evaluate()
    found: list[tuple[int, float]] = []
    for number, (done, model) in enumerate(sorted(snapshots.taken.items())):
        models = _everyone(comm, model, limit_s)
        if number % comm.size == comm.rank and has_common_model(algorithm, comm.size):
            found.append((done, replica.evaluate(mean(models))))
    everything = _everyone(comm, (own, found), limit_s)
    evaluations = sorted((Evaluation(*one) for _, some in everything for one in some), key=lambda one: one.iteration)
    return Judgement(replica.workload.score, evaluations, sum(score for score, _ in everything) / comm.size)


def _everyone(comm: Any, value: Any, limit_s: float) -> list[Any]:
    values: list[Any] = comm.allgather(value, limit_s) if is_local(comm) else comm.allgather(value)
    return values
