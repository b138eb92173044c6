"""A seed of `wagma fuzz` in the Python machines: the run that the C++ machines made, event by event.

What the simulator has no settings for is in these runs, too: uneven ends, pauses, models in the buffers, any order of events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wagma.core.outputs import Complete, Forward, Output, Retracted, Solo, Start
from wagma.core.protocol import Machine
from wagma.core.schedule import Schedule
from wagma.errors import ProtocolError
from wagma.proof import native_proof

#: In the order of C++'s variant Output, whose index a log gives.
OUTPUTS: tuple[type[Output], ...] = (Forward, Start, Complete, Retracted, Solo)
#: What events are given, of a log's version and dimension.
ARGUMENTS = {"activation": 2, "solo": 2, "read_done": 0, "merge_done": 0, "retract": 0, "close": 0}


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a Python machine first does otherwise. events: of the run until then; trace: those of that rank, which are all that matter."""

    message: str
    case: str
    events: int
    trace: tuple[str, ...]


def difference(seed: int) -> Difference | None:
    """Give the Python machines of all ranks what the C++ machines were given; None if they answer the same and end in the same states."""
    run = native_proof().log(seed)
    schedule = Schedule(**run["schedule"])
    machines = [Machine(rank, schedule, run["merge_once"], run["resident"]) for rank in range(schedule.world_size)]
    for number, (_, rank, kind, version, dimension, *outputs) in enumerate(run["events"]):
        event = run["kinds"][kind]
        arguments = (version, dimension)[: ARGUMENTS.get(event, 1)]
        answer: list[int] | str
        try:
            answer = _words(getattr(machines[rank], event)(*arguments))
        except ProtocolError as error:
            answer = str(error)
        except Exception as error:  # a KeyError, say, is a difference as well, and has to come with its seed
            answer = f"{type(error).__name__}: {error}"
        if answer != outputs:
            return _found(
                run, rank, number + 1, f"{event}{arguments}: the Python machine answers {answer}, the C++ machine {outputs}"
            )
    begin = 0
    for machine in machines:
        state = list(machine.state)
        theirs = run["states"][begin : begin + len(state)]
        begin += len(state)
        if theirs != state:
            return _found(run, machine.rank, len(run["events"]), f"ends in state {state}, the C++ machine in {theirs}")
    return None


def _found(run: dict[str, Any], rank: int, events: int, what: str) -> Difference:
    of_rank = (line for event, line in zip(run["events"][:events], run["lines"], strict=False) if event[1] == rank)
    return Difference(f"twins: rank {rank}: {what}", run["case"], events, tuple(of_rank))


def _words(outputs: Sequence[Output]) -> list[int]:
    return [int(word) for output in outputs for word in (OUTPUTS.index(type(output)), *output)]
