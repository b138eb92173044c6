"""Exchanges with neighbours, averaging in pairs and barriers between real ranks: the counterpart of `wagma.sim.gossip`.

What a neighbour sent early is kept until it is asked for. Whoever is asked for an average is served by a thread of its own, whatever its
program does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wagma.core.averaging import weighted_sum
from wagma.core.digest import digest
from wagma.core.effects import Exchange, PairAverage
from wagma.core.groups import ceil_log
from wagma.core.protocol import NONE
from wagma.errors import WagmaError
from wagma.real.gossip.ends import Correspondence, listed
from wagma.real.gossip.letters import Kind, Letter, Post
from wagma.real.gossip.letters_mpi import MpiPost
from wagma.real.gossip.shared import SharedModel
from wagma.real.kernel import report_on_signal
from wagma.real.limited import is_local
from wagma.trace import ExchangeRecord

Array = npt.NDArray[Any]


def gossip_of(comm: Any, dtype: np.dtype[Any], timeout_s: float, watchdog_s: float) -> Gossip:
    """This rank's side, for values of `dtype`. Collective. Raises CollectiveTimeout if a rank does not come."""
    report_on_signal()
    local = is_local(comm)
    post: Post = comm.make_post() if local else MpiPost(comm, dtype, timeout_s)
    return Gossip(post, timeout_s, watchdog_s, separate=not local)


class Received:
    """The outcome of an exchange: the weighted sum of the sources' values in their order (None: no sources), and their mass."""

    def __init__(self, letters: Sequence[Letter]) -> None:
        self.values = [letter.value for letter in letters if letter.value is not None]
        self.shares = [letter.share for letter in letters]
        self.total = weighted_sum(self.values, self.shares)
        self.mass = sum(letter.mass for letter in letters)


