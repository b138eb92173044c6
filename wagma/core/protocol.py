"""The decision machine of the wait-avoiding group allreduce: one rank's activation, order, fences, freshness, buffers and end.

This is the readable specification. `native/src/protocol.cpp` is the same machine for production, where a late rank must answer
while Python computes; the C++ explorer dumps every reachable edge of small cases and this file must reproduce each of them.

What may live here: integers only. The machine moves no data and knows no time: it is told what happened and answers with
what has to happen. Whoever runs it must feed it one event at a time and carry out the outputs in order.

    events                                   outputs
    arrive(version)        app publishes     Forward(version, dimension, rank)   send an activation
    activation(version, dimension)           Start(version, buffer, target, stamp, oldest)   begin to move and reduce
    exec_done(version)     sum is complete   Complete(version, fresh, merged_version, buffer)   release the app
    read_done()            peers have read   Solo(version, dimension, rank)   tell that a rank has closed
    merge_done()           app has merged    Retracted(buffer, stamp, oldest)   the app gets its gradients back
    retract()              app takes back
    solo(version, dimension)   a rank has closed
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
* A completed sync replaces the published model by its result, stamped with the sync's version. The initial model has stamp
  schedule.begin - 1: a run that is resumed after a sync has that sync's result as it, and goes on as if it had gone through the sync.
* A closed rank is a rank that skips all further updates: it takes part passively, and at a sync its model counts as published
  for that sync (stamp = version), since it is what the rank would have arrived with.
* At most one contribution is being read: the next version starts when the last one is executed and read.

Initiators (E): only the candidates of a version may activate it. Any other rank that arrives waits until an activation reaches it; all
else is as above. A sync is activated by everybody. A closed candidate would never activate anything, so a rank that closes tells
everybody, down the trees of activations, that from its next version on any rank may activate; whoever waits there then does.

Accumulate (schedule.accumulate, E): group versions add up gradients, each of which is contributed once; syncs average models.

* What is published is taken at the start: nothing is published then, and a version started now gets Start without a buffer, the null
  contribution, which nobody reads: no read_done follows. Nothing is published to begin with.
* Before it arrives, the application takes back what no version has taken (`retract`), adds it to its new gradient, reports
  merge_done and arrives: the sum has the stamps (oldest, newest). Versions that start meanwhile get null; nothing is lost or doubled.
* At a sync the application retracts too, applies the update by itself and arrives with its *model*. No group version is left before the
  sync at that time (an application returns from version v when v has been executed), so that no model is taken for a gradient.
  After the sync nothing is published.
* Closing hands the live buffer in as the rank's model, for further syncs; each sync replaces it by its result. Gradients still
  published at the close are contributed once, to the next group version, then null: if a sync comes first, after it.

Buffers carry roles: live (the application writes it until it arrives), published, reading (by peers), target (of a sum), result (the
newest sum), merging (the application reads it), model (of a closed rank, accumulate). Roles move, contents do not. Three are enough:

* The result is dead once a version starts: a late rank waits for the execution in progress, and merges nothing older. So `_start` drops
  the role; the buffer stays if it is being merged, or was published by a sync.
* Live is reserved as soon as a buffer is free while the application neither waits nor merges (`_reserve`). There is none only while
  peers read what was published before the last arrival: `arrive` (accumulate: `close` too) waits for them, never for a late rank.
* So a start finds at most what is read from now on and live or merging. What arrives in between takes live; no target is needed then.

Resident (models): the application's model lives in the buffers, live cannot wait, and four are needed. Live is its own from Complete
until it arrives; then it is what is published, and the application has no other model. Complete gives it the next one:

* Fresh, no sync: the result is the new model, in place: live = merging = the result, whose role ends. Nobody here can merge it again: the
  next arrival is fresh, or a later version has started and is merged instead.
* Else live is a free buffer, which whoever runs the machine writes: the average of result and published of a late rank; a copy of a sync's
  result, which is published and stays as it is; or of what is published, if there is nothing to merge.

It is in place if Complete.buffer == live. Before the first arrival live and published both hold the initial model.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NoReturn

from wagma.core.groups import is_power_of_two
from wagma.core.outputs import Complete, Forward, Output, Retracted, Solo, Start
from wagma.core.schedule import Schedule
from wagma.errors import ProtocolError

__all__ = [
    "DEFAULT_FINISH", "NONE", "Complete", "Forward", "Machine", "Output", "Retracted", "Solo", "Start", "dimensions", "neighbour",
]  # fmt: skip

NONE = -1
DEFAULT_FINISH = -2  # finish() has not been called


def dimensions(world_size: int) -> int:
    """Number of dimensions of the activation trees: log2 P, rounded up."""
    return (world_size - 1).bit_length()


@lru_cache(maxsize=1 << 15)
def neighbour(world_size: int, rank: int, dimension: int) -> int:
    """Where an activation sent by `rank` over `dimension` goes."""
    if is_power_of_two(world_size):
        return rank ^ (1 << dimension)
    return (rank + (1 << dimension)) % world_size


class Machine:
    """Decision machine of one rank; see the module for events, outputs and rules.

    Raises ProtocolError for an event that the state does not allow; the state is then unchanged.
    """

    #: The order in which `state` lists them, before forwarded[0], forwarded[1], ..., told[0], ...; the C++ machine has the same.
    STATE = (
        "next_version", "executing", "activated", "arrived", "waiting", "fresh", "merge_at", "merged", "stamp", "oldest", "closed",
        "last", "solo_from", "live", "published", "reading", "target", "result", "merging", "model",
    )  # fmt: skip
    __slots__ = ("rank", "schedule", "merge_once", "resident", "buffers", *STATE, "forwarded", "told")

    def __init__(self, rank: int, schedule: Schedule, merge_once: bool = False, resident: bool = False) -> None:
        if resident and schedule.accumulate:
            raise ValueError(f"rank {rank}: resident = True: must be False where contributions accumulate")
        self.rank = rank
        self.schedule = schedule
        self.merge_once = merge_once
        self.resident = resident
        self.buffers = 4 if resident else 3  # how many whoever runs this has to provide; the module says why
        self.next_version = schedule.first  # lowest version that has not started
        self.executing = NONE  # version started and not yet done
        self.activated = NONE  # all versions <= this are activated here
        self.arrived = schedule.begin - 1  # version of the last arrival
        self.waiting = NONE  # version in which the application waits
        self.fresh = 0  # whether the last arrival was before its version started
        self.merge_at = NONE  # version whose completion releases the application
        self.merged = NONE  # newest version merged so far
        # Iteration for which the published model was published, or the sync that replaced it.
        self.stamp = NONE if schedule.accumulate else schedule.begin - 1
        self.oldest = self.stamp  # of the gradients published or retracted; the same as `stamp` for a model
        self.closed = 0
        self.last = DEFAULT_FINISH
        self.solo_from = NONE  # from this version on everybody may activate, as somebody has closed; NONE: nobody has
        self.live = 0  # the application may write it until it arrives; NONE: there is none now
        self.published = NONE if schedule.accumulate else 1  # holds the initial model
        self.reading = NONE
        self.target = NONE
        self.result = NONE
        self.merging = NONE
        self.model = NONE  # what a closed rank brings to syncs, where gradients accumulate
        self.forwarded = [NONE] * dimensions(schedule.world_size)
        self.told = [NONE] * len(self.forwarded)  # lowest version of the Solo sent over each dimension

    # -- events ------------------------------------------------------------------------------------------------------

    def arrive(self, version: int) -> list[Output]:
        """The application publishes its live buffer for `version` and waits; atomic with everything else at this rank."""
        self._require(not self.closed, "arrive", version, "the rank has closed")
        if self.waiting != NONE:
            self._refuse("arrive", version, f"the rank still waits in version {self.waiting}")
        self._require(self.merging == NONE, "arrive", version, "the last result is still being merged")
        expected = self.schedule.next(self.arrived)
        if version != expected:
            self._refuse("arrive", version, f"the next version is {expected}")
        accumulate, sync = self.schedule.accumulate, self.schedule.is_sync(version)
        if accumulate and self.published != NONE:
            self._refuse("arrive", version, f"the gradient of version {self.stamp} has to be retracted first")
        self._require(self.live != NONE, "arrive", version, "no buffer is live, peers still read")
        self.published, self.live = self.live, NONE
        self.stamp = self.arrived = self.waiting = version
        if not accumulate or sync or self.oldest == NONE:
            self.oldest = version
        self.fresh = int(version >= self.next_version)
        outputs: list[Output] = []
        if not self.fresh:
            if self.executing != NONE:
                self.merge_at = self.executing
            else:
                self._complete(self.schedule.previous(self.next_version), outputs)
                self._reserve()
            return outputs
        self.merge_at = version
        if self.activates(version):
            self.activated = version
            self._forward(version, 0, outputs)
        self._start(outputs)
        return outputs

    def activation(self, version: int, dimension: int) -> list[Output]:
        """An activation of `version` has reached this rank over `dimension`."""
        if not 0 <= dimension < len(self.forwarded):
            self._refuse("activation", version, f"dimension {dimension} is not below {len(self.forwarded)}")
        outputs: list[Output] = []
        self._forward(version, dimension + 1, outputs)
        if version > self.activated:
            self.activated = version
            self._start(outputs)
        return outputs

    def solo(self, version: int, dimension: int) -> list[Output]:
        """It has reached this rank over `dimension` that somebody has closed before `version`: from there on anybody may activate."""
        if not 0 <= dimension < len(self.told):
            self._refuse("solo", version, f"dimension {dimension} is not below {len(self.told)}")
        outputs: list[Output] = []
        self._tell(version, dimension + 1, outputs)
        if self.activates(self.waiting):  # NONE never does
            self.activated = self.waiting
            self._forward(self.waiting, 0, outputs)
            self._start(outputs)
        return outputs

    def exec_done(self, version: int) -> list[Output]:
        """The sum of `version` is complete in the target buffer."""
        if not version == self.executing != NONE:
            self._refuse("exec_done", version, f"version {self.executing} is executing")
        self.executing = NONE
        self.result, self.target = self.target, NONE
        if self.schedule.is_sync(version):
            if not self.schedule.accumulate:
                self.published, self.stamp, self.oldest = self.result, version, version
            elif self.closed:
                self.model = self.result
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
        self._reserve()
        return outputs

    def merge_done(self) -> list[Output]:
        """The application has merged the result that Complete gave it, or has added up what Retracted gave it."""
        self._require(self.merging != NONE, "merge_done", self.arrived, "nothing is being merged")
        self.merging = NONE
        self._reserve()
        return []

    def retract(self) -> list[Output]:
        """The application takes back the gradients that no version has taken, if there are any, to add them to its next one."""
        self._require(self.schedule.accumulate, "retract", self.arrived, "contributions do not accumulate")
        self._require(not self.closed, "retract", self.arrived, "the rank has closed")
        if self.waiting != NONE:
            self._refuse("retract", self.arrived, f"the rank still waits in version {self.waiting}")
        self._require(self.merging == NONE, "retract", self.arrived, "the last result is still being merged")
        if self.published == NONE:
            return []
        self.merging, self.published = self.published, NONE
        stamp, self.stamp = self.stamp, NONE
        return [Retracted(self.merging, stamp, self.oldest)]

    def close(self) -> list[Output]:
        """The application will not arrive again; the rank goes on serving others. Accumulate: the live buffer holds its model."""
        self._require(not self.closed, "close", self.arrived, "the rank has closed already")
        self._require(self.waiting == NONE, "close", self.arrived, f"the rank still waits in version {self.waiting}")
        self._require(self.merging == NONE, "close", self.arrived, "the last result is still being merged")
        if self.schedule.accumulate:
            self._require(self.live != NONE, "close", self.arrived, "no buffer is live, peers still read")
            self.model = self.live
        self.closed = 1
        outputs: list[Output] = []
        if not self.resident:  # else the application's model stays where it is
            self.live = NONE
        if self.schedule.selective:
            self._tell(self.schedule.next(self.arrived), 0, outputs)
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

    def knows(self, version: int, dimension: int) -> bool:
        """Whether activation(version, dimension) would change nothing and put nothing out, as most of them do: a cheap question.

        An activation raises `forwarded` from some dimension upwards, so it never decreases from one dimension to the next, and the
        first dimension above answers for all of them.
        """
        above = dimension + 1
        return version <= self.activated and (above == len(self.forwarded) or self.forwarded[above] >= version)

    @property
    def state(self) -> tuple[int, ...]:
        """All that distinguishes two machines of the same rank and schedule, as integers."""
        return (*(int(getattr(self, name)) for name in self.STATE), *self.forwarded, *self.told)

    def restore(self, state: tuple[int, ...]) -> None:
        """Put the machine into a state that `state` gave."""
        for name, value in zip(self.STATE, state, strict=False):
            setattr(self, name, value)
        lists = state[len(self.STATE) :]
        self.forwarded, self.told = list(lists[: len(lists) // 2]), list(lists[len(lists) // 2 :])

    def activates(self, version: int) -> bool:
        """Whether this rank, arriving at `version` or waiting in it, may activate it and has to."""
        if version <= self.activated:
            return False
        return self.schedule.may_activate(self.rank, version) or NONE != self.solo_from <= version

    # -- rules ---------------------------------------------------------------------------------------------------------

    def _tell(self, version: int, lowest: int, outputs: list[Output]) -> None:
        if self.solo_from == NONE or version < self.solo_from:
            self.solo_from = version
        for dimension in range(lowest, len(self.told)):
            if self.told[dimension] == NONE or version < self.told[dimension]:
                self.told[dimension] = version
                outputs.append(Solo(version, dimension, neighbour(self.schedule.world_size, self.rank, dimension)))

    def _forward(self, version: int, lowest: int, outputs: list[Output]) -> None:
        forwarded, world_size, rank = self.forwarded, self.schedule.world_size, self.rank
        for dimension in range(lowest, len(forwarded)):
            if forwarded[dimension] < version:
                forwarded[dimension] = version
                # Forward(...), which is what machines put out most, in a quarter of the time.
                outputs.append(tuple.__new__(Forward, (version, dimension, neighbour(world_size, rank, dimension))))

    def _start(self, outputs: list[Output]) -> None:
        """Start the next version if it is activated, nothing is under way, and no fence stands before it."""
        version = self.next_version
        if version > self.activated or self.executing != NONE or self.reading != NONE:
            return
        accumulate = self.schedule.accumulate
        if self.schedule.is_sync(version) and self.arrived < version:
            if not self.closed:
                return
            self.reading, stamp, oldest = self.model if accumulate else self.published, version, version
        elif self.published == NONE:
            stamp = oldest = NONE  # the state keeps the `oldest` of what has been retracted
        else:
            self.reading, stamp, oldest = self.published, self.stamp, self.oldest
            if accumulate:
                self.published = self.stamp = self.oldest = NONE
        self.executing = version
        self.next_version = self.schedule.next(version)
        self.result = NONE
        self.target = self._free()
        outputs.append(Start(version, self.reading, self.target, stamp, oldest))

    def _complete(self, version: int, outputs: list[Output]) -> None:
        self.merge_at = NONE
        if self.merge_once and version <= self.merged:
            outputs.append(Complete(self.waiting, bool(self.fresh), NONE, NONE))
        else:
            self.merging = self.result
            self.merged = version
            outputs.append(Complete(self.waiting, bool(self.fresh), version, self.result))
        self.waiting = NONE
        if not self.resident:
            return
        if self.fresh and not self.schedule.is_sync(version):
            self.live, self.result = self.result, NONE
        else:
            self.live = self._free()

    def _reserve(self) -> None:
        """Find the application the buffer with which it will arrive, if one is free by now."""
        if self.live == self.waiting == self.merging == NONE and not self.closed:
            self.live = self._spare()

    def _free(self) -> int:
        """A buffer without a role."""
        buffer = self._spare()
        if buffer == NONE:
            roles = tuple(getattr(self, name) for name in self.STATE[-7:])
            raise ProtocolError(f"rank {self.rank}: no free buffer among {self.buffers} (roles {roles})")
        return buffer

    def _spare(self) -> int:
        """The lowest buffer without a role, or NONE."""
        roles = (self.live, self.published, self.reading, self.target, self.result, self.merging, self.model)
        for buffer in range(self.buffers):
            if buffer not in roles:
                return buffer
        return NONE

    def _require(self, condition: bool, event: str, version: int, why: str) -> None:
        if not condition:
            self._refuse(event, version, why)

    def _refuse(self, event: str, version: int, why: str) -> NoReturn:
        raise ProtocolError(f"rank {self.rank}: {event}({version}) is not allowed: {why}")
