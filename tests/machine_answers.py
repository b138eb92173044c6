"""What the Python machine and schedule answer to the questions of native/tests/machine_answers.cpp, line by line in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

from wagma.core import protocol
from wagma.core.groups import group_of, is_power_of_two
from wagma.core.protocol import NONE, Complete, Forward, Output, Retracted, Solo, Start
from wagma.core.schedule import Schedule, candidates
from wagma.core.trees import association
from wagma.errors import ProtocolError

LETTERS: dict[type, str] = {Forward: "F", Start: "S", Complete: "C", Retracted: "R", Solo: "O"}


def join(numbers: Iterable[Any]) -> str:
    return " ".join([str(int(number)) for number in numbers])


def text_of(output: Output) -> str:
    return f"{LETTERS[type(output)]} {join(output)}"


def schedule_of(numbers: list[int]) -> Schedule:
    P, S, T, grouped, fixed, initiators, seed, accumulate, begin = numbers
    return Schedule(P, S, T, bool(grouped), bool(fixed), initiators, seed, bool(accumulate), begin)


def about(machine: Any) -> str:
    m = machine
    awaits = (
        m.live == m.waiting == m.merging == NONE and not m.closed
    )  # Machine.awaits_readers of the C++ machine, in other words
    rank = (m.rank, m.schedule.world_size, m.resident, m.buffers)
    fields = (
        m.next_version,
        m.executing,
        m.activated,
        m.arrived,
        m.waiting,
        m.closed,
        m.fresh,
        m.live,
        m.published,
        m.model,
        m.merging,
    )
    return f"{join(m.state)} rank {join(rank)} fields {join(fields)} done {join((m.done, awaits))}"


def events(dimensions: int, versions: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("read_done", "merge_done", "retract", "close"):
        yield name, ()
    for version in range(-1, versions + 1):
        for name in ("arrive", "exec_done", "finish"):
            yield name, (version,)
    for dimension in range(-1, dimensions + 1):
        for version in range(versions + 1):
            for name in ("activation", "solo"):
                yield name, (version, dimension)


class Asker:
    """Answers of `module`, which is wagma.core.protocol or a mutant of it."""

    def __init__(self, module: ModuleType | SimpleNamespace = protocol) -> None:
        self.module = module
        self.machines: list[tuple[Any, int]] = []  # and the versions that each is asked about
        self.schedule: list[int] = []
        self.merge_once = self.resident = False
        self.versions = 0

    def answers(self, questions: Iterable[str]) -> Iterator[str]:
        for line in questions:
            what, *rest = line.split()
            yield from getattr(self, f"of_{what}")(list(map(int, rest)))

    def of_machine(self, numbers: list[int]) -> Iterator[str]:
        *self.schedule, merge_once, resident, self.versions = numbers
        self.merge_once, self.resident = bool(merge_once), bool(resident)
        for rank in range(max(1, self.schedule[0])):
            yield self.made(rank)

    def of_rank(self, numbers: list[int]) -> Iterator[str]:
        rank, world_size = numbers[0], self.schedule[0]
        if 0 <= rank < world_size:
            yield self.made(rank)
        else:  # the Python machine leaves it to those who make it
            yield f"machine {rank} refused: rank = {rank}: must be from 0 to {world_size - 1}"

    def made(self, rank: int) -> str:
        try:
            machine = self.module.Machine(rank, schedule_of(self.schedule), self.merge_once, self.resident)
        except ValueError as error:
            return f"machine {rank} refused: {error}"
        self.machines.append((machine, self.versions))
        return f"machine {rank} -> {about(machine)}"

    def of_state(self, numbers: list[int]) -> Iterator[str]:
        machine, versions = self.machines[numbers[0]]
        state = tuple(numbers[1:])
        size = len(machine.state)
        if len(state) == size:
            machine.restore(state)
            yield f"state -> {about(machine)}"
        else:  # the Python machine leaves it to those who have the state
            yield f"state refused: state of {len(state)} integers: must be {size}"
        dimensions = (size - 20) // 2
        for name, arguments in events(dimensions, versions):
            question = f"{name} {join(arguments)}"
            if len(state) != size:
                yield f"{question} refused: state of {len(state)} integers: must be {size}"
                continue
            machine.restore(state)
            known = name == "activation" and 0 <= arguments[1] < dimensions and machine.knows(*arguments)
            try:
                outputs = getattr(machine, name)(*arguments)
            except ProtocolError as error:
                change = "" if machine.state == state else ", but it has changed"
                yield f"{question} -> refused{change}: {error}"
                continue
            after = machine.state
            if name == "activation" and known != (not outputs and after == state):
                yield f"{question}: knows() is wrong"
                continue
            yield f"{question} -> {''.join(text_of(output) + ', ' for output in outputs)}then {join(after)}"

    def of_schedule(self, numbers: list[int]) -> Iterator[str]:
        *settings, versions = numbers
        try:
            s = schedule_of(settings)
        except ValueError as error:
            yield f"schedule refused: {error}"
            yield from (f"version {version} refused: {error}" for version in range(versions + 1))
            return
        yield f"schedule -> {join((s.first, s.selective))}"
        for version in range(versions + 1):
            text = join((s.next(version - 1), s.next(version), s.previous(version), s.is_sync(version)))
            text += "".join(f" c{rank}" for rank in sorted(s.candidates(version)))
            for rank in range(s.world_size):
                text += " may: " if s.may_activate(rank, version) else " may not: "
                text += join(s.group(rank, version))
            yield f"version {version} -> {text}"

    def of_drawn(self, numbers: list[int]) -> Iterator[str]:
        yield f"drawn -> {''.join(f' {rank}' for rank in sorted(candidates(*numbers)))}"

    def of_shape(self, numbers: list[int]) -> Iterator[str]:
        P = numbers[0]
        dimensions, neighbour = self.module.dimensions, self.module.neighbour
        text = join((is_power_of_two(P),))
        if P >= 1:
            text += f" dimensions {dimensions(P)}"
            text += "".join(f" {neighbour(P, rank, dimension)}" for rank in range(P) for dimension in range(dimensions(P)))
            text += f" {group_of(P, P, 3, 0)[-1]}"
            text += "".join(f", {into} {source}" for into, source in association(P))
        yield f"shape {P} -> {text}"
