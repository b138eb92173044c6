"""Mutants of the Python decision machine, made from its syntax tree: the same kinds as machine_mutants.py makes of the C++ one."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

from wagma.core import protocol

BOUNDARY: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], str]] = {ast.Add: (ast.Sub, "minus"), ast.Sub: (ast.Add, "plus")}
EXTREME = {"max": "min", "min": "max"}


class Mutant(NamedTuple):
    where: str
    text: str
    kind: str
    module: Callable[[], ModuleType]  # the machine with this mutation

    @property
    def key(self) -> tuple[str, str, str]:
        return self.where, self.text, self.kind

    def __str__(self) -> str:
        return f"{self.where}: {self.text}: {self.kind}"


class Change(NamedTuple):
    """Put `new` where the node is: in the field of its parent, at that place if the field is a list."""

    parent: ast.AST
    field: str
    place: int | None
    new: ast.AST


def changes(function: ast.AST) -> Iterator[tuple[str, str, Change]]:
    """Source text, kind and what to change, for each mutation in a function."""
    for parent in ast.walk(function):
        for field, value in ast.iter_fields(parent):
            for place, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.AST):
                    for kind, new in mutations(parent, field, place, node):
                        yield " ".join(ast.unparse(node).split()), kind, Change(parent, field, place, new)


def mutations(parent: ast.AST, field: str, place: int | None, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.expr):
        if is_guard(parent, field, place, node):
            made = {
                "negated": ast.UnaryOp(ast.Not(), node),
                "true": ast.Constant(value=True),
                "false": ast.Constant(value=False),
            }
            if isinstance(parent, ast.BoolOp):  # the other one is that of the whole
                del made["false" if isinstance(parent.op, ast.And) else "true"]
            yield from made.items()
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in BOUNDARY:
            yield "boundary", ast.Compare(node.left, [BOUNDARY[type(node.ops[0])]()], node.comparators)
        if isinstance(node, ast.BoolOp):
            yield (
                "or" if isinstance(node.op, ast.And) else "and",
                ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values),
            )
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            other, kind = ARITHMETIC[type(node.op)]
            yield kind, ast.BinOp(node.left, other(), node.right)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXTREME:
            yield EXTREME[node.func.id], ast.Call(ast.Name(EXTREME[node.func.id]), node.args, node.keywords)
        if isinstance(parent, ast.Assign) and field == "targets":
            if isinstance(node, ast.Tuple) or len(parent.targets) > 1:
                yield "deleted", ast.Name("_", ast.Store())
        elif isinstance(parent, ast.Tuple) and isinstance(getattr(node, "ctx", None), ast.Store):
            yield "deleted", ast.Name("_", ast.Store())
    elif isinstance(node, ast.stmt) and is_deleted(parent, field, node):
        yield "deleted", ast.Pass()


def is_guard(parent: ast.AST, field: str, place: int | None, node: ast.expr) -> bool:
    if isinstance(node, ast.Constant) or isinstance(parent, ast.UnaryOp):
        return False
    condition = isinstance(parent, ast.If | ast.While | ast.IfExp) and field == "test"
    required = isinstance(parent, ast.Call) and place == 0 and ast.unparse(parent.func) == "self._require"
    truth = isinstance(node, ast.Compare | ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
    return condition or required or truth or isinstance(parent, ast.BoolOp)


def is_deleted(parent: ast.AST, field: str, node: ast.stmt) -> bool:
    """Not what an always false guard, or an always true requirement, leaves out too."""
    block = getattr(parent, field)
    alone = isinstance(parent, ast.If) and field == "body" and len(block) == 1 and not parent.orelse
    if isinstance(node, ast.Expr):
        call = ast.unparse(node)
        return not alone and isinstance(node.value, ast.Call) and not call.startswith(("self._refuse", "self._require"))
    if isinstance(node, ast.Assign):
        return not alone and any(
            isinstance(n, ast.Attribute | ast.Subscript) for target in node.targets for n in ast.walk(target)
        )
    return isinstance(node, ast.Return) and isinstance(parent, ast.If) and not alone


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{f.name}", f) for f in node.body if isinstance(f, ast.FunctionDef))


def module_of(tree: ast.Module, change: Change) -> ModuleType:
    """The module with one change, which is taken back before this returns: all mutants share one tree."""
    old = getattr(change.parent, change.field)
    new = change.new
    if change.place is not None:
        new = copy.copy(old)
        new[change.place] = change.new
    setattr(change.parent, change.field, new)
    try:
        code = compile(ast.fix_missing_locations(tree), protocol.__file__, "exec")
    finally:
        setattr(change.parent, change.field, old)
    module = ModuleType("wagma.core.protocol")
    FunctionType(code, vars(module))()
    return module


def mutants() -> list[Mutant]:
    """All of wagma/core/protocol.py."""
    tree = ast.parse(Path(protocol.__file__).read_text())
    found: list[Mutant] = []
    for name, function in functions(tree):
        seen: Counter[tuple[str, str]] = Counter()
        for text, kind, change in list(changes(function)):
            seen[text, kind] += 1
            count = seen[text, kind]
            named = text if count == 1 else f"{text} #{count}"
            found.append(Mutant(name, named, kind, lambda change=change: module_of(tree, change)))
    return found
