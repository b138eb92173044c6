"""native/README.md: its code is that of the examples, which ctest runs, and its ways of building and linking work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import native_programs
import pytest

from wagma.core.protocol import Machine
from wagma.core.schedule import Schedule

ROOT = native_programs.ROOT
NATIVE = ROOT / "native"
README = NATIVE / "README.md"
EXAMPLES = sorted((NATIVE / "examples").glob("*.cpp"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def lines(text: str) -> str:
    """The text without what depends on how deep it stands."""
    return "\n".join(line.strip() for line in text.strip().splitlines()) + "\n"


@pytest.mark.parametrize("block", blocks("cpp"))
def test_code_is_that_of_an_example(block: str) -> None:
    assert any(lines(block) in lines(example.read_text()) for example in EXAMPLES)


def test_every_example_and_benchmark_is_mentioned() -> None:
    text = README.read_text()
    for path in EXAMPLES:
        assert f"examples/{path.name}" in text
    for path in (NATIVE / "bench").glob("bench_*.cpp"):
        assert f"`{path.stem}`" in text
    for folder in NATIVE.iterdir():
        assert not folder.is_dir() or f"{folder.name}/" in text, folder.name


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def build_program(cmake_block: str, folder: Path, *options: str) -> None:
    """Build the example with processes as README's block says, and run it."""
    cmake, ninja = native_programs.tool("cmake"), native_programs.tool("ninja")
    (folder / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.24)\nproject(program LANGUAGES CXX)\n{cmake_block}"
    )
    shutil.copy(NATIVE / "examples" / "processes.cpp", folder / "program.cpp")
    run(cmake, "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options, cwd=folder)
    run(cmake, "--build", "build", cwd=folder)
    models = re.findall(r"^rank \d: model ([\d.]+)$", run("build/program", cwd=folder), re.MULTILINE)
    assert len(models) == 4
    assert len(set(models)) == 1


def test_an_installed_kernel_can_be_linked(tmp_path: Path) -> None:
    native_programs.program("wagma_kernel")
    installed, user = tmp_path / "installed", tmp_path / "user"
    user.mkdir()
    run(native_programs.tool("cmake"), "--install", native_programs.BUILD, "--prefix", installed, cwd=tmp_path)
    assert not list(installed.rglob("*_mpi.hpp"))
    build_program(blocks("cmake")[0], user, f"-DCMAKE_PREFIX_PATH={installed}")


def tree(folder: Path) -> None:
    """What of a clone the kernel's build needs."""
    shutil.copytree(NATIVE, folder / "native")
    shutil.copy(ROOT / "pyproject.toml", folder)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_commands_build_and_install(tmp_path: Path) -> None:
    tree(tmp_path)
    (commands,) = blocks("sh")
    for command in commands.splitlines():
        first, *words = command.split()
        assert first == "cmake"
        run(native_programs.tool(first), *words, cwd=tmp_path)
    assert list((tmp_path / "build/installed").rglob("wagmaConfig.cmake"))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_kernel_can_be_part_of_another_project(tmp_path: Path) -> None:
    (tmp_path / "wagma").mkdir()
    tree(tmp_path / "wagma")
    build_program(blocks("cmake")[1], tmp_path)
    assert not (tmp_path / "build" / "wagma" / "native" / "test_engine").exists()


def roles(machine: Machine) -> str:
    """The cells of a row: what each buffer is."""
    names = ("live", "published", "reading", "target", "result", "merging")
    cells = ["+".join(name for name in names if getattr(machine, name) == buffer) for buffer in range(3)]
    return " | ".join(cell or "free" for cell in cells)


def roles_table() -> list[str]:
    """A rank of two that comes first, and then is late: docs/kernel.md shows it."""
    machines = [
        Machine(0, Schedule(world_size=2, group_size=2, sync_period=0), resident=resident) for resident in (False, True)
    ]
    course: list[tuple[str, list[tuple[str, tuple[int, ...]]]]] = [
        ("the beginning", []),
        ("arrives first, publishes: the version starts", [("arrive", (0,))]),
        ("the sum is there: fresh", [("exec_done", (0,))]),
        ("peers have read, merged: computes", [("read_done", ()), ("merge_done", ())]),
        ("meanwhile a version starts without it", [("activation", (1, 0))]),
        ("the sum is there, peers have read", [("exec_done", (1,)), ("read_done", ())]),
        ("arrives, publishes: late", [("arrive", (1,))]),
        ("merged", [("merge_done", ())]),
    ]
    rows = []
    for what, events in course:
        for machine in machines:
            for event, arguments in events:
                getattr(machine, event)(*arguments)
        rows.append(f"| {what} | {' | '.join(roles(machine) for machine in machines)} |")
    return rows


def test_the_roles_of_buffers_are_those_of_the_machine() -> None:
    text = (ROOT / "docs" / "kernel.md").read_text()
    for row in roles_table():
        assert row in text


def test_one_place_knows_the_transports() -> None:
    """docs/kernel.md says where a transport is added: the rest of the kernel knows the interface only."""
    for path in [*(NATIVE / "src").iterdir(), *(NATIVE / "include" / "wagma").iterdir()]:
        if not re.match(r"transport_|connect_|exchange_|cuda_mpi|node|segment|chunks", path.stem):
            included = re.findall(r'#include "(?:wagma/)?(\w+)\.hpp"', path.read_text())
            assert not [name for name in included if re.match(r"transport_|exchange_|node|segment|chunks", name)], path.name
    chosen = re.compile(r"native\(\)\.(Node|connect)\b|\.make_transport\(")
    places = {path.name for path in (ROOT / "wagma").rglob("*.py") if chosen.search(path.read_text())}
    assert places == {"connect.py"}
