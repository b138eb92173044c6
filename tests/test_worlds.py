"""What a machine's messages cost, as a network; and the same scenario in both worlds, held against each other."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wagma.api import figures
from wagma.api import run as simulate
from wagma.cli import main, parser
from wagma.commands import compare_worlds
from wagma.commands.options import load_scenarios, trace_path
from wagma.errors import InputError
from wagma.real.measuring.exchanges import WARM_UP, reactions
from wagma.report.worlds import Shown, draw_worlds
from wagma.scenario import Scenario, load
from wagma.studies import machine, worlds
from wagma.studies.machine import Figure, Machine, Settings
from wagma.trace import Trace

BYTES = 40_000
COMPUTED_NS = 1_000_000


def timing(**changes: Any) -> Scenario:
    """digits without training or delays, ranks that compute for a millisecond, once."""
    base = {"training.workload": "none", "model.parameters": BYTES // 4, "imbalance": [], "iterations": 1}
    return load("digits", base | {"compute": {"kind": "constant", "seconds": 1e-9 * COMPUTED_NS}} | changes)


# -- letters in the simulator ------------------------------------------------------------------------------------------------

LETTERS = {"latency_ns": 2_000_000, "overhead_ns": 5_000, "gap_per_byte_ns": 2.0}
APART = {"latency_ns": 100, "letters": LETTERS}
HOP_NS = 2_000_000 + 2 * 5_000
LETTER_NS = HOP_NS + 2 * (BYTES - 1)


def test_a_pair_takes_two_letters() -> None:
    trace = simulate(timing(ranks=2, network=APART), "swarm_sgd")
    # Both ask at once, and by the time they are asked their own question has left the interface.
    assert [x.completed_ns for x in trace.exchanges if x.role == "active"] == [COMPUTED_NS + 2 * LETTER_NS] * 2


@pytest.mark.parametrize("algorithm", ["d_psgd", "sgp"])
def test_an_exchange_takes_a_letter(algorithm: str) -> None:
    trace = simulate(timing(ranks=2, network=APART), algorithm)
    assert {x.completed_ns - x.started_ns for x in trace.exchanges} == {LETTER_NS}


def test_a_barrier_is_of_letters() -> None:
    trace = simulate(timing(ranks=4, network=APART, **{"algorithms.d_psgd.global_clock": True}), "d_psgd")
    assert {x.started_ns for x in trace.exchanges} == {COMPUTED_NS + 2 * HOP_NS}


def test_letters_are_no_business_of_collectives() -> None:
    own = {"latency_ns": 3_000, "overhead_ns": 100, "gap_per_byte_ns": 0.5}
    for algorithm in ("wagma_sgd", "allreduce_sgd", "eager_sgd"):
        plain, apart = (simulate(timing(iterations=12, network=n), algorithm) for n in (own, {**own, "letters": LETTERS}))
        assert plain.executions == apart.executions
        assert plain.iterations == apart.iterations


def test_what_letters_leave_out_they_have_from_the_network() -> None:
    own = {"latency_ns": 3_000, "overhead_ns": 100, "gap_ns": 50, "gap_per_byte_ns": 0.5, "reduce_ns_per_byte": 0.25}
    for algorithm in ("swarm_sgd", "ad_psgd", "sgp", "d_psgd"):
        plain, apart = (
            simulate(timing(iterations=12, network=n), algorithm) for n in (own, {**own, "letters": {"gap_ns": 50}})
        )
        assert plain.exchanges == apart.exchanges, algorithm


def test_the_fast_engine_leaves_letters_to_the_other_one() -> None:
    with pytest.raises(InputError, match=r"network\.letters is none of its timing model"):
        figures(timing(network=APART), "d_psgd", engine="fast")
    assert figures(timing(network=APART), "d_psgd").engine == "simpy"


# -- the machine: the simulator's own network, found again by the probes ---------------------------------------------------------

TRUE = {
    "latency_ns": 30_000.0, "overhead_ns": 4_000.0, "gap_per_byte_ns": 1.5, "reduce_ns_per_byte": 0.5,
    "progress_waiting_ns": 70_000.0, "progress_computing_ns": 900_000.0,
}  # fmt: skip
LATE_S = 0.02


def probed(ranks: int, transport: str) -> dict[str, np.ndarray[Any, Any]]:
    """The samples that probes of a simulated machine with the network TRUE would give: one of each, as if nothing varied."""
    kind = machine.exchange_of(transport, BYTES)

    def last(size: int, count: int, late: bool, **network: Any) -> float:
        """Seconds from the last arrival at a sync to the last return."""
        delays = [{"kind": "fixed", "ranks": [0], "delay_s": LATE_S}] if late else []
        changes = {"network": {**TRUE, "allreduce": kind, **network}, "imbalance": delays, "model.parameters": size // 4}
        trace = simulate(timing(ranks=count, **changes), "allreduce_sgd")
        return 1e-9 * (max(one.return_ns for one in trace.iterations) - COMPUTED_NS - (1e9 * LATE_S if late else 0))

    quick = {"progress_waiting_ns": 0, "progress_computing_ns": 0}
    changes = {"imbalance": [{"kind": "fixed", "ranks": list(range(1, ranks)), "delay_s": LATE_S}], "network": TRUE}
    lone = simulate(timing(ranks=ranks, **changes, **{"algorithm.group_size": ranks}), "wagma_sgd")
    starts = [1e-9 * (e.started_ns - COMPUTED_NS) for e in lone.executions if e.rank and e.version == 0]
    short = last(4, 2, late=False, **quick, gap_per_byte_ns=0, reduce_ns_per_byte=0, allreduce="butterfly")
    samples = {
        "alone": [2e-9 * TRUE["overhead_ns"]], "short": [short], "model": [last(BYTES, 2, late=False, **quick)],
        "asleep": [last(BYTES, ranks, late=True)], "computing.start": starts, "adding": [1e-9 * TRUE["reduce_ns_per_byte"]],
        "gap": [2e-6],
    }  # fmt: skip
    return {name: np.array(values) for name, values in samples.items()}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("transport", ["shared", "mpi"])
def test_the_probes_find_the_network_again(ranks: int, transport: str) -> None:
    """Every formula is the simulator's own, turned around."""
    found = machine.network_keys(probed(ranks, transport), Settings(ranks, model_bytes=BYTES), transport, "computing")
    for name, value in TRUE.items():
        # A last rank finds messages there that a sleeper's thread took in before, so that one phase in some costs it no wake-up.
        assert found[name] == pytest.approx(value, rel=0.02), name
    assert found["gap_ns"] == pytest.approx(TRUE["overhead_ns"] if transport == "shared" else 2_000)


