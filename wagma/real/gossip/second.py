"""The second activity of a rank that gossips (AD-PSGD's communication), on a thread of its own.

That thread must not be what keeps a rank: of an optimizer that its program has dropped no iteration begins any more, and the thread would
wait for one for ever. So the activity sees a view of its rank instead of the rank, and the thread has the letters only while it works.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wagma.core.effects import Algorithm, AwaitIteration, PairAverage
from wagma.core.protocol import NONE
from wagma.core.schedule import Schedule
from wagma.core.settings import AlgorithmSettings
from wagma.errors import WagmaError
from wagma.real.gossip import ends

if TYPE_CHECKING:
    from wagma.real.gossip.exchange import Gossip


@dataclass(frozen=True, slots=True)
class View:
    """What the second activity may know of its rank (`wagma.core.effects.RankView`)."""

    rank: int
    schedule: Schedule
    settings: AlgorithmSettings

    @property
    def iterations(self) -> Iterable[int]:
        """Endless: the user's own loop decides."""
        return itertools.count(self.schedule.begin)


def start_second(gossip: Gossip, activity: Algorithm) -> None:
    """Run it until the rank's program has ended, or has dropped the rank: the effect under way is its last."""
    gossip.has_averaged(NONE)
    given = weakref.ref(gossip), gossip.changed, gossip.pace, activity, gossip.rank
    gossip.second = threading.Thread(target=_run, args=given, name=f"wagma-second-{gossip.rank}", daemon=True)
    gossip.second.start()


def _run(reference: weakref.ref[Gossip], changed: threading.Condition, pace: ends.Pace, activity: Algorithm, rank: int) -> None:
    """The thread."""
    try:
        for effect in activity:
            match effect:
                case AwaitIteration():
                    goes_on = _await_iteration(reference, changed, pace, effect.iteration)
                case PairAverage():
                    goes_on = _average_pair(reference, effect)
                case _:
                    raise WagmaError(f"rank {rank}: {effect!r} is nothing for a second activity")
            if not goes_on:
                break
    except BaseException as error:
        if (gossip := reference()) is not None:
            gossip.fail(error)
    if (gossip := reference()) is not None:
        gossip.has_averaged()


def _average_pair(reference: weakref.ref[Gossip], effect: PairAverage) -> bool:
    gossip = reference()
    return gossip is not None and gossip.average_pair(effect)


def _await_iteration(reference: weakref.ref[Gossip], changed: threading.Condition, pace: ends.Pace, iteration: int) -> bool:
    """Until the rank's program has begun `iteration`, however long that takes; False if it has ended before, or dropped the rank.

    Raises PeerFailed. The pace is looked at under the lock that it is waited with, so that no beginning is missed; a failure that comes
    between `check` and the wait is seen a moment later.
    """
    if (gossip := reference()) is not None:
        gossip.has_averaged(iteration - 1)
    suspects: set[int] = set()
    looked = time.monotonic()
    while True:
        with changed:
            if pace.iteration >= iteration or pace.over:
                return pace.iteration >= iteration
        if (gossip := reference()) is None:
            return False
        gossip.check()
        if time.monotonic() - looked > ends.LOOK_S:
            suspects, looked = gossip.look_for_ended(suspects), time.monotonic()
        del gossip
        with changed:
            if pace.iteration < iteration and not pace.over:
                changed.wait(ends.LOOK_S)
