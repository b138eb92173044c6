"""Which buffer has which role, and that there are never more than promised: one rule at a time; all orders are the explorer's business."""

from __future__ import annotations

import pytest

from wagma.core.protocol import NONE, Complete, Machine, Output, Start
from wagma.core.schedule import Schedule
from wagma.errors import ProtocolError

FOUR = Schedule(4, 2, 3)  # versions 0, 1, sync 2, 3, 4, sync 5
SYNCS = Schedule(2, 2, 1)


def complete(outputs: list[Output]) -> Complete:
    (found,) = (output for output in outputs if isinstance(output, Complete))
    return found


def start(outputs: list[Output]) -> Start:
    (found,) = (output for output in outputs if isinstance(output, Start))
    return found


def late_while_read(resident: bool = False) -> Machine:
    """It has published during version 0, has merged it, and peers still read what it contributed."""
    machine = Machine(1, FOUR, resident=resident)
    machine.activation(0, 0)
    machine.arrive(0)
    machine.exec_done(0)
    return machine


def test_how_many() -> None:
    assert Machine(0, FOUR).buffers == 3
    assert Machine(0, FOUR, resident=True).buffers == 4
    assert Machine(0, Schedule(4, 4, 3, accumulate=True)).buffers == 3


# -- the application's model is its own ------------------------------------------------------------------------------------


def test_there_is_no_live_buffer_while_the_application_waits_or_merges() -> None:
    machine = Machine(0, FOUR)
    machine.arrive(0)
    assert machine.live == NONE
    machine.exec_done(0)
    machine.read_done()
    assert machine.live == NONE
    machine.merge_done()
    assert machine.live not in (NONE, machine.published)


def test_an_arrival_waits_for_peers_that_still_read_two_models() -> None:
    machine = late_while_read()
    machine.merge_done()
    assert {machine.published, machine.reading, machine.result} == {0, 1, 2}
    before = machine.state
    with pytest.raises(ProtocolError, match=r"^rank 1: arrive\(1\) is not allowed: no buffer is live, peers still read$"):
        machine.arrive(1)
    assert machine.state == before
    read = machine.reading
    machine.read_done()
    assert machine.live == read
    assert start(machine.arrive(1)).buffer == read


def test_a_result_is_given_up_when_the_next_version_starts() -> None:
    machine = late_while_read()
    machine.merge_done()
    machine.read_done()
    result, live = machine.result, machine.live
    assert start(machine.activation(1, 0)).target == result
    assert (machine.result, machine.live) == (NONE, live)


def test_a_result_that_is_being_merged_is_kept() -> None:
    machine = late_while_read()
    machine.read_done()
    merging = machine.merging
    assert start(machine.activation(1, 0)).target != merging
    assert (machine.merging, machine.live) == (merging, NONE)
    machine.merge_done()
    assert machine.live == merging


def test_the_result_of_a_sync_stays_published() -> None:
    machine = Machine(0, SYNCS)
    machine.arrive(0)
    machine.exec_done(0)
    machine.read_done()
    machine.merge_done()
    published = machine.published
    assert published == machine.result
    assert start(machine.arrive(1)).target == published  # now something newer is


def test_a_closed_rank_needs_no_live_buffer() -> None:
    machine = Machine(1, FOUR)
    machine.close()
    assert machine.live == NONE
    machine.activation(0, 0)
    machine.exec_done(0)
    machine.read_done()
    assert machine.live == NONE


def test_gradients_a_rank_closes_when_it_has_a_buffer_for_its_model() -> None:
    machine = Machine(1, Schedule(2, 2, 0, accumulate=True))
    machine.activation(0, 0)
    machine.exec_done(0)
    machine.arrive(0)
    machine.merge_done()
    machine.activation(1, 0)  # it takes the gradient, and peers read it
    machine.arrive(1)
    machine.exec_done(1)
    machine.merge_done()
    assert (machine.live, len({machine.published, machine.reading, machine.result})) == (NONE, 3)
    with pytest.raises(ProtocolError, match=r"close\(1\) is not allowed: no buffer is live, peers still read"):
        machine.close()
    machine.read_done()
    live = machine.live
    machine.close()
    assert (machine.model, machine.live) == (live, NONE)


# -- the application's model lives in the buffers --------------------------------------------------------------------------


def test_resident_a_fresh_result_is_the_new_model_in_place() -> None:
    machine = Machine(0, FOUR, resident=True)
    target = start(machine.arrive(0)).target
    assert machine.live == NONE  # its model is what it has published
    assert complete(machine.exec_done(0)) == Complete(0, True, 0, target)
    assert (machine.live, machine.merging, machine.result) == (target, target, NONE)
    machine.read_done()
    assert start(machine.activation(1, 0)).target != target  # while it is merged
    machine.merge_done()
    machine.exec_done(1)
    assert machine.live == target


def test_resident_a_late_rank_averages_into_a_buffer_of_its_own() -> None:
    machine = late_while_read(resident=True)
    assert {machine.live, machine.published, machine.reading, machine.merging} == {0, 1, 2, 3}
    assert machine.result == machine.merging  # not in place, since it may be merged again
    machine.merge_done()
    live, result = machine.live, machine.result
    machine.read_done()
    assert (machine.live, machine.result) == (live, result)
    assert start(machine.arrive(1)).buffer == live


def test_resident_a_late_rank_may_arrive_while_peers_read() -> None:
    """Where the application's model is its own it would have to wait for them."""
    machine = Machine(1, FOUR, resident=True)
    machine.activation(1, 0)
    machine.exec_done(0)
    machine.read_done()
    machine.exec_done(1)  # peers read what version 1 took, to the end
    for version in (0, 1):
        found = complete(machine.arrive(version))
        assert (found.fresh, found.merged_version) == (False, 1)
        assert len({machine.live, machine.published, machine.reading, found.buffer}) == 4
        machine.merge_done()


def test_resident_the_result_of_a_sync_stays_as_it_is() -> None:
    machine = Machine(0, SYNCS, resident=True)
    machine.arrive(0)
    found = complete(machine.exec_done(0))
    assert found.buffer == machine.published == machine.result
    assert machine.live not in (NONE, found.buffer, machine.reading)


def test_resident_without_a_merge_the_model_is_a_copy_of_what_is_published() -> None:
    machine = Machine(1, FOUR, merge_once=True, resident=True)
    machine.activation(1, 0)
    for version in (0, 1):
        machine.exec_done(version)
        machine.read_done()
    assert complete(machine.arrive(0)).buffer == machine.result
    machine.merge_done()
    assert complete(machine.arrive(1)) == Complete(1, False, NONE, NONE)
    assert machine.live not in (NONE, machine.published, machine.reading)


def test_resident_a_closed_rank_keeps_its_model() -> None:
    machine = Machine(0, FOUR, resident=True)
    machine.arrive(0)
    machine.exec_done(0)
    machine.read_done()
    machine.merge_done()
    live = machine.live
    machine.close()
    for version in range(1, 6):
        assert start(machine.activation(version, 0)).target != live
        machine.exec_done(version)
        machine.read_done()
    assert machine.live == live
