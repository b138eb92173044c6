"""One model of all ranks, to evaluate or to save: the mean of their models and buffers, put in place of each rank's own for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from wagma.core.schedule import NEVER
from wagma.errors import CollectiveTimeout, InputError
from wagma.real.wrapper.extras import FloatBuffers
from wagma.real.wrapper.mean import Meetings

_NOT_FINITE = float("nan")


@contextmanager
def consolidated(
    parameters: Sequence[torch.Tensor],
    buffers: FloatBuffers,
    meetings: Meetings | None,
    iteration: int,
    last_sync: Callable[[int], int],
) -> Iterator[None]:
    """Inside, parameters and buffers are the mean over the ranks, the same bits on each; afterwards they are this rank's own, bit by bit.

    meetings None: a rank alone. iteration: how many this rank has ended. last_sync: of the most iterations of any rank, how many there were
    at the last sync; ranks that have not come that far are out of date, and left out. Raises CollectiveTimeout, PeerFailed;
    InputError if another rank calls something else.
    """
    held = [*parameters, *buffers.now()]
    tensors = [one.detach() for one in held]
    if meetings is None:
        with _put_back(held):
            yield
        return
    try:
        present = meetings.meet(iteration, "consolidated")
    except CollectiveTimeout as error:
        raise CollectiveTimeout(
            f"rank {meetings.rank}: consolidated() waits for every rank that has not closed: {error}"
        ) from error
    if not present.alike[0]:
        raise InputError(
            f"rank {meetings.rank}: consolidated() here, while another rank takes part in a sync; call it on all ranks"
        )
    newest = max(present.iterations.values())
    counted = iteration >= last_sync(newest)
    with _put_back(held):
        owners = meetings.average(tensors, [counted and bool(torch.isfinite(tensor).all()) for tensor in tensors])
        expected = sum(number >= last_sync(newest) for number in present.iterations.values())
        for tensor, ranks in zip(tensors[: len(parameters)], owners, strict=False):
            if ranks < expected:  # some rank's has NaN or infinity, and so would the mean
                tensor.fill_(_NOT_FINITE)
        yield


@contextmanager
def _put_back(held: list[torch.Tensor]) -> Iterator[None]:
    # What each looks at, and what is in it: a program that swaps in averages of its own changes the one or the other.
    before = [(one, one.detach(), one.detach().clone()) for one in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for one, place, values in before:
                one.data = place
                place.copy_(values)


def last_sync_of(sync_period: int) -> Callable[[int], int]:
    """For `consolidated`: the iterations up to and including the last sync; 0 where there is none."""
    return lambda iterations: 0 if sync_period == NEVER else iterations - iterations % sync_period
