"""The C++ kernel gives what wagma.core gives: groups, trees, digests and sums bit by bit, the decision machine event by event."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wagma.core import averaging, groups, protocol, trees
from wagma.core.digest import digest
from wagma.core.schedule import Schedule, candidates
from wagma.errors import ProtocolError

native = pytest.importorskip("wagma._native")


@pytest.mark.slow
def test_groups() -> None:
    rng = random.Random(1)
    for world_size in range(1, 65):
        for group_size in range(1, world_size + 1):
            for iteration in (0, 1, rng.randrange(2, 100), rng.randrange(10**9)):
                for rank in range(world_size):
                    arguments = (world_size, group_size, iteration, rank)
                    assert native.group_of(*arguments) == groups.group_of(*arguments), arguments


def test_groups_of_large_worlds() -> None:
    rng = random.Random(2)
    for _ in range(200):
        world_size = rng.choice([rng.randrange(65, 5000), 1 << rng.randrange(7, 13)])
        group_size = rng.choice([rng.randrange(1, world_size + 1), 1 << rng.randrange(7), groups.sqrt_group_size(world_size)])
        arguments = (world_size, group_size, rng.randrange(10**6), rng.randrange(world_size))
        assert native.group_of(*arguments) == groups.group_of(*arguments), arguments


def test_trees() -> None:
    for leaves in range(1, 131):
        assert native.association(leaves) == trees.association(leaves)
    for world_size in range(1, 131):
        assert native.dimensions(world_size) == protocol.dimensions(world_size)
        for rank in (0, world_size // 2, world_size - 1):
            for dimension in range(protocol.dimensions(world_size)):
                place = (world_size, rank, dimension)
                assert native.neighbour(*place) == protocol.neighbour(*place)


def test_digest() -> None:
    raw = np.random.default_rng(3).integers(0, 256, 1 << 20, np.uint8)
    for size in (*range(101), 4096, raw.size - 3, raw.size):
        assert native.digest(raw[:size]) == digest(raw[:size])
    model = np.linspace(-1, 1, 3_000_001, dtype=np.float32)  # more than one chunk of the Python digest
    assert native.digest(model) == digest(model)
    with pytest.raises(ValueError, match="contiguous"):
        native.digest(model[::2])


def crafted(rng: np.random.Generator, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Values whose sums round differently in almost every other order; denormals and signed zeros among them."""
    values = (rng.standard_normal(count) * 2.0 ** rng.integers(-9, 9, count)).astype(dtype)
    values[rng.integers(0, count, count // 16)] = np.finfo(np.dtype(dtype)).smallest_subnormal
    values[rng.integers(0, count, count // 32)] = -0.0
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [37, 1024, 5000])
def test_sums(dtype: npt.DTypeLike, count: int) -> None:
    rng = np.random.default_rng(4)
    for leaves in (*range(1, 20), 31, 33, 64, 67):
        contributions = [crafted(rng, count, dtype) for _ in range(leaves)]
        expected = trees.tree_sum(contributions)
        assert native.tree_sum(contributions).tobytes() == expected.tobytes(), leaves
        in_turn = sum(contributions[1:], contributions[0])
        if leaves > 3:  # for up to three leaves there is one order only
            assert in_turn.tobytes() != expected.tobytes(), "the values expose no order"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_denormals_are_kept(dtype: npt.DTypeLike) -> None:
    smallest = np.full(9, np.finfo(np.dtype(dtype)).smallest_subnormal, dtype)
    assert native.tree_sum([smallest] * 6).tobytes() == trees.tree_sum([smallest] * 6).tobytes()
    assert (native.tree_sum([smallest] * 6) > 0).all()
    assert (native.merge(6 * smallest, smallest, 0, 2) == 3 * smallest).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 49, 65])
def test_merges(dtype: npt.DTypeLike, divisor: int) -> None:
    rng = np.random.default_rng(5)
    total, own = crafted(rng, 3000, dtype), crafted(rng, 3000, dtype)
    for own_weight in (0, 1):
        expected = averaging.merge(total, own, own_weight, divisor)
        assert native.merge(total, own, own_weight, divisor).tobytes() == expected.tobytes()
    own[:] = np.inf
    assert native.merge(total, own, 0, divisor).tobytes() == averaging.merge(total, own, 0, divisor).tobytes()
    assert native.merge(None, own, 1, 1).tobytes() == own.tobytes()
    for own_weight in (0, 1):
        assert (
            native.merge(None, own, own_weight, divisor).tobytes() == averaging.merge(None, own, own_weight, divisor).tobytes()
        )


def test_bad_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="equal in size and dtype"):
        native.tree_sum([np.zeros(3), np.zeros(4)])
    with pytest.raises(ValueError, match="equal in size and dtype"):
        native.merge(np.zeros(3, np.float32), np.zeros(3), 1, 2)
    with pytest.raises(TypeError, match="float32, float64, float16"):
        native.tree_sum([np.zeros(3, np.int32)])


def twin(rank: int, schedule: Schedule, merge_once: bool = False, resident: bool = False) -> Any:
    """The native machine of the same schedule."""
    return native.Machine(rank, **dataclasses.asdict(schedule), merge_once=merge_once, resident=resident)


