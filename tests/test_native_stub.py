"""wagma/_native.pyi, which types are checked against, names what the kernel's module has, and nothing else."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import wagma

native = pytest.importorskip("wagma._native")


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


def test_the_stub_is_in_step() -> None:
    text = Path(wagma.__file__).with_name("_native.pyi").read_text()
    assert stubbed(ast.parse(text).body) == present(native)
