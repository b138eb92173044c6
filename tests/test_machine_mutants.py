"""Every mutation of the decision machine, in both languages, is caught, or changes nothing for a reason that is written down."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import machine_equivalent
import machine_mutants_python
import pytest
from machine_answers import Asker

pytest.importorskip("tree_sitter_cpp", reason="parses the C++ sources: pip install 'wagma[dev]'")
import machine_layers
import machine_mutants
from machine_layers import Verdict
from machine_mutants import Mutant

pytestmark = pytest.mark.slow


def of_all(check: Callable[[Mutant], Verdict], mutants: list[Mutant]) -> list[Verdict]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(check, mutants))


@pytest.fixture(scope="module")
def mutants() -> list[Mutant]:
    return machine_mutants.instrument()


def test_every_mutation_has_its_name(mutants: list[Mutant]) -> None:
    assert len({mutant.key for mutant in mutants}) == len(mutants) > 600
    assert {mutant.key for mutant in mutants} > machine_equivalent.NO_PROMISE.keys()
    assert [mutant.number for mutant in mutants] == list(range(len(mutants)))
    kinds = Counter(mutant.kind for mutant in mutants)
    assert set(kinds) == {"negated", "true", "false", "boundary", "or", "and", "minus", "plus", "min", "max", "deleted"}


def test_the_machine_itself_is_not_caught() -> None:
    """Compiled with all of its mutations and none of them in force it is the machine, and answers as the Python machine does."""
    assert machine_layers.verdict(None) == Verdict("survived", "")


def test_every_mutation_is_caught_or_argued(mutants: list[Mutant]) -> None:
    """Each answers some event in some state otherwise than the Python machine, or does not end, or is in the table; none is in both."""
    machine_layers.questions()  # once, before there are threads
    found = of_all(lambda mutant: Verdict("answers", machine_layers.by_answers(mutant.number)), mutants)
    silent = {mutant.key for mutant, verdict in zip(mutants, found, strict=True) if not verdict.what}
    assert silent == set(machine_equivalent.CPP)


@pytest.mark.parametrize("one_in", [4, pytest.param(1, marks=pytest.mark.long)])
def test_python_mutations_are_caught_or_argued(one_in: int) -> None:
    """The same of wagma/core/protocol.py, whose mutants are held against the machine's answers."""
    asked, _ = machine_layers.questions()
    questions = [line for line in asked.read_text().splitlines() if not line.startswith(("schedule", "drawn"))]
    answers = list(Asker().answers(questions))
    mutants = machine_mutants_python.mutants()
    assert len({mutant.key for mutant in mutants}) == len(mutants) > 300

    def differs(mutant: machine_mutants_python.Mutant) -> bool:
        try:
            return any(one != other for one, other in zip_longest(Asker(mutant.module()).answers(questions), answers))
        except Exception:  # whatever it is, the machine does not raise it
            return True

    assert {mutant.key for mutant in mutants} > machine_equivalent.PYTHON.keys()
    chosen = mutants[::one_in]
    argued = {mutant.key for mutant in chosen} & machine_equivalent.PYTHON.keys()
    assert {mutant.key for mutant in chosen if not differs(mutant)} == argued


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_who_catches_them(mutants: list[Mutant]) -> None:
    """The explorer, else the fuzzer; what is left of the machine itself breaks no promise of theirs, and is listed."""
    machine_layers.questions()
    verdicts = of_all(lambda mutant: machine_layers.verdict(mutant.number), mutants)
    print(machine_layers.table(mutants, verdicts))
    of_layer: dict[str, set[tuple[str, str, str]]] = {layer: set() for layer in machine_layers.LAYERS}
    for mutant, verdict in zip(mutants, verdicts, strict=True):
        if "schedule" not in mutant.file or verdict.layer == "survived":
            of_layer[verdict.layer].add(mutant.key)
    assert of_layer["survived"] == set(machine_equivalent.CPP)
    assert of_layer["answers"] <= set(machine_equivalent.NO_PROMISE)
