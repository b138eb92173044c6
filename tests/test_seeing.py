"""Who was late, slow and waited for: sums that agree with the figures of results, and sentences that name the right rank."""

from __future__ import annotations

import io
import logging
import threading
from typing import Any

import numpy as np
import pytest

import wagma
from wagma.api import simulate
from wagma.cli import main
from wagma.core.schedule import Schedule
from wagma.errors import InputError
from wagma.logs import FORMAT, NAME, RankFilter, RankLogger, log_to_stderr
from wagma.progress import Progress
from wagma.results import staleness_bound, summarize
from wagma.scenario import load
from wagma.seeing import ROWS, SYNCS_KEPT, Blame, Facts, Figures, Summary, line, summary_of
from wagma.trace import Iteration

ALL = ("wagma_sgd", "eager_sgd", "allreduce_sgd", "local_sgd", "d_psgd", "sgp", "ad_psgd", "swarm_sgd", "ideal")
MS = 1_000_000


def summary(algorithm: str, **changes: Any) -> Summary:
    [trace] = simulate(load("resnet50_imagenet", {"ranks": 8, "iterations": 24, **changes}), [algorithm], traces=True)
    return summary_of(trace, staleness_bound(algorithm, trace.schedule))


@pytest.mark.parametrize("algorithm", ALL)
def test_sums_are_those_of_the_results(algorithm: str) -> None:
    [trace] = simulate(load("resnet50_imagenet", {"ranks": 8, "iterations": 24}), [algorithm], traces=True)
    found, expected = summary_of(trace, None).figures, summarize(trace)
    assert found.fresh == pytest.approx(expected.fresh_fraction)
    assert found.staleness_mean == pytest.approx(expected.staleness_mean)
    if expected.staleness_max is not None:
        assert found.of("stalest").max() == expected.staleness_max
    spent = found.of("computed_ns") + found.of("delayed_ns") + found.of("waited_ns")
    assert spent.max() == pytest.approx(expected.makespan_ns, rel=0.01)
    assert 128 * found.rate("iterations") == pytest.approx(expected.throughput, rel=0.02)


def fixed(rank: int, algorithm: str) -> Summary:
    """A run in which one rank is delayed in every iteration."""
    delay = {"kind": "fixed", "ranks": [rank], "delay_s": 0.3}
    return summary(algorithm, imbalance=[delay])


def test_the_straggler_is_named() -> None:
    late, slow, waited = fixed(5, "wagma_sgd").stragglers()
    assert late.startswith("late most: rank 5 (")
    assert slow.startswith("slowest: rank 5 (its own part of an iteration ")
    assert waited.startswith("waited for longest: rank 5 (")
    assert "the last one at 2 of 2 syncs" in waited


def test_a_synchronous_run_names_who_is_slow_and_waited_for() -> None:
    slow, waited = fixed(5, "allreduce_sgd").stragglers()
    assert slow.startswith("slowest: rank 5 (")
    assert "the last one at 24 of 24 syncs" in waited


def test_ranks_that_are_alike_are_no_stragglers() -> None:
    [text] = summary("allreduce_sgd", imbalance=[]).stragglers()
    assert text.startswith("no straggler")


def test_who_waits_least_came_last() -> None:
    """Rank 1 is the last at the first two syncs, rank 0 at the third, which rank 2, having ended, has not joined."""
    found = Blame.of([[5 * MS, 7 * MS, 0], [0, 1 * MS, 4 * MS], [3 * MS, 2 * MS]], [3, 3, 2])
    assert found.last.tolist() == [1, 2, 0]
    assert found.cost_ns.tolist() == [4.0 * MS, (5 + 3 + 6 + 1) * MS, 0.0]
    assert found.syncs == 3


def test_only_the_newest_syncs_count_where_not_all_are_remembered() -> None:
    """Ranks 0 and 1 remember the last two of four syncs; rank 2 ended after three."""
    found = Blame.of([[1 * MS, 0], [0, 2 * MS], [9 * MS, 9 * MS, 9 * MS]], [4, 4, 3])
    assert found.syncs == 2
    assert found.last.tolist() == [1, 1, 0]


def test_memory_for_syncs_is_limited() -> None:
    facts, schedule = Facts(), Schedule(2, 1, 1, grouped=False)
    many = SYNCS_KEPT + 10
    facts.add(schedule, (), (Iteration(0, t, t, 5 * t, 5 * t + t % 7, True, t) for t in range(many)), ())
    assert facts.syncs == many
    assert list(facts.sync_waits)[-1] == (many - 1) % 7
    assert len(facts.sync_waits) == SYNCS_KEPT


def figures(**columns: list[float]) -> Figures:
    ranks = len(next(iter(columns.values())))
    facts = [Facts(**{name: values[rank] for name, values in columns.items()}) for rank in range(ranks)]  # type: ignore[arg-type]
    return Figures(np.array([one.row() for one in facts]))


