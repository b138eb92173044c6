"""In whose order models are published and averaged on a device, what a busy one keeps others from, and that memory stays as it is."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("wagma._native")

from device_arrays import Work, seen, where, zeros
from devices import DEVICES

from wagma import GroupAllreduce
from wagma.real.bench.device import Tensor, place_for
from wagma.real.local import LocalCommunicator, run_local

COUNT = 100_003
#: A stream is busy for so long: what is awaited of others has to happen within it, on a machine that may be busy itself.
BUSY_S = (0.1, 0.5, 3.0)


def published_while_busy(kind: str, busy_s: float, followed: bool, resident: bool) -> list[tuple[float, bool]]:
    """Each rank's stream is busy, then writes rank + 1 over zeros; the mean right after a sync, and whether the stream was still busy.

    Not followed: the collective is told of another stream, which has nothing to do.
    """

    def program(comm: LocalCommunicator) -> tuple[float, bool]:
        place = place_for(where(kind), comm.rank)
        first, marker = Tensor(place, zeros(COUNT)), Tensor(place, zeros(1))
        work, other = Work(kind), Work(kind)
        with GroupAllreduce(comm, first, comm.size, 1, device=where(kind), resident=resident) as collective:
            work.sleep(busy_s)
            work.fill(collective.model, comm.rank + 1.0)
            work.fill(marker, 1.0)
            collective.average(stream=work.stream if followed else other.stream)
            found, was_busy = seen(collective.model, place), seen(marker, place) == 0
            work.synchronize()
        return found, was_busy

    return run_local(2, program)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("kind", DEVICES)
def test_what_a_busy_stream_writes_is_what_is_published(kind: str, resident: bool) -> None:
    for found, was_busy in published_while_busy(kind, BUSY_S[0], followed=True, resident=resident):
        assert (found, was_busy) == (1.5, False)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("kind", DEVICES)
def test_without_following_it_the_race_is_there(kind: str, resident: bool) -> None:
    """The test above can fail: who follows another stream publishes what was there before."""
    for busy_s in BUSY_S:
        results = published_while_busy(kind, busy_s, followed=False, resident=resident)
        if all(was_busy for _, was_busy in results):
            break
    assert results == [(0.0, True)] * 2


class Lent:
    """An array whose library says in which stream's order it works now."""

    def __init__(self, tensor: Tensor, work: Work) -> None:
        self._tensor, self._work = tensor, work

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """With a stream."""
        handle = self._work.stream.handle if hasattr(self._work.stream, "handle") else self._work.stream.cuda_stream
        return {**self._tensor.__cuda_array_interface__, "stream": handle}


@pytest.mark.parametrize("kind", DEVICES)
def test_the_librarys_own_stream_is_followed(kind: str) -> None:
    """When the first value is read, and in each average."""
    done = threading.Event()

    def program(comm: LocalCommunicator) -> float:
        place = place_for(where(kind), comm.rank)
        model, work = Tensor(place, zeros(COUNT)), Work(kind)
        work.sleep(BUSY_S[0])
        work.fill(model, 7.0)
        with GroupAllreduce(comm, Lent(model, work), 2, "never", device=where(kind)) as collective:
            if comm.rank == 1:
                assert done.wait(20)
                work.sleep(BUSY_S[0])
                work.fill(model, 9.0)
            collective.average()
            done.set()
            return seen(model, place)

    # Rank 1's first value is in rank 0's average, and what it writes later comes late: (7 + 7 + 9) / 3.
    assert run_local(2, program) == [7.0, np.float32(23.0) / np.float32(3.0)]


@pytest.mark.parametrize("kind", DEVICES)
def test_a_rank_with_a_busy_stream_keeps_nobody_waiting(kind: str) -> None:
    """Its published model is complete, and whoever has arrived adds up its part, too."""

    def attempt(busy_s: float) -> bool:
        began, over = threading.Event(), threading.Event()

        def program(comm: LocalCommunicator) -> bool:
            place = place_for(where(kind), comm.rank)
            model, marker, work = Tensor(place, zeros(COUNT)), Tensor(place, zeros(1)), Work(kind)
            with GroupAllreduce(comm, model, 2, 4, device=where(kind)) as collective:
                for _ in range(3):
                    collective.average()
                model.write(np.full(COUNT, comm.rank + 1.0, np.float32))
                assert collective.average().synced
                assert seen(model, place) == 1.5
                if comm.rank == 1:
                    work.sleep(busy_s)
                    work.fill(marker, 1.0)
                    began.set()
                    assert over.wait(20)
                    was_busy = seen(marker, place) == 0
                    work.synchronize()
                    return was_busy
                assert began.wait(20)
                model.write(np.full(COUNT, 3.5, np.float32))
                assert collective.average().fresh
                assert seen(model, place) == 2.5  # of 3.5 and what rank 1 published last
                over.set()
            return True

        return all(run_local(2, program))

    assert any(attempt(busy_s) for busy_s in BUSY_S)


def held_bytes() -> int:
    """What this process holds in the host's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def grown(kind: str, warm: int, collectives: int, resident: bool = False) -> tuple[int, int]:
    """By how much memory of the host and of the device has grown over so many collectives of each of two ranks.

    In one of four times that many, that of the least growth: what is left behind is left behind in all of them, and what a process
    takes once (the stack of a thread that goes deeper, code that runs for the first time, a list that doubles) in one or two.
    """

    def program(comm: LocalCommunicator) -> list[tuple[int, int]]:
        place = place_for(where(kind), comm.rank)
        assert place.device is not None
        first, work = Tensor(place, zeros(1000)), Work(kind)
        held = []
        with GroupAllreduce(comm, first, 2, 10, device=where(kind), resident=resident) as collective:
            for t in range(warm + 4 * collectives + 1):
                if t >= warm and (t - warm) % collectives == 0:
                    comm.allgather(None)
                    held.append((held_bytes(), -place.device.memory()[0]))
                    comm.allgather(None)
                work.fill(collective.model, t)
                collective.average(stream=work.stream)
        return [(now[0] - before[0], now[1] - before[1]) for before, now in itertools.pairwise(held)]

    (times, _) = run_local(2, program, timeout_s=600)
    assert len(times) == 4
    host, device = (min(one) for one in zip(*times, strict=True))
    return host, device


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("kind", DEVICES)
def test_memory_does_not_grow(kind: str, resident: bool) -> None:
    host, device = grown(kind, 100, 200, resident)
    assert host < 1 << 18  # 1.3 kB a collective: an event or a list that is left behind each time
    assert device <= 0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", DEVICES)
def test_memory_does_not_grow_over_ten_thousand_collectives(kind: str) -> None:
    host, device = grown(kind, 1000, 2500)
    assert host < 1 << 18
    assert device <= 0