class Gossip(Correspondence):
    """One rank's side of all that; `changed` protects the shared model, too.

    An average, the iteration in which it comes, and its record are one step: the model's history could not be told from the records if
    an update could come between them.
    """

    def __init__(self, post: Post, timeout_s: float, watchdog_s: float, separate: bool) -> None:
        super().__init__(post, timeout_s, watchdog_s, separate)
        self.model: SharedModel | None = None
        self.record: Callable[[ExchangeRecord], None] | None = None
        self.place: Callable[[], int] | None = None  # with `record`: what numbers the averagings and what they send
        self.digests = True  # whether records have any: each reads a whole model, under the lock where pairs average
        # What `changed` protects:
        self._inbox: dict[int, dict[int, Letter]] = {}  # values by iteration and sender
        self._barriers: set[tuple[int, int]] = set()  # (iteration, phase) that others have come to, each from one sender
        self._asked: dict[int, tuple[Array, ExchangeRecord]] = {}  # by iteration: what was sent, and its record so far
        self._answered: dict[int, bool] = {}  # the same, answered: whether the rank's program had ended by then

    # -- synchronous -------------------------------------------------------------------------------------------------------

    def exchange(self, effect: Exchange, value: Array) -> Received:
        """Send `value`, which nobody may change any more, to the ranks `effect.to`; what came from all sources.

        Raises CollectiveTimeout, PeerFailed.
        """
        iteration, began = effect.iteration, time.monotonic_ns()
        to, sources = self._peers(effect.to), self._peers(effect.sources)
        self.join(iteration)
        parcel = Letter(Kind.PARCEL, self.rank, iteration, iteration, float(effect.share), float(effect.mass), value)
        self.post.send(to, parcel)

        def missing() -> set[int]:
            return set(sources) - self._inbox.get(iteration, {}).keys()

        self.wait(
            lambda: not missing(), lambda: f"the exchange of iteration {iteration} lacks the model of {listed(missing())}"
        )
        with self.changed:
            came = self._inbox.get(iteration, {})
            letters = [came.pop(source) for source in sources]
            if not came:
                self._inbox.pop(iteration, None)
        received = Received(letters)
        if self.record is not None:
            record = ExchangeRecord(
                self.rank, NONE, "neighbours", iteration, iteration, to, sources, [letter.stamp for letter in letters],
                received.shares, began, time.monotonic_ns(),
            )  # fmt: skip
            if self.digests:
                record.sent_digest, record.received_digests = digest(value), [digest(one) for one in received.values]
                record.result_digest = None if received.total is None else digest(received.total)
            self.record(record)
        return received

    def _peers(self, ranks: Sequence[Any]) -> list[int]:
        peers = [int(rank) for rank in ranks]
        if len(set(peers)) < len(peers) or not set(peers) <= set(self._others):
            raise WagmaError(f"rank {self.rank}: an exchange with ranks {peers}: must be distinct other ranks, of {self.size}")
        return peers

    def barrier(self, iteration: int) -> None:
        """Until all ranks have come: a dissemination barrier (Hensgen, Finkel, Manber, 1988). Raises CollectiveTimeout, PeerFailed."""
        self.join(iteration)
        for phase in range(ceil_log(self.size, 2)):
            self.post.send([(self.rank + (1 << phase)) % self.size], Letter(Kind.BARRIER, self.rank, iteration, phase))
            self._await_phase(iteration, phase)

    def _await_phase(self, iteration: int, phase: int) -> None:
        before = (self.rank - (1 << phase)) % self.size
        came = (iteration, phase)
        self.wait(lambda: came in self._barriers, lambda: f"the barrier of iteration {iteration} lacks {listed([before])}")
        with self.changed:
            self._barriers.discard(came)

    # -- pairs -------------------------------------------------------------------------------------------------------------

    def average_pair(self, effect: PairAverage) -> bool:
        """Average models with the partner; returns when the rank's own half of it is done: whether its program had not ended by then.

        Raises CollectiveTimeout, PeerFailed.
        """
        version = effect.iteration
        if effect.partner == self.rank:
            raise WagmaError(f"rank {self.rank}: {effect!r} asks for an average with itself")
        (partner,) = self._peers([effect.partner])
        assert self.model is not None
        with self.changed:
            if version in self._asked or version in self._answered:
                raise WagmaError(f"rank {self.rank}: {effect!r} while another one of iteration {version} is under way")
            sent, stamp = self.model.read(), self.iteration
            record = self._pair("active", version, partner)
            record.sent_sequence = None if self.place is None else self.place()
            self._asked[version] = sent, record
        self.post.send([partner], Letter(Kind.ASK, self.rank, version, stamp, value=sent))
        self.wait(
            lambda: version in self._answered,
            lambda: f"the average of iteration {version} lacks the answer of {listed([partner])}",
        )
        with self.changed:
            return not self._answered.pop(version)

    def take_content(self, letter: Letter) -> None:
        """Keep values, count ranks at a barrier, average at once."""
        match letter.kind:
            case Kind.PARCEL:
                self._inbox.setdefault(letter.version, {})[letter.sender] = letter
            case Kind.BARRIER:
                self._barriers.add((letter.version, letter.stamp))
            case Kind.ASK:
                assert self.model is not None
                own = self.model.read()
                answer = Letter(Kind.ANSWER, self.rank, letter.version, self.iteration, value=own)
                self._average(self._pair("passive", letter.version, letter.sender), letter, own)
                self.post.send([letter.sender], answer)
            case Kind.ANSWER:
                sent, record = self._asked.pop(letter.version)
                self._average(record, letter, sent)
                self._answered[letter.version] = self.over

    def _average(self, record: ExchangeRecord, letter: Letter, sent: Array) -> None:
        """The model moves by half of the difference between what the other side sent and what it has of this one."""
        assert self.model is not None
        assert letter.value is not None
        if self.record is None:
            self.model.average_pair(letter.value, sent)
            return
        if self.digests:
            record.own_digest, record.sent_digest = digest(self.model.read()), digest(sent)
        self.model.average_pair(letter.value, sent)
        if self.digests:
            record.result_digest, record.received_digests = digest(self.model.read()), [digest(letter.value)]
        record.iteration, record.stamps = self.iteration, [letter.stamp]
        record.completed_ns = time.monotonic_ns()
        record.sequence = NONE if self.place is None else self.place()
        if record.role == "passive":  # nobody waits at this side
            record.started_ns = record.completed_ns
        self.record(record)

    def _pair(self, role: str, version: int, partner: int) -> ExchangeRecord:
        now = time.monotonic_ns()
        return ExchangeRecord(self.rank, NONE, role, version, self.iteration, [partner], [partner], [], [], now, now)

    # -- the end -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """As it is inherited; the parameters are then the model as all averages have left it."""
        closed_before = self.ended
        super().close()
        if self.model is not None and not closed_before:
            self.model.settle()

    def check_done(self) -> None:
        """Raise WagmaError if models came that nobody took."""
        for iteration, came in sorted(self._inbox.items()):
            raise WagmaError(
                f"rank {self.rank} never took the models that ranks {sorted(came)} sent it in iteration {iteration}: its "
                "sources do not name them"
            )