def test_the_line() -> None:
    earlier = figures(iterations=[10, 10], computed_ns=[1e9, 1e9], loss=[30, 30], losses=[10, 10], samples=[320, 320])
    run = figures(
        iterations=[20, 30], computed_ns=[2e9, 2e9], waited_ns=[1e9, 0], joined=[18, 27], late=[9, 0], contributions=[18, 27],
        stale=[9, 0], stalest=[2, 0], loss=[35, 40], losses=[20, 30], samples=[640, 960],
    )  # fmt: skip
    lately = run.since(earlier)
    text = "iteration 20, loss 0.5, 800 samples/s, staleness 2 / 9, fresh 80.0 %, late most: rank 0 (50.0 %)"
    assert line(20, run, lately, 9) == text
    assert line(20, run, lately, None).count("2 / unbounded") == 1
    slow = figures(iterations=[10, 10, 10], computed_ns=[1e9, 3e9, 1e9])
    assert line(10, slow, slow, 0) == "iteration 10, 23.3 iterations/s, slowest: rank 1 (3 times the median)"


def test_of_ranks_that_are_always_late_the_slowest_is_named() -> None:
    """Who comes a moment after the first one is late, too."""
    run = figures(iterations=[9, 9, 9], computed_ns=[1e9, 1e9, 3e9], joined=[9, 9, 9], late=[9, 0, 9])
    assert line(9, run, run, 0).endswith("late most: rank 2 (100.0 %)")


def test_a_rank_that_nothing_is_known_of_counts_as_the_others() -> None:
    assert figures(iterations=[10, 0], computed_ns=[1e9, 0]).rate("iterations") == 20


def test_nothing_has_happened() -> None:
    """Ranks that close before the first iteration: no division by zero, and no warning."""
    found = Summary("wagma_sgd", 9, [Facts(), Facts()])
    assert found.headline() == "wagma_sgd on 2 ranks: 0 iterations in 0 ms, 0 iterations/s"
    assert found.stragglers()[0].startswith("no straggler")
    assert line(0, found.figures, found.figures, 9) == "iteration 0, 0 iterations/s"
    assert str(Summary("ideal", 0, [Facts()]))


def test_of_many_ranks_the_slowest_are_shown() -> None:
    facts = [Facts(iterations=1, computed_ns=(1 + (rank == 77)) * MS) for rank in range(100)]
    lines = Summary("wagma_sgd", 9, facts).table().splitlines()
    assert len(lines) == 1 + ROWS
    assert any(text.split()[0] == "77" for text in lines)


def test_trace_summary_prints_it(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.jsonl")
    assert (
        main(
            [
                "simulate",
                "resnet50_imagenet",
                "-n",
                "4",
                "--iterations",
                "12",
                "--algorithm",
                "wagma_sgd",
                "--trace",
                path,
                "-q",
            ]
        )
        == 0
    )
    assert main(["trace", "summary", path, path]) == 0
    text = capsys.readouterr().out
    assert text.count("wagma_sgd on 4 ranks: 12 iterations in ") == 2
    assert text.count("late most: rank ") == 2


# -- progress where standard error is no terminal ---------------------------------------------------------------------------


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, stream = 100.0, io.StringIO()
    monkeypatch.setattr("wagma.progress.time.monotonic", lambda: now)
    with Progress("training", stream=stream, every_s=10.0) as progress:
        for done in range(1, 31):
            now += 1.0
            progress(done, 40, f"iteration {done}")
    assert stream.getvalue().splitlines() == [
        "training: 25 %, 30 s left, iteration 10",
        "training: 50 %, 20 s left, iteration 20",
        "training: 75 %, 10 s left, iteration 30",
    ]


# -- logging ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def logger() -> Any:
    """The logger as a program finds it, and afterwards as it was."""
    found = logging.getLogger(NAME)
    level, handlers, propagate = found.level, list(found.handlers), found.propagate
    yield found
    found.setLevel(level)
    found.handlers[:], found.propagate = handlers, propagate


def test_nothing_is_said_unasked(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logger.propagate = False  # pytest listens at the root
    RankLogger(3).error("not asked for")
    assert capsys.readouterr().err == ""


def test_every_line_has_the_rank(logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("PMI_RANK", raising=False)
    handler = wagma.log_to_stderr("DEBUG")
    assert wagma.log_to_stderr("INFO") is handler  # the same one, with another level
    RankLogger(3).info("here I am: %d", 1)
    RankLogger(3).debug("too fine")
    logger.warning("of no rank")
    own = threading.Thread(target=lambda: logger.warning("of a thread"), name="rank 7")
    own.start()
    own.join()
    lines = capsys.readouterr().err.splitlines()
    assert [text.split(" ", 1)[1] for text in lines] == [
        "wagma: rank 3: INFO: here I am: 1",
        "wagma: rank -: WARNING: of no rank",
        "wagma: rank 7: WARNING: of a thread",
    ]
    assert sum(isinstance(one, type(handler)) for one in logger.handlers) == 1


def test_a_programs_own_lines_have_the_rank_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "2")
    record = logging.LogRecord("mine", logging.INFO, "", 1, "hello", (), None)
    assert RankFilter().filter(record)
    assert logging.Formatter(FORMAT).format(record).endswith("wagma: rank 2: INFO: hello")


@pytest.mark.parametrize("level", ["LOUD", None, True, 1.5])
def test_levels_that_are_none_are_refused(level: Any, logger: logging.Logger) -> None:
    with pytest.raises(InputError, match="must be one of DEBUG, INFO, WARNING, ERROR, or a number"):
        log_to_stderr(level)
