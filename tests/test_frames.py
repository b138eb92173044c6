"""Results, sweeps and traces as data frames."""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from typing import Any

import pytest

import wagma
from wagma.errors import InputError, MissingDependencyError
from wagma.results import Result

pandas = pytest.importorskip("pandas")


def scenario() -> wagma.Scenario:
    return wagma.load_scenario("resnet50_imagenet", {"ranks": 4, "iterations": 12})


def test_results() -> None:
    results = wagma.simulate(scenario(), ["wagma_sgd", "ideal"], ranks=[2, 4])
    frame = wagma.frame(results)
    assert list(frame.columns) == [field.name for field in fields(Result)]
    for row, result in zip(frame.to_dict("records"), results, strict=True):
        assert {k: None if pandas.isna(v) else v for k, v in row.items()} == asdict(result)
    # Whole numbers stay whole where some are missing.
    assert str(frame["staleness_max"].dtype) == "Int64"
    assert frame["staleness_max"].isna().tolist() == [False, True, False, True]
    assert len(wagma.frame(results[0])) == 1
    assert list(wagma.frame([]).columns) == list(frame.columns)


def test_a_sweep() -> None:
    done = wagma.sweep(scenario(), {"algorithm.group_size": [1, 2, "sqrt"]}, "wagma_sgd", ranks=[4, 8], in_process=True)
    frame = wagma.frame(done)
    assert frame["algorithm.group_size"].tolist() == [1, 2, "sqrt"] * 2
    assert frame["ranks"].tolist() == [4] * 3 + [8] * 3
    assert frame["throughput"].tolist() == [row.result.throughput for row in done.rows]
    best = frame.loc[frame.groupby("ranks")["throughput"].idxmax()]
    assert len(best) == 2
    assert wagma.frame(done.rows).equals(frame)


@pytest.mark.parametrize("records", ["iterations", "executions", "exchanges"])
def test_traces(records: str) -> None:
    traces = wagma.simulate(scenario(), ["wagma_sgd", "d_psgd"], traces=True)
    frame = wagma.frame(traces, records)
    whole = [(trace.header.algorithm, record) for trace in traces for record in getattr(trace, records)]
    assert len(frame) == len(whole) > 0
    assert frame["algorithm"].tolist() == [algorithm for algorithm, _ in whole]
    for name in frame.columns[2:]:
        expected = [getattr(record, name) for _, record in whole]
        missing = [value is None for value in expected]
        values = [None if gone else value for value, gone in zip(frame[name].tolist(), missing, strict=True)]
        assert values == expected, name
    assert len(wagma.frame(traces[0], records)) == len(getattr(traces[0], records))


@pytest.mark.parametrize(
    ("data", "records", "named"),
    [(3, "iterations", "int"), (["x"], "iterations", "str"), ([], "versions", "iterations, executions, exchanges")],
)
def test_what_is_no_frame(data: Any, records: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        wagma.frame(data, records)


def test_kinds_do_not_mix() -> None:
    [result] = wagma.simulate(scenario(), "ideal")
    [trace] = wagma.simulate(scenario(), "ideal", traces=True)
    with pytest.raises(InputError, match="all of one kind"):
        wagma.frame([result, trace])  # type: ignore[list-item]


def test_frames_need_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        wagma.frame([])
