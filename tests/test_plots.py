"""Pictures of results: what they are drawn from, what is refused, and what is on them."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from wagma.api import columns, simulate
from wagma.cli import main
from wagma.errors import InputError, MissingDependencyError
from wagma.report import style
from wagma.report.figures import load_figures, samples, select
from wagma.report.heatmap import draw_heatmap
from wagma.report.paper import Point
from wagma.report.rows import Cells, write_rows
from wagma.report.staleness import draw_staleness
from wagma.report.throughput import draw_speedup, draw_throughput
from wagma.report.timeline import Activity
from wagma.report.timeline import rows as rows_of
from wagma.scenario import load
from wagma.trace import Trace

pytest.importorskip("matplotlib")

CHOSEN = ["--where", "algorithm.group_size=2", "--where", "algorithm.sync_period=4", "--algorithms", "wagma_sgd,allreduce_sgd"]
START = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF", "svg": b"<?xml"}


def rows(algorithms: tuple[str, ...] = ("wagma_sgd", "allreduce_sgd"), seeds: tuple[int, ...] = (1,)) -> list[Cells]:
    """A small table: throughput is a known function of everything."""
    return [
        {
            "scenario": "resnet50_imagenet", "algorithm.group_size": size, "algorithm.sync_period": period, "ranks": ranks, "seed": seed,
            "algorithm": algorithm, "throughput": ranks * (10.0 + number) + seed + size * number + period / 7, "unit": "images",
            "ideal_throughput": ranks * 15.0, "fresh_fraction": None, "staleness_max": size,
        }
        for ranks in (4, 16) for number, algorithm in enumerate(algorithms) for size in (2, 4) for period in (4, 8) for seed in seeds
    ]  # fmt: skip


def one_setting(seeds: tuple[int, ...] = (1,), algorithms: tuple[str, ...] = ("wagma_sgd", "allreduce_sgd")) -> list[Cells]:
    return select(rows(algorithms, seeds), {"algorithm.group_size": 2, "algorithm.sync_period": 4}, None)


def texts(path: Path) -> str:
    """What is written on an SVG: matplotlib says it in comments beside the glyphs' outlines."""
    return " | ".join(match.strip() for match in re.findall(r"<!--(.*?)-->", path.read_text(), re.DOTALL))


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return simulate(
        load("resnet50_imagenet", {"ranks": 8, "iterations": 24}), ["wagma_sgd", "eager_sgd", "ad_psgd"], traces=True
    )


def pictures(kind: str, path: Path, traces: list[Trace]) -> None:
    match kind:
        case "throughput":
            draw_throughput(
                one_setting((1, 2)), path, {(16, "wagma_sgd"): Point(150.0, 10.0), (64, "wagma_sgd"): Point(600.0, 10.0)}
            )
        case "speedup":
            draw_speedup(one_setting((1, 2)), path, "allreduce_sgd")
        case "heatmap":
            draw_heatmap(rows(), path)
        case "staleness":
            draw_staleness(traces, path)


@pytest.mark.parametrize("suffix", START)
@pytest.mark.parametrize("kind", ["throughput", "speedup", "heatmap", "staleness"])
def test_every_plot_in_every_format(kind: str, suffix: str, traces: list[Trace], tmp_path: Path) -> None:
    pictures(kind, tmp_path / f"a.{suffix}", traces)
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(START[suffix])


@pytest.mark.parametrize("suffix", START)
def test_the_same_data_are_the_same_bytes(suffix: str, traces: list[Trace], tmp_path: Path) -> None:
    """No date, no random names."""
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        pictures("staleness", path, traces)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_print_size(tmp_path: Path) -> None:
    """A column of a paper is 3.5 inches; 300 dots an inch are sharp."""
    draw_speedup(one_setting(), tmp_path / "a.png", "allreduce_sgd")
    draw_speedup(one_setting(), tmp_path / "b.png", "allreduce_sgd", width=7.0)
    widths = [struct.unpack(">I", (tmp_path / name).read_bytes()[16:20])[0] for name in ("a.png", "b.png")]
    assert widths == [1050, 2100]


