"""The checks that a mutant of the decision machine has to pass, one after the other, and who catches it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import machine_mutants
import native_programs
import pytest
from machine_answers import Asker
from machine_mutants import NATIVE, Mutant

BUILD = native_programs.ROOT / "build" / "machine-mutants"
PROGRAMS = ("explorer", "fuzzer", "machine_answers")


def models(ranks: int, group_size: int, sync_period: int, iterations: str, *options: object) -> list[str]:
    named = ("--ranks", ranks, "--group-size", group_size, "--sync-period", sync_period, "--iterations", iterations)
    return [*map(str, (*named, *options))]


def gradients(ranks: int, sync_period: int, iterations: str, initiators: int = 0, seed: int = 0, *options: object) -> list[str]:
    chosen = ("--initiators", initiators, "--seed", seed) if initiators else ()
    return models(ranks, ranks, sync_period, iterations, "--accumulate", *chosen, *options)


#: What the explorer goes through, cheapest first; the machines of those up to ASKED are asked everything in each of their states.
CASES = [
    models(1, 1, 2, "3"),
    models(2, 2, 3, "4,2", "--merge-once"),
    models(2, 2, 3, "4,2", "--merge-once", "--resident"),
    gradients(2, 3, "5,2", 1),
    models(3, 2, 2, "3,1,2"),
    models(3, 3, 2, "2", "--no-groups"),
    models(2, 2, 3, "4", "--resident"),
    gradients(2, 3, "4"),
    models(3, 2, 2, "2,0,1", "--initiators", 1, "--seed", 1),
    gradients(3, 2, "3,2,1", 1, 1),
    models(3, 2, 3, "3,1,2", "--initiators", 1, "--seed", 1),
    models(2, 2, 3, "5"),
    models(2, 1, 0, "3,1", "--resident"),
    gradients(2, 0, "5"),
    models(3, 2, 2, "3", "--resident", "--merge-once"),
    gradients(3, 3, "4,1,1"),
    gradients(3, 2, "3,2,0"),
    gradients(3, 3, "3,1,2", 2),
    models(4, 2, 2, "2,2,1,1"),
    models(4, 4, 2, "2,2,1,0", "--resident"),
    gradients(4, 2, "2,1,1,0", 1, 3),
    models(5, 5, 0, "1,0,1,0,0"),
]
ASKED = 9
STATES = 400  # of each of these cases
FUZZED = (
    ("--seeds", "0:300"),
    ("--seeds", "0:40", "--two-activators"),
)  # see native/tools/fuzzer.hpp: the P = 7 that strands a rank
MAX_STATES = 60_000  # several times as many as the largest case has; a mutant that has more is left to the next check
CPU_S = {
    "explorer": 5,
    "fuzzer": 5,
    "machine_answers": 2,
}  # ten times what the machine takes; a mutant that takes longer does not end
MEMORY = 1 << 30


# -- programs ---------------------------------------------------------------------------------------------------------------


def compiler() -> str:
    return os.environ.get("CXX") or native_programs.tool("c++")


@cache
def built() -> Path:
    """The folder of the instrumented programs, which are compiled if any of their sources has changed."""
    tools = sorted((NATIVE / "tools").glob("*.[ch]pp"))
    sources = [
        *tools,
        *sorted((NATIVE / "include" / "wagma").glob("*.hpp")),
        *(NATIVE / name for name in machine_mutants.SOURCES),
    ]
    sources += [NATIVE / "tests" / "machine_answers.cpp", Path(machine_mutants.__file__)]
    digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()[:16]
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest may run in several processes
        folder = BUILD / digest
        if not all((folder / name).exists() for name in PROGRAMS):
            compile_into(folder)
            folders = sorted(filter(Path.is_dir, BUILD.iterdir()), key=lambda path: path.stat().st_mtime)
            for old in folders[:-3]:  # the newest may be in use
                shutil.rmtree(old)
    return folder


def compile_into(folder: Path) -> None:
    machine_mutants.instrument(folder / "source")
    own = [folder / "source" / name for name in machine_mutants.SOURCES if name.endswith(".cpp")]
    tools = list((NATIVE / "tools").glob("*.cpp"))
    includes = [f"-I{path}" for path in (folder / "source" / "include", NATIVE / "include", NATIVE / "tools")]
    flags = ["-std=c++20", "-O1", "-D_GLIBCXX_ASSERTIONS", *includes]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        command = [compiler(), *flags, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}\n{done.stderr}")
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*own, *tools, NATIVE / "tests" / "machine_answers.cpp"]))
    shared = [path for path in objects[:-1] if not path.stem.endswith("_main")]
    for name in PROGRAMS:
        main = folder / (f"{name}.o" if name == "machine_answers" else f"{name}_main.o")
        used = objects[: len(own)] if name == "machine_answers" else shared
        subprocess.run([compiler(), *map(str, {*used, main}), "-pthread", "-o", str(folder / name)], check=True)


class Ran(NamedTuple):
    status: int
    said: str


def run(program: str, mutant: int | None, *arguments: object) -> Ran:
    """A program with that mutant in force, or none. It may crash, or be ended by its limits of time and memory."""
    environment = os.environ | {"WAGMA_MUTANT": str(-2 if mutant is None else mutant)}
    command = [str(built() / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return Ran(done.returncode, done.stdout or done.stderr)


# -- questions ----------------------------------------------------------------------------------------------------------------


def number(arguments: list[str], option: str) -> int:
    return int(arguments[arguments.index(option) + 1]) if option in arguments else 0


def settings(case: list[str]) -> list[int]:
    P, S, T, m, seed = (number(case, f"--{name}") for name in ("ranks", "group-size", "sync-period", "initiators", "seed"))
    return [P, S, T, "--no-groups" not in case, 0, m, seed, "--accumulate" in case, 0]


def questions_of(case: list[str], first_machine: int, edges: Path) -> tuple[str, list[str]]:
    """The machines of a case, and the states of theirs that the explorer meets, of many of them some."""
    ran = run("explorer", None, *case, "--edges", edges)
    assert ran.status == 0, ran
    iterations = map(int, case[case.index("--iterations") + 1].split(","))
    versions = max(iterations) * (1 if "--no-groups" not in case else number(case, "--sync-period"))
    numbers = (*settings(case), "--merge-once" in case, "--resident" in case, versions)
    met = set()
    for line in edges.read_text().splitlines():
        rank, before, _, _, after = line.split(";")
        met |= {f"state {first_machine + int(rank)} {state}" for state in (before, after)}
    states = sorted(met)
    random.Random(1).shuffle(states)
    return f"machine {' '.join(str(int(n)) for n in numbers)}", states[:STATES]


def questions_of_schedules() -> Iterator[str]:
    yield from (f"shape {ranks}" for ranks in range(-1, 20))
    for ranks in range(1, 13):
        for size in range(1, ranks + 1):
            yield f"schedule {ranks} {size} {4 * (size % 3)} 1 {int((ranks + size) % 5 == 0)} 0 0 0 {ranks % 5} 13"
    for ranks in (2, 3, 4, 7):
        yield from (f"schedule {ranks} {ranks} {m + 1} 1 0 {m} {m * 77 + ranks} 1 0 9" for m in range(ranks + 1))
        yield from (f"schedule {ranks} {ranks} {period} 0 0 1 5 0 {begin} 9" for period in (1, 2, 3) for begin in (0, 4))
    # Worlds so large that the carry of a scaled draw counts.
    yield from (f"drawn {(1 << 31) - 1 - seed} 3 {seed} {version}" for seed in (0, 9) for version in range(8))
    good = [3, 2, 2, 1, 0, 1, 5, 0, 0]
    for place, wrong in ((0, 0), (0, -1), (1, 0), (1, 4), (2, -1), (5, -1), (5, 4), (6, -1), (8, -1)):
        yield f"schedule {' '.join(str(wrong if i == place else n) for i, n in enumerate(good))} 1"
    yield from ("schedule 3 2 0 0 0 0 0 0 0 1", "schedule 3 2 2 0 0 0 0 1 0 1", "schedule 1 1 1 1 0 1 0 0 0 3")


def questions_of_misuse() -> Iterator[str]:
    """Machines that are not to be made, and states that are not theirs."""
    yield "machine 0 1 2 1 0 0 0 0 0 0 0 1"
    yield "machine 2 2 2 1 0 0 0 1 0 0 1 1"
    yield "machine 2 2 0 1 0 0 0 0 0 0 0 1"
    yield "state 0 0 -1 3"
    # Every buffer has a role, which no run comes to: a version that starts then has no target, and what is said names the roles.
    yield "state 0 0 -1 -1 -1 -1 0 -1 -1 -1 -1 0 -2 -1 0 1 -1 -1 -1 -1 2 -1 -1"
    yield "machine 2 2 3 1 0 0 0 1 4 0 0 1"
    yield "machine 3 2 2 1 0 0 0 0 4 0 1 1"
    yield from (f"rank {rank}" for rank in (-1, 0, 2, 3))


@cache
def questions() -> tuple[Path, Path]:
    """The file of the questions, and that of the answers that the Python machine gives. What is alike is asked far apart."""
    folder = built()
    first = list(questions_of_misuse())
    rest = list(questions_of_schedules())
    for case in CASES[:ASKED]:
        asker = Asker()
        list(asker.answers(first))
        machine, states = questions_of(case, len(asker.machines), folder / "edges")
        first.append(machine)
        rest += states
    random.Random(2).shuffle(rest)
    asked, answered = folder / "questions", folder / "answers"
    asked.write_text("".join(f"{line}\n" for line in (*first, *rest)))
    answered.write_text("".join(f"{answer}\n" for answer in Asker().answers((*first, *rest))))
    return asked, answered


# -- layers -------------------------------------------------------------------------------------------------------------------


#: refusals: an event that has to be refused is not, or in other words; answers: something else that only the Python machine says.
LAYERS = ("explorer", "fuzzer", "refusals", "answers", "survived")


class Verdict(NamedTuple):
    layer: str  # of LAYERS
    what: str


def by_program(program: str, mutant: int | None, arguments: list[str]) -> str:
    """What is wrong; empty: nothing."""
    ran = run(program, mutant, *arguments)
    if ran.status < 0:
        return f"signal {-ran.status}"
    if not ran.said.startswith("{"):
        return ran.said.splitlines()[0]
    said = json.loads(ran.said)
    return str(said["violation"]) if said["result"] == "violation" else ""


def by_explorer(mutant: int | None, cases: list[list[str]] = CASES) -> str:
    for case in cases:
        if wrong := by_program("explorer", mutant, [*case, "--max-states", str(MAX_STATES)]):
            return wrong
    return ""


def by_fuzzer(mutant: int | None) -> str:
    return next(filter(None, (by_program("fuzzer", mutant, list(seeds)) for seeds in FUZZED)), "")


def by_answers(mutant: int | None) -> str:
    """The first answer that is not the Python machine's, and that one."""
    ran = run("machine_answers", mutant, *questions())
    if ran.status < 0:
        return f"signal {-ran.status}"
    return ran.said if ran.status else ""


def verdict(mutant: int | None) -> Verdict:
    """Who is the first to catch it."""
    if wrong := by_explorer(mutant):
        return Verdict("explorer", wrong)
    if wrong := by_fuzzer(mutant):
        return Verdict("fuzzer", wrong)
    wrong = by_answers(mutant)
    if not wrong:
        return Verdict("survived", "")
    return Verdict("refusals" if " refused" in wrong.partition("\n")[0] else "answers", wrong)


def table(mutants: list[Mutant], verdicts: list[Verdict]) -> str:
    """How many there are, by kind and by file, and who is the first to catch them."""
    lines = [f"{'':<32}{''.join(f'{layer:>10}' for layer in ('all', *LAYERS))}"]
    by_group: dict[str, list[str]] = {}
    for mutant, found in zip(mutants, verdicts, strict=True):
        for group in ("all", mutant.file, mutant.kind):
            by_group.setdefault(group, []).append(found.layer)
    for group, layers in by_group.items():
        counts = [len(layers), *(layers.count(layer) for layer in LAYERS)]
        lines.append(f"{group:<32}{''.join(f'{count:>10}' for count in counts)}")
    return "\n".join(lines)
