"""The rules of the decision machine for gradients that accumulate and for initiators, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wagma.core.protocol import NONE, Complete, Forward, Machine, Output, Retracted, Solo, Start
from wagma.core.schedule import Schedule
from wagma.errors import ProtocolError

GRADIENTS = Schedule(2, 2, 3, accumulate=True)  # versions 0, 1, sync 2, 3, 4, sync 5
FOREVER = Schedule(2, 2, 0, accumulate=True)


def starts(outputs: list[Output]) -> list[Start]:
    return [output for output in outputs if isinstance(output, Start)]


def execute(machine: Machine, version: int) -> list[Output]:
    """The version is executed, and read where there is something to read."""
    outputs = machine.exec_done(version)
    return outputs + machine.read_done() if machine.reading != NONE else outputs


def late(machine: Machine, version: int) -> None:
    """Arrive at a version that has been executed, and merge."""
    (complete,) = machine.arrive(version)
    assert isinstance(complete, Complete)
    assert not complete.fresh
    machine.merge_done()


def candidate_of(version: int, world_size: int) -> tuple[Schedule, int]:
    """A schedule with one initiator, and who it is."""
    schedule = Schedule(world_size, world_size, 0, initiators=1, seed=4, accumulate=True)
    (candidate,) = schedule.candidates(version)
    return schedule, candidate


# -- accumulate ------------------------------------------------------------------------------------------------------------


def test_a_passive_start_before_any_arrival_contributes_nothing() -> None:
    machine = Machine(1, GRADIENTS)
    assert machine.activation(0, 0) == [Start(0, NONE, 1, NONE, NONE)]
    with pytest.raises(ProtocolError, match="no contribution is being read"):
        machine.read_done()


def test_after_a_null_contribution_the_next_version_starts_when_the_sum_is_complete() -> None:
    machine = Machine(1, GRADIENTS)
    machine.activation(1, 0)
    assert [s.version for s in starts(machine.exec_done(0))] == [1]


def test_a_gradient_is_taken_at_the_start() -> None:
    machine = Machine(0, GRADIENTS)
    assert machine.arrive(0) == [Forward(0, 0, 1), Start(0, 0, 1, 0, 0)]
    assert machine.published == NONE
    execute(machine, 0)
    machine.merge_done()
    assert starts(machine.activation(1, 0)) == [Start(1, NONE, machine.target, NONE, NONE)]


def test_a_late_gradient_goes_into_the_next_version() -> None:
    machine = Machine(1, FOREVER)
    machine.activation(0, 0)
    execute(machine, 0)
    late(machine, 0)
    buffer = machine.published
    assert starts(machine.activation(1, 0)) == [Start(1, buffer, machine.target, 0, 0)]


def test_late_gradients_are_summed_by_the_application() -> None:
    machine = Machine(1, FOREVER)
    machine.activation(1, 0)
    execute(machine, 0)
    execute(machine, 1)
    late(machine, 0)
    published = machine.published
    assert machine.retract() == [Retracted(published, 0, 0)]
    machine.merge_done()
    late(machine, 1)
    assert starts(machine.activation(2, 0)) == [Start(2, machine.reading, machine.target, 1, 0)]


def test_a_version_that_starts_while_gradients_are_added_gets_nothing_and_loses_nothing() -> None:
    machine = Machine(1, FOREVER)
    machine.activation(0, 0)
    execute(machine, 0)
    late(machine, 0)
    machine.retract()
    assert starts(machine.activation(1, 0)) == [Start(1, NONE, machine.target, NONE, NONE)]
    machine.merge_done()
    execute(machine, 1)
    late(machine, 1)
    (start,) = starts(machine.activation(2, 0))
    assert (start.oldest, start.stamp) == (0, 1)


def test_there_is_nothing_to_take_back_once_a_version_has_taken_it() -> None:
    machine = Machine(1, FOREVER)
    assert machine.retract() == []
    machine.activation(0, 0)
    execute(machine, 0)
    late(machine, 0)
    machine.activation(1, 0)
    before = machine.state
    assert machine.retract() == []
    assert machine.state == before


def test_a_sync_carries_a_model_and_leaves_nothing_published() -> None:
    machine = Machine(0, GRADIENTS)
    machine.activation(1, 0)
    execute(machine, 0)
    execute(machine, 1)
    late(machine, 0)
    machine.retract()
    machine.merge_done()
    late(machine, 1)
    machine.retract()  # the application applies both gradients by itself ...
    machine.merge_done()
    (start,) = starts(machine.arrive(2))  # ... and arrives with its model
    assert (start.stamp, start.oldest) == (2, 2)
    execute(machine, 2)
    machine.merge_done()
    assert (machine.published, machine.oldest) == (NONE, NONE)
    assert starts(machine.activation(3, 0)) == [Start(3, NONE, machine.target, NONE, NONE)]


def test_a_closed_rank_contributes_its_last_gradient_once_and_its_model_to_syncs() -> None:
    machine = Machine(1, GRADIENTS)
    machine.activation(0, 0)
    execute(machine, 0)
    late(machine, 0)
    gradient, live = machine.published, machine.live
    machine.close()
    assert (machine.model, machine.live) == (live, NONE)
    machine.activation(5, 0)
    assert (machine.executing, machine.reading) == (1, gradient)
    assert starts(execute(machine, 1)) == [Start(2, live, machine.target, 2, 2)]  # the sync: its model
    (start,) = starts(execute(machine, 2))
    assert (start.version, start.buffer) == (3, NONE)  # nothing is left
    mean = machine.model
    assert mean != live
    execute(machine, 3)
    (start,) = starts(execute(machine, 4))
    assert (start.version, start.buffer) == (5, mean)  # the result of the sync before


def test_a_gradient_from_before_a_sync_that_its_rank_missed_comes_after_it() -> None:
    machine = Machine(1, GRADIENTS)
    machine.activation(1, 0)
    execute(machine, 0)
    execute(machine, 1)
    late(machine, 0)
    machine.close()
    machine.activation(3, 0)
    assert machine.executing == 2
    (start,) = starts(execute(machine, 2))
    assert (start.version, start.oldest, start.stamp) == (3, 0, 0)


def retracting(machine: Machine) -> None:
    machine.activation(0, 0)
    execute(machine, 0)
    late(machine, 0)
    machine.retract()


def undelivered(machine: Machine) -> None:
    machine.activation(0, 0)
    execute(machine, 0)
    late(machine, 0)


@pytest.mark.parametrize(
    ("prepare", "event", "why"),
    [
        (undelivered, lambda m: m.arrive(1), "the gradient of version 0 has to be retracted first"),
        (retracting, lambda m: m.arrive(1), "still being merged"),
        (retracting, lambda m: m.retract(), "still being merged"),
        (retracting, lambda m: m.close(), "still being merged"),
        (lambda m: m.arrive(0), lambda m: m.retract(), "still waits in version 0"),
        (lambda m: m.close(), lambda m: m.retract(), "the rank has closed"),
        (lambda m: None, lambda m: m.solo(0, 1), "dimension 1 is not below 1"),
    ],
)
def test_rejected_events_leave_the_state(
    prepare: Callable[[Machine], object], event: Callable[[Machine], object], why: str
) -> None:
    machine = Machine(1, FOREVER)
    prepare(machine)
    before = machine.state
    with pytest.raises(ProtocolError, match=why):
        event(machine)
    assert machine.state == before


def test_models_cannot_be_retracted() -> None:
    with pytest.raises(ProtocolError, match="do not accumulate"):
        Machine(0, Schedule(2, 2, 3)).retract()


# -- initiators ------------------------------------------------------------------------------------------------------------


def test_only_a_candidate_activates() -> None:
    schedule, candidate = candidate_of(0, 2)
    other = Machine(1 - candidate, schedule)
    assert other.arrive(0) == []  # it waits ...
    (start,) = starts(other.activation(0, 0))  # ... until an activation comes, and is fresh then
    assert (start.stamp, start.buffer) == (0, other.reading)
    assert [o.fresh for o in other.exec_done(0) if isinstance(o, Complete)] == [True]
    assert len(Machine(candidate, schedule).arrive(0)) == 2


def test_everybody_activates_a_sync() -> None:
    schedule = Schedule(4, 4, 1, initiators=1, accumulate=True)
    for rank in range(4):
        assert len(starts(Machine(rank, schedule).arrive(0))) == 1


def test_a_closing_rank_lets_everybody_activate_what_it_does_not_arrive_at() -> None:
    schedule, candidate = candidate_of(0, 8)
    machine = Machine(candidate, schedule)
    assert machine.close() == [Solo(0, k, candidate ^ (1 << k)) for k in range(3)]
    waiting = Machine(candidate ^ 2, schedule)
    assert waiting.arrive(0) == []
    outputs = waiting.solo(0, 1)
    assert outputs[:1] == [Solo(0, 2, waiting.rank ^ 4)]
    assert outputs[1:4] == [Forward(0, k, waiting.rank ^ (1 << k)) for k in range(3)]
    assert len(starts(outputs)) == 1


def test_versions_before_the_close_keep_their_candidates() -> None:
    schedule, candidate = candidate_of(0, 2)
    waiting = Machine(1 - candidate, schedule)
    waiting.arrive(0)
    waiting.solo(1, 0)
    assert waiting.activated == NONE
    assert len(starts(waiting.solo(0, 0))) == 1


def test_a_solo_is_told_once_per_dimension_unless_it_reaches_further_back() -> None:
    machine = Machine(0, Schedule(4, 4, 0, initiators=1, accumulate=True))
    assert machine.solo(3, 0) == [Solo(3, 1, 2)]
    assert machine.solo(4, 0) == []
    assert machine.solo(2, 0) == [Solo(2, 1, 2)]
    assert machine.close() == [Solo(0, 0, 1), Solo(0, 1, 2)]


def test_with_m_equal_to_p_nobody_is_told_anything() -> None:
    for initiators in (0, 4):
        assert Machine(0, Schedule(4, 4, 0, initiators=initiators, accumulate=True)).close() == []
