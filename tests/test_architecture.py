"""The shape of the house: who may import whom, and what the algorithms may look at."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "wagma"

#: What a part of the package may import of wagma. Longest prefix wins.
ALLOWED = {
    "wagma.core": {"wagma.core", "wagma.errors"},
    "wagma.errors": set(),
    "wagma.text": set(),
    "wagma.files": set(),
    "wagma.progress": set(),
    "wagma.logs": {"wagma.errors", "wagma.real.launching.announced"},
    "wagma.seeing": {"wagma.core", "wagma.text", "wagma.trace"},
    "wagma.algorithms": {"wagma.core", "wagma.algorithms", "wagma.errors"},
    "wagma.draws": {"wagma.core"},
    "wagma.sections": {"wagma.errors"},
    "wagma.fitting": {"wagma.errors", "wagma.sections"},
    "wagma.timing": {"wagma.draws", "wagma.errors", "wagma.sections", "wagma.timing"},
    "wagma.scores": set(),
    "wagma.scenario": {"wagma.core", "wagma.algorithms", "wagma.errors", "wagma.fitting", "wagma.sections", "wagma.timing"},
    "wagma.reference": {"wagma.algorithms", "wagma.reference", "wagma.scenario", "wagma.sections", "wagma.timing"},
    "wagma.seals": {"wagma.errors"},
    "wagma.trace": {"wagma.core", "wagma.scenario", "wagma.scores", "wagma.seals", "wagma.errors"},
    "wagma.columns": {"wagma.core", "wagma.errors", "wagma.trace", "wagma.scenario"},
    "wagma.results": {
        "wagma.core", "wagma.trace", "wagma.columns", "wagma.scenario", "wagma.scores", "wagma.algorithms", "wagma.timing.imbalance",
    },
    "wagma.checks": {
        "wagma.core", "wagma.trace", "wagma.scenario", "wagma.algorithms", "wagma.errors", "wagma.checks", "wagma.timing.network",
    },
    "wagma.validate": {"wagma.core", "wagma.trace", "wagma.scenario", "wagma.algorithms", "wagma.errors", "wagma.checks"},
    "wagma.report": {
        "wagma.core", "wagma.trace", "wagma.scenario", "wagma.columns", "wagma.results", "wagma.errors", "wagma.report", "wagma.scores",
        "wagma.text",
    },
    "wagma.workloads": {
        "wagma.core", "wagma.algorithms", "wagma.draws", "wagma.scenario", "wagma.scores", "wagma.errors", "wagma.workloads",
    },
    "wagma.sim": {
        "wagma.core", "wagma.algorithms", "wagma.timing", "wagma.scenario", "wagma.trace", "wagma.columns", "wagma.results",
        "wagma.errors", "wagma.workloads", "wagma.sim",
    },
    "wagma.real": {
        "wagma.core", "wagma.algorithms", "wagma.timing", "wagma.scenario", "wagma.trace", "wagma.errors",
        "wagma.workloads", "wagma.real", "wagma.draws", "wagma._native", "wagma._native_mpi", "wagma.logs", "wagma.progress",
        "wagma.files", "wagma.scores", "wagma.seeing", "wagma.text",
    },
    "wagma.studies": {
        "wagma.algorithms", "wagma.api", "wagma.columns", "wagma.core", "wagma.errors", "wagma.fitting", "wagma.progress",
        "wagma.real.bench", "wagma.report", "wagma.results", "wagma.scenario", "wagma.scores", "wagma.sim", "wagma.studies",
        "wagma.timing", "wagma.trace", "wagma.workloads",
    },
    "wagma.proof": {
        "wagma.api", "wagma.core", "wagma.errors", "wagma.proof", "wagma._proof", "wagma.scenario", "wagma.trace", "wagma.validate",
    },
    "wagma.frames": {"wagma.errors", "wagma.report.rows", "wagma.results", "wagma.studies.sweep", "wagma.trace"},
}  # fmt: skip

#: Modules that may know both worlds.
TOP = ("wagma", "wagma.cli", "wagma.api", "wagma.commands", "wagma.__main__", "wagma.testing")

HEAVY = (
    "numpy",
    "logging",
    "simpy",
    "torch",
    "mpi4py",
    "matplotlib",
    "scipy",
    "sklearn",
    "pandas",
    "pyarrow",
    "tensorboard",
    "safetensors",
)


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["wagma", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if node.module == "wagma"}
    return names


def within(name: str, parts: set[str] | tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def part_of(module: str) -> str | None:
    return max((part for part in ALLOWED if within(module, (part,))), key=len, default=None)


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module: str) -> None:
    part = part_of(module)
    if part is None:
        assert module == "wagma" or within(module, TOP[1:]), f"{module}: say in this test what it may import"
        return
    for name in imports(modules()[module]):
        if name.startswith("wagma.") and not within(name, ALLOWED[part]):
            pytest.fail(f"{module} imports {name}")


def test_core_needs_nothing_but_numpy() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "wagma"}
    for module, path in modules().items():
        if module.startswith("wagma.core"):
            assert {name.split(".")[0] for name in imports(path)} <= allowed, module


def test_import_wagma_is_light() -> None:
    code = f"import sys, wagma; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_validate_stays_the_function() -> None:
    """There is a module of that name, and whoever imports it puts it in its package."""
    code = "import sys, wagma.validate, wagma; print(wagma.validate is sys.modules['wagma.validate'].validate, callable(wagma.validate))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "True True"


def algorithm_files() -> list[Path]:
    return [p for p in sorted((ROOT / "algorithms").glob("*.py")) if p.stem not in ("__init__", "registry")]


@pytest.mark.parametrize("path", algorithm_files(), ids=lambda p: p.stem)
def test_algorithms_do_not_branch_on_outcomes(path: Path) -> None:
    """An outcome may flow into arithmetic, never into a condition: so a rank can be an array."""
    tree = ast.parse(path.read_text())
    tainted: set[str] = set()
    for _ in range(3):  # to a fixed point: names assigned from outcomes, and from such names
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                reads = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
                if isinstance(node.value, ast.Yield) or reads & tainted:
                    tainted |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert | ast.BoolOp):
            condition = node if isinstance(node, ast.BoolOp) else node.test
            names = {n.id for n in ast.walk(condition) if isinstance(n, ast.Name)}
            assert not names & tainted, f"{path.name}:{node.lineno} branches on an outcome: {sorted(names & tainted)}"
            assert not any(isinstance(n, ast.Yield) for n in ast.walk(condition)), f"{path.name}:{node.lineno}"
        assert not isinstance(node, ast.Match | ast.Try), f"{path.name}: an algorithm neither matches nor catches"


def test_the_branch_rule_would_notice() -> None:
    """The rule above has teeth: this algorithm looks at its outcome."""
    source = "def a(rank):\n    outcome = yield 1\n    if outcome.fresh:\n        yield 2\n"
    tree = ast.parse(source)
    tainted = {
        n.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for t in node.targets
        for n in ast.walk(t)
        if isinstance(n, ast.Name)
    }
    branch = next(node for node in ast.walk(tree) if isinstance(node, ast.If))
    assert {n.id for n in ast.walk(branch.test) if isinstance(n, ast.Name)} & tainted


@pytest.mark.parametrize("module", modules())
def test_files_and_functions_stay_short(module: str) -> None:
    text = modules()[module].read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{module}.{node.name}"
