"""Mutants of the decision machine, made from its sources: every guard negated, made always true and always false, and more.

Mutant schemata: one instrumented copy of the sources, in which a number chosen at run time (WAGMA_MUTANT) selects the one mutation that
is in force, or none. So all mutants are compiled at once. What becomes a mutant, where, is decided by the syntax tree alone:

    negated, true, false   a guard: the condition of if, while, for and ?:, an operand of && || and !, a comparison anywhere, what a
                           function of type bool returns. `a` true in `a || b`, and false in `a && b`, are the whole's, not made twice
    boundary               < for <=, <= for <, > for >=, >= for >
    or, and                && for ||, || for &&
    minus, plus            + for -, - for + (not in texts of errors)
    min, max               std::min for std::max, std::max for std::min
    deleted                an assignment (each of a chain by itself), a call or an output, a return that ends a block of several
                           statements; not what only an always false guard would leave out too

Not switched at run time: `if constexpr` (a build for one test), what initializes members and constants, steps of for loops (nothing
but endless loops come of that).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import tree_sitter_cpp
from tree_sitter import Language, Node, Parser

NATIVE = Path(__file__).resolve().parent.parent / "native"
#: What is mutated: the machine, the schedule that it asks, and what of both stands in headers.
SOURCES = ("src/protocol.cpp", "src/schedule.cpp", "include/wagma/protocol.hpp", "include/wagma/schedule.hpp")

BOUNDARY = {"<": ("less", "<="), "<=": ("less_equal", "<"), ">": ("greater", ">="), ">=": ("greater_equal", ">")}
LOGICAL = {"&&": ("both", "or"), "||": ("either", "and")}
ARITHMETIC = {"+": ("sum", "minus"), "-": ("difference", "plus")}
EXTREME = {"std::max": ("larger", "min"), "std::min": ("smaller", "max")}
COMPARISONS = (*BOUNDARY, "==", "!=")
NEVER_RETURN = ("reject", "throw")
TEXT = re.compile(r'"|\bto_string\b|\btext\(|std::string\b')

#: What the instrumented sources call. `number` is that of one mutant, -1 of none.
RUNTIME = """#pragma once
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <type_traits>