def test_letters_are_found_again() -> None:
    true = LETTERS | {"progress_computing_ns": 800_000}

    def taken(size: int, algorithm: str) -> Any:
        scenario = timing(ranks=2, network={"latency_ns": 100, "letters": true}, **{"model.parameters": size // 4})
        exchanges = simulate(scenario, algorithm).exchanges
        return np.array([(x.completed_ns - x.started_ns) * 1e-9 for x in exchanges if x.role != "passive"])

    samples = {"model.sender": np.array([5e-6]), "model.pair": taken(BYTES, "swarm_sgd")}
    samples |= {f"{name}.exchange": taken(size, "d_psgd") for name, size in (("short", 4), ("model", BYTES))}
    found = machine.letter_keys(samples, BYTES)
    assert {name: found[name] for name in true} == pytest.approx(true, rel=1e-3)


def test_who_was_alone_and_how_soon_the_others_started() -> None:
    def record(rank: int, arrivals: Sequence[int], starts: Sequence[int]) -> Any:
        executions = [{"version": v, "started_ns": at} for v, at in enumerate(starts)]
        return executions, [
            {"iteration": v, "arrival_ns": at, "return_ns": max(at, starts[v]) + 50 + rank} for v, at in enumerate(arrivals)
        ]

    warm = [0] * WARM_UP
    # Version 0: rank 1 starts 30 ns after rank 0 has come, and comes itself much later. Version 1: both had come.
    starts, returns = reactions(
        [record(0, [*warm, 1000, 5000], [*warm, 1020, 5100]), record(1, [*warm, 4000, 5050], [*warm, 1030, 5100])]
    )
    assert starts == pytest.approx([30e-9])
    assert returns == pytest.approx([70e-9])


def test_bounds_are_of_the_samples_and_the_same_each_time() -> None:
    samples = {"x": np.random.default_rng(3).exponential(1.0, 400)}

    def mean(one: Any) -> dict[str, float]:
        return {"mean": float(np.mean(one["x"]))}

    first, second = (machine.resampled(mean, samples)["mean"] for _ in range(2))
    assert first == second
    assert first.low < first.value < first.high
    # 95 % of an exponential's mean of 400: 1.96 / 20 each way.
    assert first.high - first.low == pytest.approx(4 * samples["x"].std() / 20, rel=0.2)


def measured(ranks: int, transports: tuple[str, ...]) -> Machine:
    """A machine with figures that are all different."""
    names = (
        "latency_ns",
        "overhead_ns",
        "gap_ns",
        "gap_per_byte_ns",
        "reduce_ns_per_byte",
        "progress_computing_ns",
        "progress_waiting_ns",
    )
    keys = {
        (transport, application): {key: Figure(100 * i + 10 * j + k + 0.5, 1.0, 2.0) for k, key in enumerate(names)}
        for i, transport in enumerate(transports) for j, application in enumerate(machine.APPLICATIONS)
    }  # fmt: skip
    one = Figure(7.0, 6.0, 8.0)
    letters = {name: Figure(1000.0 + k, 1.0, 2.0) for k, name in enumerate(names[:4])}
    settings = Settings(ranks, transports, BYTES)
    return Machine(settings, 2, "MPICH", one, one, one, keys, letters, letters, {})


def test_what_is_written_is_a_network() -> None:
    both = measured(4, ("shared", "mpi"))
    document = tomllib.loads(machine.to_toml(both, "sleeping"))
    network = timing(**document).network
    assert (network.latency_ns, network.progress_waiting_ns) == (110.5, 16.5), "messages of MPI, threads of shared memory"
    assert network.node is not None
    assert network.node.latency_ns == 10.5
    assert network.ranks_per_node == 4
    assert network.letters is not None
    assert network.letters.overhead_ns == 1001.0
    alone = tomllib.loads(machine.to_toml(measured(2, ("mpi",)), "computing"))
    assert "node" not in alone["network"]
    assert alone["network"]["allreduce"] == "halving_doubling"  # 40,000 bytes are no short model
    assert timing(network=measured(2, ("mpi",)).network("mpi", "computing")).network.latency_ns == 0.5


def test_settings_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["-n", "1"], "--ranks 1: must be from 2 to 64"), (["--bytes", "2"], "--bytes 2: must be from 4"),
        (["--work", "3"], "--work 3: must be from 0 to 0.1"), (["--repetitions", "2"], "--repetitions 2: must be from 5"),
        (["--write", "/nowhere/n.toml"], "cannot be written"),
    ):  # fmt: skip
        assert main(["measure", *arguments]) == 2
        errors = capsys.readouterr().err
        assert text in errors
        assert errors.count("\n") == 1


