"""Who exchanges with whom: what makes gossip preserve means and reach everybody, for every world size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from wagma.core.averaging import shares
from wagma.core.graphs import (
    active_partner,
    any_partner,
    exponential_offsets,
    in_neighbours,
    is_active,
    out_neighbours,
    passive_partner,
    ring,
)
from wagma.core.mixing import below
from wagma.draws import bits

SIZES = [1, 2, 3, 4, 5, 7, 8, 13, 16, 33]

Matrix = npt.NDArray[np.object_]


def push_matrix(size: int, neighbours: int, iteration: int) -> Matrix:
    """What SGP multiplies models with, exactly: column r is what becomes of rank r's."""
    matrix = np.full((size, size), Fraction(0), object)
    for rank in range(size):
        to = out_neighbours(size, neighbours, iteration, rank)
        given, kept = (Fraction(part) for part in shares(len(to)))
        matrix[rank, rank] += kept
        for receiver in to:
            matrix[receiver, rank] += given
    return matrix


@pytest.mark.parametrize("size", SIZES)
def test_ring_is_symmetric_and_connected(size: int) -> None:
    neighbours = [ring(size, rank) for rank in range(size)]
    assert {len(n) for n in neighbours} == {min(2, size - 1)}
    for rank in range(size):
        assert rank not in neighbours[rank]
        assert len(set(neighbours[rank])) == len(neighbours[rank])
        assert all(rank in neighbours[other] for other in neighbours[rank])
    reached = {0}
    for _ in range(size):
        reached |= {other for rank in reached for other in neighbours[rank]}
    assert reached == set(range(size))


def test_ring_by_hand() -> None:
    assert ring(1, 0) == ()
    assert [ring(2, rank) for rank in range(2)] == [(1,), (0,)]
    assert [ring(4, rank) for rank in range(4)] == [(3, 1), (0, 2), (1, 3), (2, 0)]


def test_exponential_offsets_by_hand() -> None:
    assert [exponential_offsets(16, 1, t) for t in range(6)] == [(1,), (2,), (4,), (8,), (1,), (2,)]
    assert [exponential_offsets(16, 2, t) for t in range(3)] == [(1, 2), (4, 8), (1, 2)]
    assert [exponential_offsets(8, 2, t) for t in range(3)] == [(1, 2), (4, 1), (2, 4)]
    assert exponential_offsets(8, 5, 9) == exponential_offsets(8, 5, 0)
    assert set(exponential_offsets(8, 5, 0)) == {1, 2, 4, 3, 5}
    assert set(exponential_offsets(5, 99, 3)) == {1, 2, 3, 4}
    assert exponential_offsets(1, 3, 0) == ()
    assert exponential_offsets(2, 3, 7) == (1,)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("neighbours", [1, 2, 3, 4, 40])
def test_exponential_graph_is_regular_and_its_directions_are_inverse(size: int, neighbours: int) -> None:
    count = min(neighbours, size - 1)
    for t in range(12):
        to = {rank: out_neighbours(size, neighbours, t, rank) for rank in range(size)}
        sources = {rank: in_neighbours(size, neighbours, t, rank) for rank in range(size)}
        for rank in range(size):
            assert len(set(to[rank])) == len(to[rank]) == len(set(sources[rank])) == len(sources[rank]) == count
            assert rank not in to[rank]
        forward = {(rank, other) for rank in to for other in to[rank]}
        assert forward == {(other, rank) for rank in sources for other in sources[rank]}


@pytest.mark.parametrize("size", SIZES[1:])
def test_exponential_graph_reaches_everybody(size: int) -> None:
    reached = {0}
    for t in range(2 * size.bit_length()):
        reached |= {other for rank in reached for other in out_neighbours(size, 1, t, rank)}
    assert reached == set(range(size))


