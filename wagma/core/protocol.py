"""The decision machine of the wait-avoiding group allreduce: one rank's activation, order, fences, freshness, buffers and end.

This is the readable specification. `native/src/protocol.cpp` is the same machine for production, where a late rank must answer
while Python computes; the C++ explorer dumps every reachable edge of small cases and this file must reproduce each of them.

What may live here: integers only. The machine moves no data and knows no time: it is told what happened and answers with
what has to happen. Whoever runs it must feed it one event at a time and carry out the outputs in order.

    events                                   outputs
    arrive(version)        app publishes     Forward(version, dimension, rank)   send an activation
    activation(version, dimension)           Start(version, buffer, target, stamp)   begin to move and reduce
    exec_done(version)     sum is complete   Complete(version, fresh, merged_version, buffer)   release the app
    read_done()            peers have read
    merge_done()           app has merged
    close()                app will not arrive again
    finish(version)        all have closed, this is the last version of all

Rules (W section 3 and algorithm 2, made precise):

* Versions execute in order at each rank, each exactly once.
* An activation of u activates every unexecuted version <= u: an activation may overtake an earlier one on another tree.
* Activations travel down binomial trees. Dimension k leads from r to r XOR 2^k for powers of two, else to (r + 2^k) mod P. A
  rank reached over dimension k forwards on all dimensions above k; an activator on all. Per dimension only the highest version
  forwarded is kept: forwarding u there has told the receiver, and through it everyone behind it, about all versions <= u. By
  induction along the path every rank gets an activation >= v for each activated v. (Dropping a second activation of the same
  version outright would strand ranks: with P=7 and activators 0 and 4, rank 3 can be missed.)
* A sync starts on the rank's own arrival only, and fences later versions. Its activations matter to closed ranks alone.
* Fresh is decided at the atomic publish: fresh if the version has not started here, else late. A late rank merges the execution
  in progress at that instant, else the newest completed one; never one begun after.
* A completed sync replaces the published model by its result, stamped with the sync's version. The initial model has stamp -1.
* A closed rank is a rank that skips all further updates: it takes part passively, and at a sync its model counts as published
  for that sync (stamp = version), since it is what the rank would have arrived with.
* At most one contribution is being read: the next version starts when the last one is executed and read.
"""

from __future__ import annotations

from typing import NamedTuple

from wagma.core.groups import is_power_of_two
from wagma.core.schedule import Schedule
from wagma.errors import ProtocolError

NONE = -1
#: Buffers a rank needs so that no role ever waits for another one. Roles: live, published, reading, target, result, merging.
#: Six roles, five buffers: `reading` differs from `published` only after a publish during an execution, and then the app waits,
#: so that nothing is `merging`. The explorer checks that a free buffer is always found.
BUFFERS = 5
DEFAULT_FINISH = -2  # finish() has not been called


class Forward(NamedTuple):
    """Send an activation of `version` to `rank`; the receiver is reached over `dimension`."""

    version: int
    dimension: int
    rank: int


class Start(NamedTuple):
    """Execute `version`: contribute `buffer` (whose model has `stamp`), put the sum (at a sync: the mean) into `target`."""

    version: int
    buffer: int
    target: int
    stamp: int


class Complete(NamedTuple):
    """The application returns from `version`: merge `buffer`, the result of `merged_version`; NONE: nothing to merge."""

    version: int
    fresh: bool
    merged_version: int
    buffer: int


Output = Forward | Start | Complete


def dimensions(world_size: int) -> int:
    """Number of dimensions of the activation trees: log2 P, rounded up."""
    return (world_size - 1).bit_length()


def neighbour(world_size: int, rank: int, dimension: int) -> int:
    """Where an activation sent by `rank` over `dimension` goes."""
    if is_power_of_two(world_size):
        return rank ^ (1 << dimension)
    return (rank + (1 << dimension)) % world_size


