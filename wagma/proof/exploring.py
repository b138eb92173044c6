"""`wagma explore`: the C++ explorer (native/tools/explorer.hpp), and the Python machine held against every edge that it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from wagma.core.protocol import Complete, Forward, Machine, Output, Retracted, Solo, Start
from wagma.core.schedule import Schedule
from wagma.errors import InputError, WagmaError
from wagma.proof import native_proof

#: By the letter with which the explorer writes them.
OUTPUTS: dict[str, Callable[..., Output]] = {"F": Forward, "S": Start, "C": Complete, "R": Retracted, "O": Solo}

#: (rank, state, event, outputs, next state): the event as the name of a method and its arguments.
Edge = tuple[int, tuple[int, ...], tuple[str, tuple[int, ...]], list[Output], tuple[int, ...]]

_ARGUMENTS = {"arrive": 1, "exec_done": 1, "finish": 1, "activation": 2, "solo": 2}


class MachinesDiffer(WagmaError):
    """The Python machine does something else than the C++ machine."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is explored: a schedule, how often each rank arrives, what its machine is told, and a planted defect ("none")."""

    schedule: Schedule
    iterations: tuple[int, ...]
    merge_once: bool = False
    resident: bool = False
    mutation: str = "none"

    def machine(self, rank: int) -> Machine:
        """A rank's machine, in Python."""
        return Machine(rank, self.schedule, self.merge_once, self.resident)

    def native(self) -> Any:
        """The same for wagma._proof. Raises MissingDependencyError."""
        schedule = self.schedule
        return native_proof().ExploreCase(
            schedule.world_size,
            schedule.group_size,
            schedule.sync_period,
            self.iterations,
            grouped=schedule.grouped,
            accumulate=schedule.accumulate,
            initiators=schedule.initiators,
            seed=schedule.seed,
            merge_once=self.merge_once,
            resident=self.resident,
            mutation=self.mutation,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a search goes: states (0: as many as there are) and bytes for them."""

    states: int = 0
    bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class Reductions:
    """What is left out. exact: nothing at all, and states are told apart by the names of their buffers."""

    symmetry: bool = True
    order: bool = True
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Exploration:
    """What a search found. edges: of single ranks' machines, a line each, as native/tools/explorer.hpp describes them.

    violation: empty if every promise holds in all that was visited; path: how it is reached. complete: False if a limit was reached,
    so that nothing is proved. quiet: states in which nothing is under way, where progress is checked. symmetries: permutations
    of the ranks, 1 if there is only the identity. not_reduced: why all was searched without reductions in the end.
    """

    states: int
    transitions: int
    quiet: int
    bytes: int
    local_states: int
    symmetries: int
    complete: bool
    not_reduced: str
    violation: str
    path: list[str]
    edges: list[str]

    @property
    def result(self) -> str:
        """ok, violation or incomplete."""
        return "violation" if self.violation else "ok" if self.complete else "incomplete"


Progress = Callable[[int, int], None]


def explore(case: Case, limits: Limits, reductions: Reductions, progress: Progress | None = None) -> Exploration:
    """Every reachable state; progress(states, how many of them are left to look at) is called now and then.

    Raises InputError for a case that is too large to begin with, MissingDependencyError without the C++ module.
    """
    return Exploration(**_search("explore", case, limits, reductions, progress))


def cross_check(case: Case, limits: Limits, reductions: Reductions, progress: Progress | None = None) -> dict[str, Any]:
    """The reduced search held against the one of all states: how many states, quiet states and ranks' edges, and the first difference.

    Raises as explore does.
    """
    return _search("cross_check", case, limits, reductions, progress)


def _search(name: str, case: Case, limits: Limits, reductions: Reductions, progress: Progress | None) -> dict[str, Any]:
    if case.mutation not in native_proof().MUTATIONS:
        raise InputError(f"--mutate {case.mutation!r}: unknown; allowed: {', '.join(native_proof().MUTATIONS)}")
    try:
        found: dict[str, Any] = getattr(native_proof(), name)(
            case.native(),
            max_states=limits.states,
            max_bytes=limits.bytes,
            symmetry=reductions.symmetry,
            order=reductions.order,
            exact=reductions.exact,
            progress=progress,
        )
    except ValueError as error:
        raise InputError(f"explore: {error}") from error
    return found


def check_python(case: Case, edges: Iterable[str], progress: Callable[[int], None] | None = None) -> int:
    """Do each edge with the Python machine, and return how many there are; progress(done). Raises MachinesDiffer at a difference."""
    machines = [case.machine(rank) for rank in range(case.schedule.world_size)]
    done = 0
    for rank, before, (name, arguments), outputs, after in map(parse_edge, edges):
        machine = machines[rank]
        machine.restore(before)
        answer = list(getattr(machine, name)(*arguments))
        if answer != outputs or machine.state != after:
            event = f"{name}{arguments}" if len(arguments) != 1 else f"{name}({arguments[0]})"
            raise MachinesDiffer(
                f"rank {rank}, {event} in state {before}: the Python machine answers {answer} and goes to {machine.state}, "
                f"the C++ machine answers {outputs} and goes to {after}"
            )
        done += 1
        if progress is not None and done % 4096 == 0:
            progress(done)
    return done


def parse_edge(line: str) -> Edge:
    """One line of Exploration.edges."""
    rank, before, event, outputs, after = line.rstrip("\n").split(";")
    return int(rank), _integers(before), _event(event), list(_outputs(outputs)), _integers(after)


@lru_cache(maxsize=1 << 15)  # a state is the beginning and the end of many edges
def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


@lru_cache(maxsize=1 << 10)
def _event(text: str) -> tuple[str, tuple[int, ...]]:
    name, *numbers = text.split()
    return name, tuple(map(int, numbers[: _ARGUMENTS.get(name, 0)]))


def _outputs(text: str) -> Iterator[Output]:
    for output in filter(None, text.split(",")):
        kind, numbers = output.split(" ", 1)
        yield OUTPUTS[kind](*_integers(numbers))
