"""What is seen of a training loop, with ranks as threads and over MPI: line, summary, TensorBoard, trace, log; and what is refused."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mpi_launch import mpiexec

torch = pytest.importorskip("torch")
pytest.importorskip("wagma._native")

import wagma  # noqa: E402  after the checks that they can be imported
from wagma.errors import InputError, MissingDependencyError, PeerFailed  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402
from wagma.real.seeing import recorder  # noqa: E402
from wagma.real.wrapper.distribute import distribute  # noqa: E402
from wagma.results import summarize  # noqa: E402
from wagma.seeing import Summary, summary_of  # noqa: E402
from wagma.trace import load_trace  # noqa: E402
from wagma.validate import validate  # noqa: E402

SLOW = 2  # the rank that sleeps
NAP_S = 0.02


class Ahead:
    """Has one rank nap when all others have come for a step: on a machine that is busy, too, it is the one that they wait for."""

    def __init__(self) -> None:
        self._came: Counter[int] = Counter()
        self._changed = threading.Condition()

    def come(self, step: int) -> None:
        with self._changed:
            self._came[step] += 1
            self._changed.notify_all()

    def await_others(self, step: int, others: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._came[step] == others, 20)


def loop(
    comm: Any,
    iterations: int = 24,
    algorithm: str = "wagma_sgd",
    nap_s: float = NAP_S,
    ahead: Ahead | None = None,
    **options: Any,
) -> Any:
    """A plain loop; one rank takes four times as long as the others. Its loss is its rank plus 1."""
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with distribute(optimizer, model, algorithm, comm=comm, sync_period=6, **options) as wrapped:
        for t in range(iterations):
            wrapped.zero_grad()
            model(torch.ones(2, 5)).square().mean().backward()
            if ahead is not None and comm.rank == SLOW:
                ahead.await_others(t, comm.size - 1)
            time.sleep(nap_s if comm.rank == SLOW else nap_s / 4)
            if ahead is not None and comm.rank != SLOW:
                ahead.come(t)
            wrapped.log(loss=torch.tensor(comm.rank + 1.0), samples=4)
            wrapped.step()
    return wrapped


def test_line_summary_tensorboard_and_trace_of_one_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it at once, as `distribute` alone gives it; and the summary is what the trace says."""
    path = tmp_path / "own.jsonl"
    options = {"progress": True, "report_every": 0.1, "tensorboard": tmp_path / "board", "trace": path}
    ahead = Ahead()
    found = run_local(4, lambda comm: loop(comm, ahead=ahead, **options).summary)
    assert found[1:] == [None] * 3
    summary = found[0]
    assert isinstance(summary, Summary)
    lines = capsys.readouterr().err.splitlines()
    progress = [text for text in lines if text.startswith("wagma: iteration ")]
    assert len(progress) >= 2
    form = (
        r"wagma: iteration \d+, loss [1-4](\.\d+)?, [\d.,]+ samples/s, staleness [0-5] / 5(, fresh [\d.]+ %)?"
        r"(, (late most|slowest): .*)?"
    )
    assert all(re.fullmatch(form, text) for text in progress)
    assert any(f"late most: rank {SLOW} (" in text for text in progress)
    assert lines[-3:] == [f"wagma: {text}" for text in summary.stragglers()]
    assert [text.partition(" (")[0] for text in summary.stragglers()] == [
        f"late most: rank {SLOW}", f"slowest: rank {SLOW}", f"waited for longest: rank {SLOW}",
    ]  # fmt: skip
    trace = load_trace(path)
    assert validate(trace) == []
    assert trace.header.digests == "off"
    assert {record.model_digest for record in trace.iterations} == {None}
    again = summary_of(trace, 5)
    for name in ("iterations", "joined", "late", "contributions", "stale", "stalest", "syncs"):
        assert again.figures.of(name).tolist() == summary.figures.of(name).tolist(), name
    assert again.blame.last.tolist() == summary.blame.last.tolist()
    assert summarize(trace).staleness_bound == 5
    check_scalars(tmp_path / "board", summary)


def check_scalars(folder: Path, summary: Summary) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {"loss", "samples_per_s", "staleness_max", "staleness_mean", "fresh_fraction", "waiting_fraction"}
    assert {tag.removeprefix("wagma/") for tag in tags if tag.startswith("wagma/")} == expected
    assert {f"wagma_late_fraction/rank_{rank}" for rank in range(4)} <= tags
    assert {f"wagma_own_part_s/rank_{rank}" for rank in range(4)} <= tags
    losses = events.Scalars("wagma/loss")
    assert losses[-1].step == 24
    assert losses[-1].value == pytest.approx(2.5, abs=0.5)  # ranks may be a few iterations apart
    own = [events.Scalars(f"wagma_own_part_s/rank_{rank}")[-1].value for rank in range(4)]
    assert own.index(max(own)) == SLOW
    assert own[SLOW] >= NAP_S
    text = events.Tensors("wagma/summary/text_summary")[0].tensor_proto.string_val[0].decode()
    assert summary.stragglers()[0] in text