def test_axes_have_units_and_lines_have_names(traces: list[Trace], tmp_path: Path) -> None:
    expected = {
        "throughput": ["throughput, images/s", "ranks", "WAGMA-SGD", "Allreduce-SGD", "Ideal", "as published", "% of ideal"],
        "speedup": ["throughput over Allreduce-SGD", "ranks", "WAGMA-SGD", "Allreduce-SGD = 1"],
        "heatmap": [
            "throughput, images/s",
            "group size",
            "sync period",
            "WAGMA-SGD, 4 ranks",
            "Allreduce-SGD, 16 ranks",
            "180",
        ],
        "staleness": ["staleness, iterations", "share of contributions, %", "WAGMA-SGD", "Eager-SGD", "AD-PSGD", "bound: 9"],
    }
    for kind, words in expected.items():
        path = tmp_path / f"{kind}.svg"
        pictures(kind, path, traces)
        for word in words:
            assert word in texts(path), f"{kind}: {word}"


def test_speedups_are_ratios_of_the_same_seed(tmp_path: Path) -> None:
    table = one_setting((1,))
    draw_speedup(table, tmp_path / "s.svg", "allreduce_sgd")
    for ranks in (4, 16):
        wagma, allreduce = (next(r["throughput"] for r in table if (r["ranks"], r["algorithm"]) == (ranks, name))
                            for name in ("wagma_sgd", "allreduce_sgd"))  # fmt: skip
        assert f"{wagma / allreduce:.2f}" in texts(tmp_path / "s.svg")


def test_looks_differ_and_are_the_same_everywhere() -> None:
    looks = list(style.LOOKS.values())
    for field in ("name", "colour", "marker"):
        assert len({getattr(look, field) for look in looks}) == len(looks)
    assert style.look("mine") == style.look("mine")
    assert style.in_order(["mine", "ideal", "wagma_sgd", "ideal"]) == ["wagma_sgd", "ideal", "mine"]