@pytest.mark.mpi
def test_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All probes on real ranks, few of each: what comes out is a network, and its figures are those of a machine."""
    target = tmp_path / "network.toml"
    assert main(["measure", "-n", "2", "--repetitions", "5", "--bytes", "40000", "--json", "-", "--write", str(target)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {one["transport"] for one in document["networks"]} == {"shared", "mpi"}
    for one in document["networks"]:
        for name, figure in one["keys"].items():
            assert figure["low"] <= figure["high"], name
            assert 0 <= figure["value"] < 1e9, name
    assert document["samples"]["letters"]["model.pair"]["median"] > 0
    assert document["bandwidth_bytes_per_s"]["value"] > 1e8
    assert timing(**tomllib.loads(target.read_text())).network.letters is not None


# -- both worlds -----------------------------------------------------------------------------------------------------------------

#: The network of the ranks that play the real ones below.
PLAYED = {
    "latency_ns": 40_000.0,
    "overhead_ns": 2_000.0,
    "gap_per_byte_ns": 1.0,
    "progress_waiting_ns": 90_000.0,
    "letters": {"latency_ns": 700_000.0},
}
ALL = ["ad_psgd", "allreduce_sgd", "d_psgd", "eager_sgd", "ideal", "local_sgd", "sgp", "swarm_sgd", "wagma_sgd"]


def played(scenario: Scenario, algorithm: str) -> Trace:
    """What a machine that is the simulator itself, with the network PLAYED, makes of a scenario."""
    return simulate(scenario.tuned(algorithm).replace({"network": PLAYED, "training.workload": "none"}), algorithm)


@pytest.fixture
def played_ranks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Ranks that `wagma compare-worlds` starts are simulated, by the command line that they are given; all these command lines."""
    seen: list[list[str]] = []

    def run_ranks(ranks: int, arguments: Sequence[str], _progress: object) -> int:
        seen.append(list(arguments))
        options = parser("train").parse_args(arguments[1:])
        scenario = load_scenarios(options, [ranks])[0]
        names = options.algorithms.split(",")
        for name in names:
            played(scenario, name).write(trace_path(options.trace, name, ranks, len(names) > 1))
        return 0

    monkeypatch.setattr(compare_worlds, "run_ranks", run_ranks)
    monkeypatch.setattr(compare_worlds, "require", lambda **_: None)
    monkeypatch.setattr(worlds, "gradient_s", lambda _: 0.001)
    return seen