namespace mutants {

inline const int active = [] {
  const char* number = std::getenv("WAGMA_MUTANT");
  // Ten times what the machine takes in any case: a mutant that takes longer does not end.
  const rlimit seconds{3, 3}, bytes{1 << 30, 1 << 30}, core{0, 0};
  setrlimit(RLIMIT_CPU, &seconds);
  setrlimit(RLIMIT_AS, &bytes);
  setrlimit(RLIMIT_CORE, &core);
  return number == nullptr ? -2 : std::atoi(number);
}();

// What is the condition of a loop may make it endless: nothing asks a guard that often.
inline bool guard(int negated, int always, int never, bool value) {
  static long asked = 0;
  if (active != negated && active != always && active != never) return value;
  if (++asked > 20'000'000) std::abort();
  return active == negated ? !value : active == always;
}
inline bool kept(int deleted) { return active != deleted; }

template <class Left, class Right>
std::decay_t<Right> assign(int deleted, Left& left, Right&& right) {
  if (active != deleted) left = right;
  return right;
}

template <class A, class B> bool less(int n, const A& a, const B& b) { return active == n ? a <= b : a < b; }
template <class A, class B> bool less_equal(int n, const A& a, const B& b) { return active == n ? a < b : a <= b; }
template <class A, class B> bool greater(int n, const A& a, const B& b) { return active == n ? a >= b : a > b; }
template <class A, class B> bool greater_equal(int n, const A& a, const B& b) { return active == n ? a > b : a >= b; }
template <class F> bool both(int n, bool a, F b) { return active == n ? a || b() : a && b(); }
template <class F> bool either(int n, bool a, F b) { return active == n ? a && b() : a || b(); }
template <class A, class B> auto sum(int n, A a, B b) { return active == n ? a - b : a + b; }
template <class A, class B> auto difference(int n, A a, B b) { return active == n ? a + b : a - b; }
template <class T> T larger(int n, T a, std::type_identity_t<T> b) { return active == n ? std::min(a, b) : std::max(a, b); }
template <class T> T smaller(int n, T a, std::type_identity_t<T> b) { return active == n ? std::max(a, b) : std::min(a, b); }

}  // namespace mutants
"""


class CannotMutateError(Exception):
    """The source has something that the generator does not know how to switch at run time: extend it."""


@dataclass(frozen=True, order=True)
class Mutant:
    """One mutation. `where` and `text` name it for good, wherever its lines go: function, source text, which of several equal ones."""

    number: int
    where: str
    text: str
    kind: str
    file: str = field(compare=False)
    line: int = field(compare=False)

    @property
    def key(self) -> tuple[str, str, str]:
        """Function, source text, kind."""
        return self.where, self.text, self.kind

    def __str__(self) -> str:
        return f"{self.where}: {self.text}: {self.kind}"


def words(node: Node) -> str:
    """Its source, spaces as single ones."""
    return " ".join((node.text or b"").decode().split())


def unwrapped(node: Node) -> Node:
    """Without parentheses around it."""
    while node.type == "parenthesized_expression":
        node = node.named_children[0]
    return node


def part(node: Node, name: str) -> Node:
    found = node.child_by_field_name(name)
    if found is None:
        raise CannotMutateError(f"{node.type} without {name}: {words(node)}")
    return found


def operator(node: Node) -> str:
    found = node.child_by_field_name("operator")
    return words(found) if found is not None else ""


def alone_in_an_if(statement: Node) -> bool:
    """Without it the program is the one whose guard is always false, which is made anyway."""
    above = statement.parent
    if statement.type != "expression_statement" or above is None:
        return False
    if above.type == "compound_statement":
        if len(above.named_children) > 1 or above.parent is None:
            return False
        above = above.parent
    return above.type == "if_statement" and above.child_by_field_name("alternative") is None


class Source:
    """One file, instrumented."""

    def __init__(self, path: Path, name: str, first_number: int) -> None:
        self.raw = path.read_bytes()
        self.name = name
        self.mutants: list[Mutant] = []
        self._next = first_number
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._guards: dict[int, tuple[bool, bool, bool]] = {}  # node id -> which of negated, true, false are made
        tree = Parser(Language(tree_sitter_cpp.language())).parse(self.raw)
        if tree.root_node.has_error:
            raise CannotMutateError(f"{name}: cannot be parsed")
        self._function, self._returns_bool = "", False
        self.text = '#include "mutants.hpp"\n' + self._emit(tree.root_node)
        if name.endswith(".hpp"):
            self.text = "#pragma once\n" + self.text

    # -- which, and their numbers ----------------------------------------------------------------------------------------

    def _mutant(self, node: Node, kind: str) -> int:
        key = (self._function, words(node), kind)
        self._seen[key] += 1
        text = key[1] if self._seen[key] == 1 else f"{key[1]} #{self._seen[key]}"
        mutant = Mutant(self._next, self._function, text, kind, self.name, node.start_point[0] + 1)
        self.mutants.append(mutant)
        self._next += 1
        return mutant.number

    def _is_guard(self, node: Node, *, negated: bool = True, true: bool = True, false: bool = True) -> None:
        """To be told before the node is emitted; who says less says it for good."""
        inner = unwrapped(node)
        if inner.type == "declaration":
            raise CannotMutateError(f"{self.name}:{node.start_point[0] + 1}: a condition that declares: {words(node)}")
        self._guards.setdefault(inner.id, (negated, true, false))

    def _find_guards(self, node: Node) -> None:
        kind, op = node.type, operator(node)
        if kind in ("if_statement", "while_statement"):
            self._is_guard(part(part(node, "condition"), "value"))
        elif kind in ("for_statement", "conditional_expression") and node.child_by_field_name("condition") is not None:
            self._is_guard(part(node, "condition"))
        elif kind == "unary_expression" and op == "!":
            self._is_guard(node)
            self._is_guard(part(node, "argument"), negated=False, true=False, false=False)
        elif kind == "binary_expression" and op in LOGICAL:
            self._is_guard(node)
            for side in ("left", "right"):
                self._is_guard(part(node, side), true=op == "&&", false=op == "||")
        elif kind == "binary_expression" and op in COMPARISONS:
            self._is_guard(node)
        elif kind == "return_statement" and self._returns_bool and node.named_children:
            literal = node.named_children[0].type in ("true", "false")
            self._is_guard(node.named_children[0], true=not literal, false=not literal)

    # -- the text ------------------------------------------------------------------------------------------------------------

    def _emit(self, node: Node) -> str:
        if node.type == "if_statement" and any(child.type == "constexpr" for child in node.children):
            return (node.text or b"").decode()
        if node.type == "function_definition":
            return self._emit_function(node)
        self._find_guards(node)
        text = self._changed(node)
        made = self._guards.get(node.id)
        if made is None or not any(made):
            return text
        numbers = [
            self._mutant(node, kind) if wanted else -1 for kind, wanted in zip(("negated", "true", "false"), made, strict=True)
        ]
        return f"mutants::guard({', '.join(map(str, numbers))}, static_cast<bool>({text}))"

    def _emit_function(self, node: Node) -> str:
        before = self._function, self._returns_bool
        declarator = part(node, "declarator")
        while declarator.type != "function_declarator":  # a reference or a pointer to what it returns
            declarator = declarator.named_children[-1]
        scope, above = [words(part(declarator, "declarator"))], node.parent
        while above is not None:
            if above.type in ("class_specifier", "struct_specifier"):
                scope.insert(0, words(part(above, "name")))
            above = above.parent
        kind = node.child_by_field_name("type")
        self._function, self._returns_bool = "::".join(scope), kind is not None and words(kind) == "bool"
        count = len(self.mutants)
        text = self._copied(node, [c for c in node.children if c.type != "default_method_clause"])
        if len(self.mutants) > count:  # what is chosen at run time is no constant
            text = re.sub(r"\bconstexpr (?=\w+ \w+\()", "", text, count=1)
        self._function, self._returns_bool = before
        return text

    def _copied(self, node: Node, emitted: Iterable[Node] | None = None) -> str:
        """The node's source with its children (or only some) emitted in place."""
        emit = {child.id for child in (node.children if emitted is None else emitted)}
        text, at = "", node.start_byte
        for child in node.children:
            inner = self._emit(child) if child.id in emit else (child.text or b"").decode()
            text += self.raw[at : child.start_byte].decode() + inner
            at = child.end_byte
        return text + self.raw[at : node.end_byte].decode()

    def _changed(self, node: Node) -> str:
        kind, op = node.type, operator(node)
        if not self._function or not node.children:
            return self._copied(node)
        if kind == "field_initializer_list":
            return (node.text or b"").decode()
        if kind == "for_statement":
            return self._copied(node, [c for c in node.children if c != node.child_by_field_name("update")])
        if kind == "binary_expression":
            left, right = part(node, "left"), part(node, "right")
            if op in BOUNDARY:
                call, other = BOUNDARY[op]
                return f"mutants::{call}({self._mutant(node, 'boundary')}, {self._emit(left)}, {self._emit(right)})"
            if op in LOGICAL:
                call, other = LOGICAL[op]
                first, number = self._emit(left), self._mutant(node, other)
                return f"mutants::{call}({number}, {first}, [&] {{ return static_cast<bool>({self._emit(right)}); }})"
            if op in ARITHMETIC and not TEXT.search(words(node)):
                call, other = ARITHMETIC[op]
                return f"mutants::{call}({self._mutant(node, other)}, {self._emit(left)}, {self._emit(right)})"
        if kind == "call_expression" and words(part(node, "function")) in EXTREME:
            call, other = EXTREME[words(part(node, "function"))]
            arguments = ", ".join(map(self._emit, part(node, "arguments").named_children))
            return f"mutants::{call}({self._mutant(node, other)}, {arguments})"
        if kind == "assignment_expression" and op == "=":
            left, right = part(node, "left"), part(node, "right")
            if node.parent is not None and right.type != "assignment_expression" and alone_in_an_if(node.parent):
                return f"{self._emit(left)} = {self._emit(right)}"
            return f"mutants::assign({self._mutant(node, 'deleted')}, {self._emit(left)}, {self._emit(right)})"
        if kind == "expression_statement" and self._is_deleted_whole(node):
            return f"{{ if (mutants::kept({self._mutant(node, 'deleted')})) {{ {self._copied(node)} }} }}"
        if kind == "return_statement" and self._ends_a_block(node):
            return f"{{ if (mutants::kept({self._mutant(node, 'deleted')})) {{ {self._copied(node)} }} }}"
        return self._copied(node)

    @staticmethod
    def _is_deleted_whole(statement: Node) -> bool:
        expression = statement.named_children[0] if statement.named_children else statement
        if alone_in_an_if(statement):
            return False
        if expression.type == "assignment_expression":
            return operator(expression) != "="
        if expression.type == "call_expression":
            return words(part(expression, "function")) not in NEVER_RETURN
        return expression.type == "update_expression"

    @staticmethod
    def _ends_a_block(statement: Node) -> bool:
        block = statement.parent
        if block is None or block.type != "compound_statement" or len(block.named_children) < 2:
            return False
        return block.parent is not None and block.parent.type in ("if_statement", "else_clause")


def instrument(into: Path | None = None) -> list[Mutant]:
    """All mutants; with a folder, the instrumented sources are written there: src/*.cpp, include/wagma/*.hpp, include/mutants.hpp."""
    mutants: list[Mutant] = []
    for name in SOURCES:
        source = Source(NATIVE / name, name, len(mutants))
        mutants += source.mutants
        if into is not None:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_text(source.text)
    if into is not None:
        (into / "include" / "mutants.hpp").write_text(RUNTIME)
    return mutants
