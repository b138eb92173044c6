"""What README and docs show runs as printed: Python blocks, `wagma` commands, links."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / name for name in ("native/README.md", "CONTRIBUTING.md", "CHANGELOG.md")]  # links only


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def all_blocks(language: str) -> list[tuple[str, int, str]]:
    return [(page.name, n, text) for page in PAGES for n, text in enumerate(blocks(page, language))]


@pytest.mark.mpi
@pytest.mark.parametrize(("page", "number", "code"), all_blocks("python"))
def test_python_blocks_run(page: str, number: int, code: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(code)
    parallel = "distribute(" in code or "MPI." in code
    start = ["mpiexec", "-n", "2", sys.executable, "-m", "mpi4py"] if parallel else [sys.executable]
    processes.run([*start, str(program)], tmp_path)


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [line[2:].split("#")[0].strip() for line in lines]


@pytest.mark.mpi
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    for command in commands(page):
        words = command.split()
        if words[0] == "make":  # these run this test; that the targets exist is what can be checked here
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
            continue
        assert words[0] == "wagma", f"{page.name}: {command}: this test does not know how to run it"
        processes.run([sys.executable, "-m", *words], tmp_path)


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)?(?:#[^)]*)?\)", page.read_text()):
        if target and "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_map_of_the_tree_is_true() -> None:
    """Every name in README's map exists, and every part of the package is on it."""
    text = (ROOT / "README.md").read_text()
    tree = text.partition("## Map\n\n```\n")[2].partition("```")[0]
    assert tree
    for name in re.findall(r"[a-z_]+\.py|[a-z_]+/", tree):
        places = [ROOT / name, ROOT / "wagma" / name, ROOT / "native" / name]
        assert any(place.exists() for place in places), name
    for path in (ROOT / "wagma").iterdir():
        if path.is_dir() and not path.name.startswith(("_", ".")):
            assert f"{path.name}/" in text, path.name