def network_file(folder: Path, **changes: float) -> str:
    """PLAYED as a file, with changes."""
    file = folder / "network.toml"
    letters = PLAYED["letters"]
    assert isinstance(letters, dict)
    own = {key: value for key, value in (PLAYED | changes).items() if key != "letters"}
    text = "".join(f"{key} = {value}\n" for key, value in own.items())
    file.write_text(f"[network]\n{text}[network.letters]\nlatency_ns = {letters['latency_ns']}\n")
    return str(file)


@pytest.mark.parametrize("paced", ["true", "false"])
def test_worlds_that_are_the_same_do_not_differ(
    paced: str, played_ranks: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine is the simulator, the network is its own: then nothing may differ, for any algorithm."""
    arguments = [
        "digits",
        "-n",
        "4",
        "--iterations",
        "20",
        "--repetitions",
        "2",
        "--set",
        f"training.paced={paced}",
        "--delay",
        "0.05",
    ]
    assert main(["compare-worlds", *arguments, "--network", network_file(tmp_path), "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [line["algorithm"] for line in document["lines"]] == sorted(ALL)
    for line in document["lines"]:
        assert line["throughput_ratio"]["runs"] == [1.0, 1.0], line["algorithm"]
        assert line["wasserstein_over_mean"] == line["kolmogorov_smirnov"] == 0
        assert line["staleness"]["real"] == line["staleness"]["simulated"]
        assert line["fresh_fraction"]["real"] == line["fresh_fraction"]["simulated"]
    assert document["regime"]["name"] == ("paced" if paced == "true" else "shared_cores")
    assert document["seeds"] == [7, 8]
    # Each seed has a rehearsal, in groups of one, and a job for all algorithms.
    assert len(played_ranks) == 4
    assert ["--seed" in one and one[one.index("--seed") + 1] for one in played_ranks] == ["7", "7", "8", "8"]


def test_a_wrong_network_shows(played_ranks: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Synchronous ranks wait 20 ms longer in each iteration than the machine makes them; those that never wait for anybody do not."""
    arguments = ["digits", "-n", "4", "--iterations", "20", "--repetitions", "1", "--algorithms", "allreduce_sgd,ideal"]
    slow = network_file(tmp_path, latency_ns=5_040_000.0)
    picture = tmp_path / "worlds.png"
    assert (
        main(["compare-worlds", *arguments, "--network", slow, "--json", str(tmp_path / "w.json"), "--plot", str(picture)]) == 0
    )
    text = capsys.readouterr().out
    synchronous, ideal = json.loads((tmp_path / "w.json").read_text())["lines"]
    difference_s = synchronous["iteration_s"]["simulated"] - synchronous["iteration_s"]["real"]
    # Four phases of 5 ms, less where the straggler finds the first messages there.
    assert 0.015 < difference_s <= 0.0201
    expected = synchronous["iteration_s"]["real"] / synchronous["iteration_s"]["simulated"]
    assert synchronous["throughput_ratio"]["median"] == pytest.approx(expected, rel=0.01)
    # All iterations are later by the same: then the distance is that.
    assert synchronous["wasserstein_over_mean"] == pytest.approx(difference_s / synchronous["iteration_s"]["real"], rel=0.01)
    assert synchronous["kolmogorov_smirnov"] > 0.5
    assert ideal["throughput_ratio"]["median"] == 1
    assert "within 10 % for 1 of 2 algorithms, furthest off for allreduce_sgd" in text
    assert picture.stat().st_size > 10_000


def test_what_a_rehearsal_adds() -> None:
    scenario = load("digits", {"ranks": 2, "iterations": 12, "training.workload": "none"})
    slower = scenario.replace({"compute": {"kind": "constant", "seconds": 0.034}, **worlds.ALONE})
    rehearsal = simulate(slower, worlds.REHEARSED)
    table, beside = worlds.compute_table(scenario, rehearsal, 30)
    assert table.shape == (2, 30)
    assert beside.shape == (2, 12)
    assert beside == pytest.approx(0.004), "of each iteration, whatever delay it had"
    assert table == pytest.approx(0.034)
    real = scenario.replace({"training.paced": False})
    assert worlds.compute_table(real, rehearsal, 30)[0] == pytest.approx(0.034)


def test_which_regime_it_is() -> None:
    digits, text = load("digits"), load("text")
    assert worlds.regime(digits, 2).name == "paced"
    free = digits.replace({"training.paced": False})
    assert (worlds.regime(free, 4).name, worlds.regime(free, 2).name) == ("own_cores", "shared_cores")
    assert not worlds.regime(free, 2).aimed
    assert worlds.regime(text, 2).name == "stretched"
    assert worlds.regime(text, 1).name == "shared_cores"


def test_runs_that_are_not_the_same_are_not_compared() -> None:
    scenario = timing(iterations=3, ranks=2)
    with pytest.raises(InputError, match="not the same run in two worlds"):
        worlds.pair(0, simulate(scenario, "local_sgd"), simulate(scenario, "wagma_sgd"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["digits", "-n", "1"], "ranks = 1: must be at least 2"),
        (["resnet50_imagenet"], "real ranks need something to train"),
        (["digits", "--repetitions", "0"], "--repetitions 0: must be at least 1"),
        (["digits", "--network", "nowhere.toml"], "--network nowhere.toml: cannot be read"),
        (["digits", "--network", "{file}"], "has no [network]"),
        (["digits", "--algorithms", "sgd"], "algorithm = 'sgd': unknown"),
        (["digits", "--set", "network.latency_ns=3"], "--set network.latency_ns=3: the network is measured"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "empty.toml"
    file.write_text("ranks = 3\n")
    assert main(["compare-worlds", *(one.replace("{file}", str(file)) for one in arguments)]) == 2
    errors = capsys.readouterr().err
    assert text in errors
    assert errors.count("\n") == 1


def test_a_picture_shows_so_many() -> None:
    one = Shown("ideal", (np.array([0.03]), np.array([0.03])), ({}, {}))
    with pytest.raises(InputError, match="shows 1 to 12"):
        draw_worlds([one] * 13, "x.png")
