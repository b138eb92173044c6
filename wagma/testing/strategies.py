"""Hypothesis strategies: adversarial lateness, whole cases for `run_simulated` and `run_real`, traces. They alone need hypothesis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wagma.core.schedule import NEVER
from wagma.testing.runs import Case
from wagma.testing.synthetic import synthetic_trace
from wagma.trace import Trace

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

#: Ticks that a simulated message takes: next to nothing, about a fast gradient, more than most.
HOPS = (0.1, 1.0, 7.0)


def lateness(ranks: int, iterations: int, longest: int = 400) -> SearchStrategy[list[list[int]]]:
    """[rank][iteration]: ticks of a `Case`, or ns of `synthetic_trace`; a failure shrinks to the fewest and shortest delays."""
    from hypothesis import strategies as st

    row = st.lists(st.integers(0, longest), min_size=iterations, max_size=iterations)
    return st.lists(row, min_size=ranks, max_size=ranks)


def cases(
    max_ranks: int = 6, max_iterations: int = 16, longest: int = 60, syncs: bool = False, merge_once: bool | None = None
) -> SearchStrategy[Case]:
    """Cases of every shape: ranks, group size, sync period, seed, lateness, hops.

    longest: ticks of a gradient. syncs: whether there always are some. merge_once: None is either.
    """
    from hypothesis import strategies as st

    def build(ranks: int, iterations: int) -> SearchStrategy[Case]:
        periods: SearchStrategy[int | str] = st.integers(1, 7)
        return st.builds(
            Case,
            ranks=st.just(ranks),
            iterations=st.just(iterations),
            group_size=st.integers(1, ranks),
            sync_period=periods if syncs else st.one_of(periods, st.just("never")),
            merge_once=st.booleans() if merge_once is None else st.just(merge_once),
            seed=st.integers(0, 2**32),
            lateness=lateness(ranks, iterations, longest),
            hop=st.sampled_from(HOPS),
        )

    return st.tuples(st.integers(1, max_ranks), st.integers(1, max_iterations)).flatmap(lambda shape: build(*shape))


def traces(max_ranks: int = 9, max_iterations: int = 24) -> SearchStrategy[Trace]:
    """Synthetic traces of every shape: any group size, sync period, pace, seed, early closing and merge_once."""
    from hypothesis import strategies as st

    def build(ranks: int) -> SearchStrategy[Trace]:
        return st.builds(
            synthetic_trace,
            st.just(ranks),
            group_size=st.integers(1, ranks),
            sync_period=st.integers(NEVER, 7),
            iterations=st.integers(1, max_iterations),
            seed=st.integers(0, 2**32),
            merge_once=st.booleans(),
            close_early=st.booleans(),
        )

    return st.integers(1, max_ranks).flatmap(build)