def lightness(colour: str) -> float:
    """L* of CIE Lab."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 116 * (0.2126 * r + 0.7152 * g + 0.0722 * b) ** (1 / 3) - 16


def test_every_colour_shows_on_white() -> None:
    assert max(lightness(look.colour) for look in style.LOOKS.values()) < 75


def test_from_simulate_and_sweep_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["resnet50_imagenet", "--ranks", "4,8", "--algorithms", "wagma_sgd,allreduce_sgd"]
    assert main(["simulate", *common, "--iterations", "12", "--json", str(tmp_path / "r.json"), "-q"]) == 0
    assert main(["sweep", *common, "--set", "iterations=12", "--out", str(tmp_path / "r.csv"), "-q"]) == 0
    json_rows, csv_rows = (load_figures([tmp_path / name]) for name in ("r.json", "r.csv"))
    for one, other in zip(json_rows, csv_rows, strict=True):
        assert {k: v for k, v in one.items() if k != "wall_s"}.items() <= other.items()
    for kind in ("throughput", "speedup"):
        for source in ("r.json", "r.csv"):
            picture = tmp_path / f"{kind}.{source}.png"
            options = ["--paper"] if kind == "throughput" else []
            assert main(["plot", kind, str(tmp_path / source), "-o", str(picture), *options]) == 0
            assert picture.read_bytes().startswith(START["png"])
    assert capsys.readouterr() == ("", "")


def test_traces_through_the_command(traces: list[Trace], tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{trace.header.algorithm}.jsonl") for trace in traces]
    for trace, path in zip(traces, paths, strict=True):
        trace.write(path)
    for kind in ("staleness", "timeline"):
        assert main(["plot", kind, *paths, "-o", str(tmp_path / f"{kind}.pdf")]) == 0
        assert (tmp_path / f"{kind}.pdf").read_bytes().startswith(START["pdf"])


def test_seeds_become_a_range_and_settings_have_to_be_chosen() -> None:
    found = samples(one_setting((1, 2, 3)), lambda row: (row["algorithm"], row["ranks"]))
    assert sorted(found["wagma_sgd", 4]) == [1, 2, 3]
    with pytest.raises(InputError, match=re.escape("choose with --where algorithm.group_size=")):
        samples(rows(("ideal", "wagma_sgd")), lambda row: (row["algorithm"], row["ranks"]))


def test_staleness_of_columns_is_that_of_the_trace(tmp_path: Path) -> None:
    scenario = load("resnet50_imagenet", {"ranks": 8, "iterations": 24})
    draw_staleness([columns(scenario, "wagma_sgd", "fast")], tmp_path / "fast.svg")
    draw_staleness(simulate(scenario, "wagma_sgd", traces=True), tmp_path / "simpy.svg")
    assert (tmp_path / "fast.svg").read_bytes() == (tmp_path / "simpy.svg").read_bytes()


def within(span: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(begin <= span[0] and span[1] <= end for begin, end in others)


@pytest.mark.parametrize("algorithm", ["d_psgd", "sgp", "ad_psgd", "swarm_sgd"])
def test_timelines_show_exchanges(algorithm: str) -> None:
    """What neighbours and pairs do is on the row: communicating while the rank waits, in the background while it computes."""
    [trace] = simulate(load("resnet50_imagenet", {"ranks": 4, "iterations": 8}), algorithm, traces=True)
    for rank, row in rows_of(trace).items():
        communicating, background = (row.spans[a] for a in (Activity.COMMUNICATING, Activity.PASSIVE))
        busy = sorted(row.spans[Activity.COMPUTING] + row.spans[Activity.DELAY])
        assert all(within(span, row.spans[Activity.WAITING]) for span in communicating)
        computing: list[tuple[int, int]] = []
        for begin, end in busy:  # computing and the delay after it are one stretch
            computing = (
                [*computing[:-1], (computing[-1][0], end)]
                if computing and computing[-1][1] == begin
                else [*computing, (begin, end)]
            )
        assert all(within(span, computing) for span in background)
        mine = [x for x in trace.exchanges if x.rank == rank]
        shown = {end for _, end in communicating + background}
        # A rank's part in a pair that outlasts its own last iteration is not drawn.
        assert all(x.completed_ns in shown for x in mine if x.completed_ns <= busy[-1][1])
        assert bool(communicating) is (algorithm != "ad_psgd")


@pytest.mark.parametrize("count", [1, 7])
def test_few_and_many(count: int, tmp_path: Path) -> None:
    """One point, and more algorithms than colours: nothing breaks."""
    algorithms = [*list(style.LOOKS)[:count], *(f"mine_{i}" for i in range(count - 1)), "allreduce_sgd"]
    table = select(one_setting(algorithms=tuple(dict.fromkeys(algorithms))), {"ranks": 4}, None)
    draw_throughput(table, tmp_path / "t.svg")
    draw_speedup(table, tmp_path / "s.svg", "allreduce_sgd")
    assert all(f"mine_{i}" in texts(tmp_path / name) for i in range(count - 1) for name in ("t.svg", "s.svg"))


@pytest.mark.parametrize(
    ("x", "y", "names"),
    [
        ("algorithm.group_size", "imbalance.0.delay_s", ["group size", "delay, s"]),
        ("network.latency_ns", "ranks", ["latency, ns", "ranks"]),
        ("imbalance.0.delay_s", "imbalance.1.delay_s", ["imbalance.0.delay_s", "imbalance.1.delay_s"]),
    ],
)
def test_axes_of_a_heat_map_have_units(x: str, y: str, names: list[str], tmp_path: Path) -> None:
    table = [{"algorithm": "sgp", "ranks": 4, "seed": 1, x: a, y: b, "throughput": a + 2.0 * b} for a in (1, 2) for b in (1, 2)]
    draw_heatmap(table, tmp_path / "h.svg", x, y)
    assert set(names) <= set(texts(tmp_path / "h.svg").split(" | "))


def test_a_heat_map_of_many_fields_has_a_colour_bar_instead_of_numbers(tmp_path: Path) -> None:
    table = [
        {"algorithm": "wagma_sgd", "ranks": 4, "a": a, "b": b, "throughput": 1000.0 + a * b, "unit": "images", "seed": 1}
        for a in range(20) for b in range(20)
    ]  # fmt: skip
    draw_heatmap(table, tmp_path / "h.svg")
    assert "1,200" in texts(tmp_path / "h.svg")  # a tick
    assert "1,323" not in texts(tmp_path / "h.svg")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["throughput", "t.csv", "-o", "p.doc"], ".png, .svg, .pdf"),
        (["throughput", "t.csv", "-o", "no/p.png"], "no folder no"),
        (["throughput", "t.csv", "-o", "folder.png"], "a folder"),
        (["throughput", "t.csv", "-o", "p.png"], "choose with --where algorithm.group_size="),
        (["throughput", "nowhere.csv", "-o", "p.png"], "nowhere.csv: cannot be read"),
        (["throughput", "nowhere.json", "-o", "p.png"], "nowhere.json: cannot be read"),
        (["throughput", "bad.json", "-o", "p.png"], "not the JSON of results"),
        (["throughput", "other.csv", "-o", "p.png"], "no column 'algorithm'"),
        (["throughput", "t.txt", "-o", "p.png"], ".csv or .parquet"),
        (["throughput", "zero.csv", "-o", "p.png"], "numbers above 0"),
        (["throughput", "mine.csv", "-o", "p.png", "--paper"], "the paper has no throughput for mine"),
        (["throughput", "t.csv", "-o", "p.png", "--where", "algorithm.tau=3"], "--where algorithm.tau: no such column"),
        (["throughput", "t.csv", "-o", "p.png", "--where", "algorithm.group_size=3"], "there are 2, 4"),
        (["throughput", "t.csv", "-o", "p.png", "--where", "group_size"], "--where group_size: must be"),
        (["throughput", "t.csv", "-o", "p.png", "--algorithms", "sgp"], "--algorithms sgp: no such row"),
        (["throughput", "t.csv", "-o", "p.png", "--width", "1"], "'1'"),
        (["throughput", "t.csv", "-o", "p.png", "--width", "wide"], "'wide'"),
        (["throughput", "mine.csv", "units.csv", "-o", "p.png", *CHOSEN],
         "units images, tokens"),
        (["throughput", "t.csv"], "-o"),
        (["throughput", "-o", "p.png"], "RESULTS"),
        (["heatmap", "mine.csv", "-o", "p.png"], "give --x and --y; what varies: nothing"),
        (["speedup", "mine.csv", "-o", "p.png", "--over", "sgp"], "baseline 'sgp'"),
        (["speedup", "mine.csv", "-o", "p.png", "--over", "wagma_sgd"], "no rows of another algorithm"),
        (["heatmap", "t.csv", "-o", "p.png", "--value", "seed"], "--value seed: must be one of"),
        (["heatmap", "t.csv", "-o", "p.png", "--x", "ranks", "--y", "ranks"], "two different columns"),
        (["heatmap", "t.csv", "-o", "p.png", "--x", "tau", "--y", "ranks"], "--x tau: no such column"),
        (["heatmap", "t.csv", "-o", "p.png", "--y", "tau"], "--y tau: no such column; there are "),
        (["heatmap", "t.csv", "-o", "p.png", "--x", "ranks", "--y", "algorithm.group_size"], "differ in algorithm.sync_period too"),
        (["heatmap", "mine.csv", "-o", "p.png"], "needs two columns"),
        (["staleness", "t.csv", "-o", "p.png"], "not a trace record"),
        (["staleness", "ideal.jsonl", "-o", "p.png"], "ideal contributed nothing"),
        (["staleness", *["ideal.jsonl"] * 7, "-o", "p.png"], "1 to 6"),
        (["timeline", "ideal.jsonl", "-o", "p.png", "--count", "99"], "its last is 1"),
        (["timeline", "ideal.jsonl", "-o", "p.png", "--first", "-1"], "'-1'"),
        (["pie", "t.csv", "-o", "p.png"], "'pie'"),
        ([], "KIND"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_plots(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    # allreduce_sgd varies here, so that no row of a number of ranks stands for the others.
    write_rows("t.csv", rows(("allreduce_sgd", "wagma_sgd")))
    write_rows("mine.csv", [{**one_setting()[0], "scenario": "mine"}])
    write_rows("units.csv", [{**row, "unit": "tokens"} for row in rows()])
    write_rows("zero.csv", [{**rows()[0], "throughput": 0}])
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("bad.json").write_text(json.dumps({"results": [3]}))
    [trace] = simulate(load("resnet50_imagenet", {"ranks": 2, "iterations": 2}), "ideal", traces=True)
    trace.write("ideal.jsonl")
    before = sorted(tmp_path.iterdir())
    status = main(["plot", *arguments])
    output, errors = capsys.readouterr()
    assert (status, output) == (2, ""), errors
    assert errors.startswith("wagma: error: ")
    assert errors.count("\n") == 1
    assert named in errors
    assert sorted(tmp_path.iterdir()) == before


def test_a_baseline_without_the_seed_of_another(tmp_path: Path) -> None:
    table: list[Any] = [row for row in one_setting((1, 2)) if (row["algorithm"], row["seed"]) != ("allreduce_sgd", 2)]
    with pytest.raises(InputError, match="no row for 4 ranks and seed 2"):
        draw_speedup(table, tmp_path / "s.png", "allreduce_sgd")


def test_plots_need_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        draw_speedup(one_setting(), tmp_path / "s.png", "allreduce_sgd")