@pytest.mark.parametrize("graph", ["ring", "out", "in"])
@pytest.mark.parametrize("size", SIZES)
def test_graphs_take_all_ranks_at_once(graph: str, size: int) -> None:
    def neighbours(rank: int | npt.NDArray[np.int64], t: int) -> tuple[int | npt.NDArray[np.int64], ...]:
        if graph == "ring":
            return ring(size, rank)
        return (out_neighbours if graph == "out" else in_neighbours)(size, 3, t, rank)

    ranks = np.arange(size, dtype=np.int64)
    for t in range(5):
        together = neighbours(ranks, t)
        assert all(isinstance(a, np.ndarray) and a.dtype == np.int64 and a.shape == (size,) for a in together)
        for rank in range(size):
            assert tuple(int(np.asarray(a)[rank]) for a in together) == neighbours(rank, t)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("neighbours", [1, 2, 4, 7])
def test_push_matrices_are_doubly_stochastic_exactly(size: int, neighbours: int) -> None:
    """On this graph ranks receive as much as they send, so that push-sum's weights stay 1: rows as well as columns add up to 1."""
    for t in range(6):
        matrix = push_matrix(size, neighbours, t)
        assert set(matrix.sum(axis=0)) == set(matrix.sum(axis=1)) == {1}


def test_one_neighbour_averages_a_power_of_two_exactly_within_log_p_iterations() -> None:
    """Why the graph is called exponential (Assran et al., appendix A): log2 P iterations give everybody the mean."""
    product = np.array(push_matrix(16, 1, 0))
    for t in range(1, 4):
        assert set(product.ravel()) != {Fraction(1, 16)}
        product = push_matrix(16, 1, t).dot(product)
    assert set(product.ravel()) == {Fraction(1, 16)}


@pytest.mark.parametrize("receivers", [*range(20), 63, 1023, 4095])
def test_shares_add_up_to_one_also_as_float32(receivers: int) -> None:
    given, kept = shares(receivers)
    assert receivers * Fraction(given) + Fraction(kept) == 1
    assert float(np.float32(given)) == given
    assert float(np.float32(kept)) == kept
    assert kept == pytest.approx(given, rel=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_active_ranks_ask_passive_ones(size: int) -> None:
    for rank in range(size):
        for t in range(30):
            partner = passive_partner(size, rank, t, seed=5)
            if size == 1:
                assert partner is None
            elif is_active(rank):
                assert partner in range(1, size, 2)
                assert not is_active(partner)
            else:
                assert active_partner(size, rank, t, seed=5) in range(0, size, 2)


@pytest.mark.parametrize("size", SIZES)
def test_any_partner_is_another_rank(size: int) -> None:
    drawn = [[any_partner(size, rank, t, seed=5) for t in range(50 * size)] for rank in range(size)]
    for rank in range(size):
        assert set(drawn[rank]) == (set(range(size)) - {rank} if size > 1 else {None})


def test_partners_are_drawn_evenly_and_from_nothing_but_their_key() -> None:
    draws = [any_partner(9, 4, t, seed=1) for t in range(8000)]
    counts = [draws.count(other) for other in range(9) if other != 4]
    # Eight bins of 1000: chi squared with 7 degrees of freedom is below 24.3 in 999 of 1000 cases.
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 24.3
    assert draws == [any_partner(9, 4, t, seed=1) for t in range(8000)]
    assert draws != [any_partner(9, 4, t, seed=2) for t in range(8000)]
    assert [passive_partner(9, 4, t, 1) for t in range(50)] != [passive_partner(9, 6, t, 1) for t in range(50)]


def test_draws_below_a_bound_are_those_of_all_ranks_at_once() -> None:
    together = below(1000, 3, "test", np.arange(50), 7)
    assert together.tolist() == [int(below(1000, 3, "test", rank, 7)) for rank in range(50)]
    assert together.min() >= 0
    assert together.max() < 1000
    assert set(below(1, 3, "test", np.arange(50), 7)) == {0}
    assert (bits(3, "test", np.arange(50), 7) >> np.uint64(32) == bits(3, "test", 11, 7) >> np.uint64(32)).sum() == 1