class Machine:
    """Decision machine of one rank; see the module for events, outputs and rules.

    Raises ProtocolError for an event that the state does not allow; the state is then unchanged.
    """

    __slots__ = (
        "rank", "schedule", "merge_once", "next_version", "executing", "activated", "arrived", "waiting", "fresh", "merge_at",
        "merged", "stamp", "closed", "last", "live", "published", "reading", "target", "result", "merging", "forwarded",
    )  # fmt: skip

    #: The order in which `state` lists them, before forwarded[0], forwarded[1], ...; the C++ machine has the same.
    STATE = (
        "next_version", "executing", "activated", "arrived", "waiting", "fresh", "merge_at", "merged", "stamp", "closed",
        "last", "live", "published", "reading", "target", "result", "merging",
    )  # fmt: skip

    def __init__(self, rank: int, schedule: Schedule, merge_once: bool = False) -> None:
        self.rank = rank
        self.schedule = schedule
        self.merge_once = merge_once
        self.next_version = schedule.first  # lowest version that has not started
        self.executing = NONE  # version started and not yet done
        self.activated = NONE  # all versions <= this are activated here
        self.arrived = NONE  # version of the last arrival
        self.waiting = NONE  # version in which the application waits
        self.fresh = 0  # whether the last arrival was before its version started
        self.merge_at = NONE  # version whose completion releases the application
        self.merged = NONE  # newest version merged so far
        self.stamp = NONE  # iteration for which the published model was published, or the sync that replaced it
        self.closed = 0
        self.last = DEFAULT_FINISH
        self.live = 0  # the application may write it until it arrives
        self.published = 1  # holds the initial model
        self.reading = NONE
        self.target = NONE
        self.result = NONE
        self.merging = NONE
        self.forwarded = [NONE] * dimensions(schedule.world_size)

    # -- events ------------------------------------------------------------------------------------------------------

    def arrive(self, version: int) -> list[Output]:
        """The application publishes its live buffer for `version` and waits; atomic with everything else at this rank."""
        self._require(not self.closed, "arrive", version, "the rank has closed")
        self._require(self.waiting == NONE, "arrive", version, f"the rank still waits in version {self.waiting}")
        self._require(self.merging == NONE, "arrive", version, "the last result is still being merged")
        expected = self.schedule.next(self.arrived)
        self._require(version == expected, "arrive", version, f"the next version is {expected}")
        self.published, self.live = self.live, NONE
        self.live = self._free()
        self.stamp = self.arrived = self.waiting = version
        self.fresh = int(version >= self.next_version)
        outputs: list[Output] = []
        if not self.fresh:
            if self.executing != NONE:
                self.merge_at = self.executing
            else:
                self._complete(self.schedule.previous(self.next_version), outputs)
            return outputs
        self.merge_at = version
        if version > self.activated:
            self.activated = version
            self._forward(version, 0, outputs)
        self._start(outputs)
        return outputs

    def activation(self, version: int, dimension: int) -> list[Output]:
        """An activation of `version` has reached this rank over `dimension`."""
        known = 0 <= dimension < len(self.forwarded)
        self._require(known, "activation", version, f"dimension {dimension} is not below {len(self.forwarded)}")
        outputs: list[Output] = []
        self._forward(version, dimension + 1, outputs)
        if version > self.activated:
            self.activated = version
            self._start(outputs)
        return outputs

    def exec_done(self, version: int) -> list[Output]:
        """The sum of `version` is complete in the target buffer."""
        self._require(version == self.executing != NONE, "exec_done", version, f"version {self.executing} is executing")
        self.executing = NONE
        self.result, self.target = self.target, NONE
        if self.schedule.is_sync(version):
            self.published, self.stamp = self.result, version
        outputs: list[Output] = []
        if self.merge_at == version:
            self._complete(version, outputs)
        self._start(outputs)
        return outputs

    def read_done(self) -> list[Output]:
        """No peer reads this rank's contribution any more."""
        self._require(self.reading != NONE, "read_done", self.executing, "no contribution is being read")
        self.reading = NONE
        outputs: list[Output] = []
        self._start(outputs)
        return outputs

    def merge_done(self) -> list[Output]:
        """The application has merged the result that Complete gave it."""
        self._require(self.merging != NONE, "merge_done", self.arrived, "nothing is being merged")
        self.merging = NONE
        return []

    def close(self) -> list[Output]:
        """The application will not arrive again; the rank goes on serving others."""
        self._require(not self.closed, "close", self.arrived, "the rank has closed already")
        self._require(self.waiting == NONE, "close", self.arrived, f"the rank still waits in version {self.waiting}")
        self._require(self.merging == NONE, "close", self.arrived, "the last result is still being merged")
        self.closed = 1
        outputs: list[Output] = []
        self._start(outputs)
        return outputs

    def finish(self, version: int) -> list[Output]:
        """All ranks have closed, and `version` is the last at which any of them arrived: execute up to it, then be done."""
        self._require(bool(self.closed), "finish", version, "the rank has not closed")
        self._require(self.last == DEFAULT_FINISH, "finish", version, f"the run already ends with version {self.last}")
        self.last = version
        self.activated = max(self.activated, version)
        outputs: list[Output] = []
        self._start(outputs)
        return outputs

    # -- what can be asked --------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether this rank has nothing left to do or to serve."""
        return self.last != DEFAULT_FINISH and self.next_version > self.last and self.executing == self.reading == NONE

    @property
    def state(self) -> tuple[int, ...]:
        """All that distinguishes two machines of the same rank and schedule, as integers."""
        return (*(int(getattr(self, name)) for name in self.STATE), *self.forwarded)

    def restore(self, state: tuple[int, ...]) -> None:
        """Put the machine into a state that `state` gave."""
        for name, value in zip(self.STATE, state, strict=False):
            setattr(self, name, value)
        self.forwarded = list(state[len(self.STATE) :])

    # -- rules ---------------------------------------------------------------------------------------------------------

    def _forward(self, version: int, lowest: int, outputs: list[Output]) -> None:
        for dimension in range(lowest, len(self.forwarded)):
            if self.forwarded[dimension] < version:
                self.forwarded[dimension] = version
                outputs.append(Forward(version, dimension, neighbour(self.schedule.world_size, self.rank, dimension)))

    def _start(self, outputs: list[Output]) -> None:
        """Start the next version if it is activated, nothing is under way, and no fence stands before it."""
        version = self.next_version
        if version > self.activated or self.executing != NONE or self.reading != NONE:
            return
        if self.schedule.is_sync(version) and self.arrived < version:
            if not self.closed:
                return
            self.stamp = version
        self.executing = version
        self.next_version = self.schedule.next(version)
        self.reading = self.published
        self.target = self._free()
        outputs.append(Start(version, self.reading, self.target, self.stamp))

    def _complete(self, version: int, outputs: list[Output]) -> None:
        self.merge_at = NONE
        if self.merge_once and version <= self.merged:
            outputs.append(Complete(self.waiting, bool(self.fresh), NONE, NONE))
        else:
            self.merging = self.result
            self.merged = version
            outputs.append(Complete(self.waiting, bool(self.fresh), version, self.result))
        self.waiting = NONE

    def _free(self) -> int:
        """The lowest buffer without a role."""
        roles = (self.live, self.published, self.reading, self.target, self.result, self.merging)
        for buffer in range(BUFFERS):
            if buffer not in roles:
                return buffer
        raise ProtocolError(f"rank {self.rank}: no free buffer among {BUFFERS} (roles {roles})")

    def _require(self, condition: bool, event: str, version: int, why: str) -> None:
        if not condition:
            raise ProtocolError(f"rank {self.rank}: {event}({version}) is not allowed: {why}")
