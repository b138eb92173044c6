"""wagma/_native.pyi and _proof.pyi, which types are checked against, name what the modules have, and nothing else."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import wagma

pytest.importorskip("wagma._native")


def stubbed(body: list[ast.stmt]) -> dict[str, set[str]]:
    """Name -> names inside, of classes; names that begin with an underscore are the stub's own."""
    names: dict[str, set[str]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = set(stubbed(node.body))
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = set()
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = set()
    return {name: inside - {"__init__"} for name, inside in names.items() if not name.startswith("_")}


def present(module: ModuleType) -> dict[str, set[str]]:
    """The same of the module itself."""
    return {
        name: {inside for inside in vars(value) if not inside.startswith("_")} if inspect.isclass(value) else set()
        for name, value in vars(module).items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize("name", ["_native", "_proof"])
def test_the_stub_is_in_step(name: str) -> None:
    text = Path(wagma.__file__).with_name(f"{name}.pyi").read_text()
    assert stubbed(ast.parse(text).body) == present(import_module(f"wagma.{name}"))
