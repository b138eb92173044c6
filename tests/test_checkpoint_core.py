"""A run may begin anywhere: a machine that begins at iteration k decides what one that has gone through all before decides from there."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from wagma.core.protocol import NONE, Complete, Machine, Retracted, Start
from wagma.core.schedule import Schedule
from wagma.errors import ProtocolError


def test_the_first_version() -> None:
    assert [Schedule(4, 2, 5, begin=begin).first for begin in (0, 1, 5, 7)] == [0, 1, 5, 7]
    assert [Schedule(4, 1, 5, grouped=False, begin=begin).first for begin in (0, 4, 5, 7, 10)] == [4, 4, 9, 9, 14]
    assert Schedule(4, 2, 5, begin=5).group(1, 6) == Schedule(4, 2, 5).group(1, 6)  # what a version is does not change
    with pytest.raises(ValueError, match=r"^begin = -1: must be at least 0$"):
        Schedule(4, 2, 5, begin=-1)


class Watched:
    """A machine and what its buffers hold; answers say contents in place of buffers, whose numbers mean nothing to anybody else."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.contents: dict[int, Any] = {machine.published: ("initial", machine.stamp)}

    def apply(self, event: str, *arguments: int) -> list[Any] | str:
        machine, live = self.machine, self.machine.live
        try:
            outputs = getattr(machine, event)(*arguments)
        except ProtocolError as error:
            return str(error)
        if event == "arrive":
            self.contents[live] = ("arrived", *arguments)
        elif event == "close" and machine.schedule.accumulate:
            self.contents[live] = "the model with which it closed"
        answers: list[Any] = []
        for output in outputs:
            match output:
                case Start(version, buffer, target, stamp, oldest):
                    answers.append(("start", version, None if buffer == NONE else self.contents.get(buffer), stamp, oldest))
                    self.contents[target] = ("sum", version)
                case Complete(version, fresh, merged, buffer):
                    answers.append(("complete", version, fresh, merged, None if buffer == NONE else self.contents.get(buffer)))
                case Retracted(buffer, stamp, oldest):
                    answers.append(("retracted", self.contents.get(buffer), stamp, oldest))
                case _:
                    answers.append(tuple(output))
        return answers


def through(machine: Machine, iterations: int) -> Watched:
    """Gone through all these iterations, the last of which is a sync, with everything done that was to do."""
    watched = Watched(machine)
    for version in range(iterations):
        if machine.schedule.accumulate:
            watched.apply("retract")
            if machine.merging != NONE:
                watched.apply("merge_done")
        watched.apply("arrive", version)
        if machine.waiting != NONE and version > machine.activated:  # no candidate
            watched.apply("activation", version, 0)
        watched.apply("exec_done", version)
        watched.apply("read_done")
        if machine.merging != NONE:
            watched.apply("merge_done")
        assert machine.arrived == version
        assert machine.waiting == NONE
    # What the sync gave is what a run that begins here is given as its model.
    watched.contents[machine.published] = ("initial", iterations - 1)
    return watched


def event_of(machine: Machine, rng: random.Random) -> tuple[str, tuple[int, ...]]:
    near = machine.next_version + rng.randrange(-1, 3)
    begin = machine.arrived + 1
    match rng.choices(range(8), [20, 25, 20, 20, 15, 1, 12, 1])[0]:
        case 0:
            return "arrive", (machine.schedule.next(machine.arrived),)
        case 1:
            return "activation", (max(near, begin), rng.randrange(len(machine.forwarded)))
        case 2:
            return "exec_done", (machine.executing,)
        case 3:
            return "read_done", ()
        case 4:
            return "merge_done", ()
        case 5:
            return "close", ()
        case 6:
            return "retract", ()
        case _:
            return "solo", (max(near, begin), rng.randrange(len(machine.forwarded)))


def test_a_machine_that_begins_there_answers_as_one_that_went_on() -> None:
    rng = random.Random(11)
    seen: Counter[str] = Counter()
    for _ in range(600):
        period = rng.randrange(1, 5)
        begin = period * rng.randrange(1, 4)
        eager = rng.random() < 0.4
        world_size = rng.randrange(2, 9)
        initiators = rng.randrange(world_size + 1)
        sizes = (world_size, world_size if eager else rng.randrange(1, world_size + 1), period)
        rank, merge_once, resident = rng.randrange(world_size), rng.random() < 0.3, not eager and rng.random() < 0.5

        def schedule(
            begin: int, sizes: tuple[int, int, int] = sizes, initiators: int = initiators, eager: bool = eager
        ) -> Schedule:
            return Schedule(*sizes, initiators=initiators, seed=5, accumulate=eager, begin=begin)

        went_on = through(Machine(rank, schedule(0), merge_once, resident), begin)
        begun = Watched(Machine(rank, schedule(begin), merge_once, resident))
        for _ in range(60):
            event, arguments = event_of(begun.machine, rng)
            answers = [one.apply(event, *arguments) for one in (went_on, begun)]
            assert answers[0] == answers[1], (schedule(begin), rank, event, arguments)
            assert (went_on.machine.arrived, went_on.machine.next_version, went_on.machine.live == NONE) == (
                begun.machine.arrived,
                begun.machine.next_version,
                begun.machine.live == NONE,
            )
            seen.update(answer[0] for answer in answers[1] if isinstance(answer[0], str) and not isinstance(answers[1], str))
    assert seen["start"] > 2000
    assert seen["complete"] > 500
    assert seen["retracted"] > 20
