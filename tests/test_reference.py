"""The reference of scenario keys: the reader, the page and the JSON schema know the same ones."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wagma.algorithms import ALGORITHMS
from wagma.cli import main
from wagma.errors import InputError
from wagma.reference import keys as reference
from wagma.reference import schema
from wagma.scenario import changed, load, packaged, read
from wagma.sections import Section
from wagma.timing.compute import COMPONENT_KINDS, COMPUTE_KINDS
from wagma.timing.imbalance import IMBALANCE_KINDS

ROOT = Path(__file__).parent.parent
#: Where scenarios are read: keys are literals there, or taken in a loop.
READERS = ("scenario", "timing/compute", "timing/imbalance", "timing/network", "timing/noise", "fitting")
TAKING = ("take", "string", "choice", "boolean", "integer", "number", "subsection", "subsections")

Place = tuple[str, str]  # section and, if it has kinds, kind


def described() -> dict[Place, set[str]]:
    """Section and kind -> its keys, as the reference has them; subsections are keys too."""
    found: dict[Place, set[str]] = {}
    known = reference.sections()
    for section in known:
        keys = {key.name for key in section.keys}
        keys |= {one.name.split(".")[-1] for one in known if one.name and one.name.rpartition(".")[0] == section.name}
        if not section.name:
            keys |= {"algorithms"}
        for kind in section.kinds:
            found[section.name, kind.name] = {"kind"} | {key.name for key in (*section.keys, *kind.keys)}
        if not section.kinds:
            found[section.name, ""] = keys
    return found


def taken(monkeypatch: pytest.MonkeyPatch, tables: list[dict[str, Any]]) -> dict[Place, set[str]]:
    """Section and kind -> the keys that the reader takes when it reads these scenarios."""
    found: dict[Place, set[str]] = {}
    places: dict[int, tuple[Section, Place]] = {}
    begin, take = Section.__init__, Section.take

    def init(self: Section, source: str, name: str, table: Any) -> None:
        begin(self, source, name, table)
        kind = table.get("kind", "") if isinstance(table, dict) else ""
        # What a mixture is made of is described once.
        place = re.sub(r"\[\d+\]", "", name).replace("noise.per_iteration.components", "compute.components"), str(kind)
        places[id(self)] = self, place  # kept, so that no other object gets its id
        found.setdefault(place, set())

    def taking(self: Section, key: str, *default: Any) -> Any:
        found[places[id(self)][1]].add(key)
        return take(self, key, *default)

    monkeypatch.setattr(Section, "__init__", init)
    monkeypatch.setattr(Section, "take", taking)
    for table in tables:
        read(table, "example")
    return found


def test_the_reader_takes_what_the_reference_describes_and_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = described()
    times = tmp_path / "times.csv"
    times.write_text("rank,iteration,seconds\n0,0,0.5\n")
    tables = list(reference.examples())
    read_ones = taken(monkeypatch, [*tables, tables[0] | {"compute": {"kind": "trace", "file": str(times)}}])
    kinds = {(section.name, kind.name): kind for section in reference.sections() for kind in section.kinds}
    for place, keys in read_ones.items():
        assert place in known or place == ("algorithms", ""), (
            f"{place}: a section that wagma/reference/keys.py does not describe"
        )
        if place[0] in ("algorithms", "calibration.free"):
            continue
        extra = keys - known[place]
        if place in kinds and kinds[place].open is not None:  # whatever keys scipy has for a distribution
            extra -= set(kinds[place].examples[0])
        assert not extra, (
            f"{place}: the reader takes {sorted(extra)}, which wagma/reference/keys.py does not describe: add them there"
        )
    for place, keys in known.items():
        if place[0] == "calibration.free":
            continue
        missing = keys - read_ones[place]
        assert not missing, f"{place}: wagma/reference/keys.py describes {sorted(missing)}, which the reader does not take"


def literals() -> Iterator[tuple[str, str]]:
    """(module, key) of every key that the readers name: as an argument of a taking method, or in a test of `names()`."""
    for module in READERS:
        for node in ast.walk(ast.parse((ROOT / "wagma" / f"{module}.py").read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TAKING and node.args:
                if isinstance(node.args[0], ast.Constant):
                    yield module, node.args[0].value
            elif isinstance(node, ast.Compare) and "names()" in ast.unparse(node) and isinstance(node.left, ast.Constant):
                yield module, node.left.value


def test_keys_that_are_read_only_sometimes_are_described_too() -> None:
    known = set().union(*described().values())
    found = list(literals())
    assert len(found) > 40
    for module, key in found:
        assert key in known, f"wagma/{module}.py reads {key!r}, which wagma/reference/keys.py does not describe: add it there"


def test_every_kind_and_algorithm_is_described() -> None:
    kinds = {section.name: tuple(kind.name for kind in section.kinds) for section in reference.sections()}
    assert sorted(kinds["compute"]) == sorted(COMPUTE_KINDS)
    assert sorted(kinds["compute.components"]) == sorted(COMPONENT_KINDS)
    assert sorted(kinds["imbalance"]) == sorted(IMBALANCE_KINDS)
    for algorithm, known in ALGORITHMS.items():
        if known.run.__module__.startswith("wagma."):  # other tests register their own
            described_ones = {key.name for s in reference.sections() if s.name == f"algorithms.{algorithm}" for key in s.keys}
            missing = set(known.keys) - described_ones
            assert not missing, (
                f"{algorithm} has {sorted(missing)}, which wagma/reference/keys.py does not describe: add them there"
            )


def test_defaults_are_those_of_the_reader() -> None:
    """A scenario with every default written out is the one without them."""
    bare = {
        "name": "mine", "ranks": 8, "iterations": 100, "model": {"parameters": 25_559_081}, "compute": {"kind": "constant", "seconds": 0.4},
        "work": {"per_rank": 128, "unit": "images"}, "calibration": {"iterations": 100, "free": {"network.gap_per_byte_ns": [0.05, 0.5]}},
    }  # fmt: skip
    one, other = read(bare, "bare"), read(next(iter(reference.examples())), "full")
    for name in ("seed", "dtype", "network", "settings", "training", "calibration"):
        assert getattr(one, name) == getattr(other, name), name
    for algorithm in ALGORITHMS:
        assert one.settings_of(algorithm) == other.settings_of(algorithm), algorithm


@pytest.mark.parametrize(
    ("page", "text"), [("reference.md", schema.reference_text), ("scenario.schema.json", schema.schema_text)]
)
def test_the_pages_in_docs_are_what_the_commands_print(page: str, text: Any) -> None:
    command = {"reference.md": "reference", "scenario.schema.json": "schema"}[page]
    fresh = text().rstrip("\n") + "\n"
    assert (ROOT / "docs" / page).read_text() == fresh, f"stale: run `wagma scenarios {command} > docs/{page}`"


def test_the_commands_print_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenarios", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "A scenario of wagma"
    assert main(["scenarios", "reference"]) == 0
    assert "`group_size`" in capsys.readouterr().out


def test_examples_on_the_page_are_in_toml_and_valid() -> None:
    """Each block of the page, put into a scenario, is read."""
    base = load("resnet50_imagenet").table
    blocks = re.findall(r"^```toml\n(\[.*?)^```", schema.reference_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 8
    for block in blocks:
        read(dict(base) | tomllib.loads(block), block)


@pytest.fixture(scope="module")
def judge() -> Any:
    """A validator of our schema, which is itself valid."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(schema.schema())
    return jsonschema.Draft7Validator(schema.schema())