class Pair:
    """Both machines, given the same events; they have to answer alike, the text of refusals included."""

    def __init__(self, rank: int, schedule: Schedule, merge_once: bool, resident: bool = False) -> None:
        self.python = protocol.Machine(rank, schedule, merge_once, resident)
        self.native = twin(rank, schedule, merge_once, resident)
        assert self.native.buffers == self.python.buffers
        self.refused = self.accepted = 0

    def apply(self, event: str, *arguments: int) -> None:
        before = self.python.state
        answers = [self.answer(machine, event, arguments) for machine in (self.python, self.native)]
        assert answers[0] == answers[1], (event, arguments, before)
        assert self.native.state == self.python.state, (event, arguments, before)
        assert self.native.done == self.python.done
        if isinstance(answers[0], str):
            self.refused += 1
            assert self.python.state == before
        else:
            self.accepted += 1

    @staticmethod
    def answer(machine: Any, event: str, arguments: tuple[int, ...]) -> list[tuple[Any, ...]] | str:
        try:
            outputs = getattr(machine, event)(*arguments)
        except ProtocolError as error:
            return str(error)
        if isinstance(machine, protocol.Machine):
            return [(type(output).__name__.lower(), *output) for output in outputs]
        return list(outputs)


def drive(pair: Pair, rng: random.Random, steps: int) -> None:
    """Mostly what could happen next, sometimes anything at all."""
    machine = pair.python
    for _ in range(steps):
        anything = rng.random() < 0.15
        near = machine.next_version + rng.randrange(-2, 3)
        dimension = rng.randrange(-1, len(machine.forwarded) + 1) if anything else rng.randrange(max(1, len(machine.forwarded)))
        version = near if anything else machine.schedule.next(machine.arrived)
        match rng.choices(range(9), [20, 25, 20, 20, 15, 0.5, 4, 15, 0.5])[0]:
            case 0:
                pair.apply("arrive", version)
            case 1:
                pair.apply("activation", max(near, 0), dimension)
            case 2:
                pair.apply("exec_done", near if anything else machine.executing)
            case 3:
                pair.apply("read_done")
            case 4:
                pair.apply("merge_done")
            case 5:
                pair.apply("close")
            case 6:
                pair.apply("finish", max(machine.activated, near))
            case 7:
                pair.apply("retract")
            case 8:
                pair.apply("solo", max(near, 0), dimension)


@pytest.mark.slow
def test_machines_answer_alike() -> None:
    rng = random.Random(6)
    refused, accepted, finished = Counter[str](), Counter[str](), Counter[str]()
    for _ in range(2000):
        world_size = rng.randrange(1, 20)
        sync_period = rng.randrange(6)
        grouped = sync_period == 0 or rng.random() < 0.8
        eager = grouped and rng.random() < 0.5
        schedule = Schedule(
            world_size, rng.randrange(1, world_size + 1), sync_period, grouped, rng.random() < 0.2,
            rng.randrange(world_size + 1), rng.randrange(1 << 63), eager, rng.choice([0, rng.randrange(30)]),
        )  # fmt: skip
        mode = "accumulate" if eager else rng.choice(["tensor", "resident"])
        pair = Pair(rng.randrange(world_size), schedule, rng.random() < 0.5, mode == "resident")
        drive(pair, rng, 250)
        refused[mode] += pair.refused
        accepted[mode] += pair.accepted
        finished[mode] += pair.python.done
    for mode in ("accumulate", "tensor", "resident"):
        assert refused[mode] > 10_000
        assert accepted[mode] > 30_000
        assert finished[mode] > 20


def test_a_resident_model_is_refused_where_gradients_accumulate() -> None:
    schedule = Schedule(4, 4, 3, accumulate=True)
    with pytest.raises(ValueError, match=r"^rank 2: resident = True: must be False where"):
        protocol.Machine(2, schedule, resident=True)
    with pytest.raises(ValueError, match=r"^rank 2: resident = True: must be False where"):
        twin(2, schedule, resident=True)


def test_candidates() -> None:
    rng = random.Random(8)
    for _ in range(2000):
        world_size = rng.choice([rng.randrange(1, 9), rng.randrange(1, 300)])
        arguments = (world_size, rng.randrange(world_size + 1), rng.randrange(1 << 63), rng.randrange(10**6))
        assert native.candidates(*arguments) == sorted(candidates(*arguments)), arguments
    assert native.candidates(1 << 30, 2, 5, 7) == sorted(candidates(1 << 30, 2, 5, 7))


def test_restored_machines_are_equal() -> None:
    rng = random.Random(7)
    pair = Pair(2, Schedule(7, 3, 4), merge_once=True)
    drive(pair, rng, 60)
    fresh = twin(2, Schedule(7, 3, 4), merge_once=True)
    fresh.restore(pair.python.state)
    assert fresh.state == pair.native.state
    with pytest.raises(ValueError, match="integers"):
        fresh.restore((1, 2, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"world_size": 0},
        {"group_size": 0},
        {"group_size": 5},
        {"sync_period": -1},
        {"grouped": False},
        {"initiators": -1},
        {"initiators": 5},
        {"seed": -1},
        {"begin": -1},
        {"grouped": False, "sync_period": 2, "accumulate": True},
    ],
    ids=str,
)
def test_bad_schedules_are_refused_alike(wrong: dict[str, int]) -> None:
    settings = {"world_size": 4, "group_size": 2, "sync_period": 0, **wrong}
    with pytest.raises(ValueError, match="must be") as python:
        Schedule(**settings)
    with pytest.raises(ValueError, match="must be") as kernel:
        native.Machine(0, **settings)
    assert str(kernel.value) == str(python.value)