@pytest.mark.parametrize("algorithm", ["allreduce_sgd", "eager_sgd", "local_sgd", "d_psgd", "ad_psgd", "ideal"])
def test_every_kind_of_algorithm_is_seen(algorithm: str, tmp_path: Path) -> None:
    lines: list[str] = []
    path, ahead = tmp_path / "own.jsonl", Ahead()

    def program(comm: LocalCommunicator) -> Any:
        return loop(comm, 12, algorithm, nap_s=0.01, ahead=ahead, progress=lines.append, report_every=0.02, trace=path).summary

    summary = run_local(3, program)[0]
    assert lines[-1].startswith("iteration ")
    assert summary.figures.of("iterations").tolist() == [12] * 3
    assert summary.figures.of("samples").tolist() == [48] * 3
    slowest = next(text for text in summary.stragglers() if text.startswith("slowest"))
    assert slowest.startswith(f"slowest: rank {SLOW} (")
    trace = load_trace(path)
    again = summary_of(trace, summary.bound)
    assert again.figures.of("contributions").tolist() == summary.figures.of("contributions").tolist()
    if algorithm != "eager_sgd":  # its own trace says from what seed initiators are drawn; this scenario is made up
        assert validate(trace) == []


def test_a_loop_that_asks_for_nothing_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is read, recorded or gathered for it."""
    monkeypatch.setattr(recorder, "digest", None)
    monkeypatch.setattr(recorder, "Iteration", None)
    monkeypatch.setattr("wagma.real.seeing.monitor.make_board", None)
    assert [wrapped.summary for wrapped in run_local(3, lambda comm: loop(comm, 8, nap_s=0.0))] == [None] * 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_times_are_recorded_without_reading_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "digest", None)
    notes = run_local(2, lambda comm: loop(comm, 8, record="times").notes())
    for one in notes:
        assert len(one.iterations) == len(one.executions) == 8
        assert [record.iteration for record in one.iterations] == list(range(8))
        assert all(record.fresh is not None and record.arrival_ns <= record.return_ns for record in one.iterations)


def test_ranks_that_end_at_different_times_are_all_summed_up() -> None:
    def program(comm: LocalCommunicator) -> Any:
        return loop(comm, 6 + 6 * comm.rank, nap_s=0.0, progress=lambda _: None).summary

    assert run_local(3, program)[0].headline().startswith("wagma_sgd on 3 ranks: 6 to 18 iterations in ")


def test_a_loop_without_an_iteration_ends_in_order() -> None:
    summary = run_local(2, lambda comm: loop(comm, 0, progress=lambda _: None).summary)[0]
    assert "0 iterations" in summary.headline()


def test_a_failed_rank_leaves_nobody_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options: dict[str, Any] = {"progress": True, "tensorboard": tmp_path / "b", "trace": tmp_path / "t"}
        with distribute(optimizer, model, comm=comm, sync_period=2, **options) as wrapped:
            for t in range(50):
                if t == 7 and comm.rank == 1:
                    raise RuntimeError("bad batch")
                wrapped.step()

    before = time.monotonic()
    with pytest.raises(RuntimeError, match="bad batch") as caught:
        run_local(3, program)
    assert not isinstance(caught.value, PeerFailed)
    assert time.monotonic() - before < 10
    assert not (tmp_path / "t").exists()
    assert "wagma_sgd on 3 ranks" not in capsys.readouterr().err


def test_what_a_closure_returns_is_the_loss() -> None:
    def program(comm: LocalCommunicator) -> Any:
        model = torch.nn.Linear(5, 3)
        with distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, progress=lambda _: None) as wrapped:

            def closure() -> float:
                return 3.0 + comm.rank

            wrapped.step(closure)
            wrapped.log(loss=100.0)
            wrapped.step(closure)  # the program has said it better
        return wrapped.summary

    assert run_local(2, program)[0].figures.loss == pytest.approx((3 + 4 + 200) / 4)


def refused(complaint: str, **options: Any) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        run_local(2, lambda comm: loop(comm, 1, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"progress": "yes"}, "rank 0: progress = 'yes': must be True, False or a function"),
        ({"report_every": 0}, "rank 0: report_every = 0: must be seconds, above 0"),
        ({"report_every": True}, "rank 0: report_every = True: must be seconds"),
        ({"report_every": float("nan")}, "rank 0: report_every = nan: must be seconds"),
        ({"record": "digests"}, "rank 0: record = 'digests': must be False, \"times\" or True"),
        ({"trace": ""}, "rank 0: trace = '': must be a path"),
        ({"trace": "/nowhere/a.jsonl"}, "rank 0: trace = '/nowhere/a.jsonl': cannot be written: there is no folder /nowhere"),
        ({"tensorboard": 3}, "rank 0: tensorboard = 3: must be a path"),
        ({"tensorboard": "/dev/null/a"}, "rank 0: tensorboard = '/dev/null/a': is no folder that can be written"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], complaint: str) -> None:
    refused(complaint, **options)


def test_options_that_differ_are_refused() -> None:
    def program(comm: LocalCommunicator) -> None:
        loop(comm, 1, progress=comm.rank == 1)

    with pytest.raises(InputError, match=r"rank 1 has .* progress; rank 0 has .* no records: all ranks need the same"):
        run_local(2, program)


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    def program(comm: LocalCommunicator) -> None:
        kind = InputError if comm.rank else MissingDependencyError  # only rank 0 needs it
        with pytest.raises(kind, match=r"rank 0: tensorboard = .*: needs TensorBoard, which is not installed"):
            loop(comm, 1, tensorboard=tmp_path)

    run_local(2, program)


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({"loss": torch.ones(2, 2)}, r"rank 0: loss = a tensor of shape \(2, 2\): must be a number or a tensor of one element"),
        ({"loss": "low"}, "rank 0: loss = 'low': must be a number"),
        ({"samples": -1}, "rank 0: samples = -1: must be a number, at least 0"),
        ({"samples": "all"}, "rank 0: samples = 'all'"),
    ],
)
def test_what_is_logged_has_to_be_numbers(told: dict[str, Any], complaint: str) -> None:
    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(5, 3)
        wrapped = distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)
        with pytest.raises(InputError, match=complaint):
            wrapped.log(**told)
        wrapped.close()

    run_local(1, program)


def test_the_log_tells_begin_stalls_and_end(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wagma.real.seeing.monitor.STALL_S", 0.25)
    monkeypatch.setattr("wagma.real.seeing.monitor.WARN_EVERY_S", 0.0)  # a busy machine may have stalled it before

    def program(comm: LocalCommunicator) -> None:
        model = torch.nn.Linear(5, 3)
        with distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, "allreduce_sgd", comm=comm) as wrapped:
            for t in range(20):
                if t == 10 and comm.rank == 1:
                    time.sleep(0.8)
                wrapped.step()

    with caplog.at_level(logging.DEBUG, logger="wagma"):
        run_local(2, program)
    said = [(record.rank, record.levelname, record.getMessage()) for record in caplog.records]  # type: ignore[attr-defined]
    begins = [one for one in said if "allreduce_sgd on 2 ranks: a sync every 1 iterations" in one[2]]
    assert sorted(one[:2] for one in begins) == [(0, "INFO"), (1, "DEBUG")]
    assert "18 parameters of float32" in begins[0][2]
    warnings = [(rank, text) for rank, level, text in said if level == "WARNING"]
    (stall,) = (text for rank, text in warnings if rank == 0 and text.startswith("iteration 10: "))
    assert float(re.findall(r"waited ([0-9.]+) s", stall)[0]) >= 0.25
    assert sum("a sync: waited" in one[2] for one in said) == 40
    assert sorted(one[0] for one in said if one[2] == "ended after 20 iterations, as all ranks have") == [0, 1]


@pytest.mark.mpi
def test_over_mpi(tmp_path: Path) -> None:
    """Uneven ends on both transports, then a rank that fails: rank 0 sees the others, and nobody is left waiting."""
    job = mpiexec(3, "seeing.py", str(tmp_path), timeout=40)
    for transport in ("shm", "mpi"):
        trace = load_trace(tmp_path / f"{transport}.jsonl")
        assert validate(trace) == []
        assert len(trace.iterations) == 12 + 12 + 18
    text = job.output
    assert text.count("wagma_sgd on 3 ranks: 12 to 18 iterations in ") == 2
    assert text.count(f"wagma: slowest: rank {SLOW} (") == 2
    lines = [one for one in text.splitlines() if one.startswith("wagma: iteration ")]
    assert any(f"late most: rank {SLOW}" in one for one in lines)
    losses = [float(re.findall(r"loss ([0-9.]+)", one)[0]) for one in lines]
    assert max(losses) > 1.5  # they are 1, 2 and 3: rank 0 has heard of the others
    assert job.returncode != 0
    assert "bad batch" in text
    assert text.count("wagma_sgd on 3 ranks") == 2


def test_wagma_has_the_names() -> None:
    assert {"distribute", "log_to_stderr"} <= set(wagma.__all__)