@pytest.mark.parametrize("name", packaged())
def test_packaged_scenarios_satisfy_the_schema(name: str, judge: Any) -> None:
    table = tomllib.loads(packaged()[name].read_text())
    assert [error.message for error in judge.iter_errors(table)] == []


def test_examples_satisfy_the_schema(judge: Any) -> None:
    for example in reference.examples():
        assert [error.message for error in judge.iter_errors(example)] == []


BAD: list[dict[str, Any]] = [
    {"name": ""}, {"name": 3}, {"ranks": 0}, {"ranks": "4"}, {"ranks": True}, {"ranks": 1.5}, {"iterations": 0}, {"seed": -1},
    {"seed": 2**63}, {"bandwidth": 3}, {"model": 3}, {"model.parameters": 0}, {"model.dtype": "int8"}, {"model.size": 3},
    {"work.per_rank": 0}, {"work.unit": "hours"}, {"compute.kind": "random"}, {"compute.seconds": 0}, {"compute.seconds": [1.0]},
    {"compute.mean": 3}, {"compute": {"kind": "samples", "seconds": []}}, {"compute": {"kind": "samples", "seconds": [1.0, -1.0]}},
    {"compute": {"kind": "scipy"}}, {"compute": {"kind": "scipy", "distribution": "gamma", "a": "2"}},
    {"compute": {"kind": "scipy", "distribution": "norm", "scale": 0}}, {"compute": {"kind": "buckets", "lengths": [1]}},
    {"compute": {"kind": "buckets", "lengths": [[1, 2, 3]], "linear_s": 1}},
    {"compute": {"kind": "mixture", "components": []}}, {"compute": {"kind": "mixture", "components": [{"kind": "trace"}]}},
    {"compute": {"kind": "mixture", "components": [{"kind": "constant", "seconds": 1.0}]}}, {"compute": {"kind": "trace", "path": "x"}},
    {"imbalance": 3}, {"imbalance": {"kind": "exactly"}}, {"imbalance": [{"kind": "exactly", "count": 1}]},
    {"imbalance": [{"kind": "exactly", "count": -1, "delay_s": 1}]}, {"imbalance": [{"kind": "exactly", "count": 1, "delay_s": -1}]},
    {"imbalance": [{"kind": "independent", "delay_s": 1, "probability": 1.5}]},
    {"imbalance": [{"kind": "independent", "delay_s": 1, "draws": 0}]},
    {"imbalance": [{"kind": "burst", "delay_s": 1, "probability": 0.1, "length": 0}]},
    {"imbalance": [{"kind": "fixed", "delay_s": 1, "ranks": [1, 1]}]}, {"network.latency_ns": -1}, {"network.latency_ns": "fast"},
    {"network.preset": "abacus"}, {"network.overlap": 1.5}, {"network.ranks_per_node": 0}, {"network.placement": "random"},
    {"network.taper": 0.5}, {"network.node": 3}, {"network.node": {"preset": "piz_daint"}}, {"network.node": {"latency_ns": -1}},
    {"network.shared_interface": 1}, {"noise": 3}, {"noise": {"detours_per_s": -1}}, {"noise": {"detours": 1}},
    {"noise": {"per_iteration": {"kind": "trace", "file": "x"}}}, {"noise": {"per_iteration": {"kind": "constant"}}},
    {"network.allreduce": "gossip"}, {"network.bandwidth": 3}, {"algorithm.group_size": 0}, {"algorithm.group_size": "cube"},
    {"algorithm.sync_period": 0}, {"algorithm.sync_period": "always"}, {"algorithm.merge_once": 1}, {"algorithm.tau": 3},
    {"algorithms.sgd": {}}, {"algorithms.wagma_sgd.group_size": 0}, {"algorithms.sgp.out_neighbours": 0},
    {"algorithms.wagma_sgd.out_neighbours": 2}, {"algorithms.eager_sgd.initiators": "few"}, {"training.workload": "imagenet"},
    {"training.batch_size": 0}, {"training.momentum": 2}, {"training.learning_rate": 0}, {"training.optimizer": "adam"},
    {"calibration.leave_out": ["sgd"]}, {"calibration.free": {"network.latency_ns": [1]}}, {"calibration.iterations": 0},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD, ids=lambda change: json.dumps(change)[:60])
def test_what_the_reader_refuses_the_schema_refuses(change: dict[str, Any], judge: Any) -> None:
    base = load("resnet50_imagenet").table
    table = changed({key: value for key, value in base.items() if key not in change}, change, "bad")
    assert not judge.is_valid(table)
    with pytest.raises(InputError):
        read(table, "bad")


@pytest.mark.parametrize(
    "missing", ["name", "ranks", "iterations", "model", "work", "compute", "model.parameters", "compute.kind"]
)
def test_what_has_to_be_there(missing: str, judge: Any) -> None:
    table: dict[str, Any] = json.loads(json.dumps(load("resnet50_imagenet").table))
    section, _, key = missing.rpartition(".")
    del (table[section] if section else table)[key]
    assert not judge.is_valid(table)
    with pytest.raises(InputError):
        read(table, "bad")
