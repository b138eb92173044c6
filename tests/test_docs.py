"""What README and docs show runs as printed: Python blocks, `wagma` commands, links."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import processes
import pytest

from wagma.algorithms import ALGORITHMS, Collectives
from wagma.cli import main, parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / name for name in ("native/README.md", "CONTRIBUTING.md", "CHANGELOG.md")]  # links only


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


#: Python blocks by page and number; those that need ranks are run on two.
PROGRAMS = {f"{page.stem}.{n}.py": text for page in PAGES for n, text in enumerate(blocks(page, "python"))}
PARALLEL = [name for name, code in PROGRAMS.items() if "distribute(" in code or "MPI." in code]
ALONE = [name for name in PROGRAMS if name not in PARALLEL]


def through(names: list[str], folder: Path, *start: str) -> str:
    """The output of all these programs in one interpreter (for each rank). A failure's traceback names the file and the line."""
    for name in names:
        (folder / name).write_text(PROGRAMS[name])
    return processes.run([*start, str(ROOT / "tests" / "run_blocks.py"), *names], folder)


def test_python_blocks_run(tmp_path: Path) -> None:
    output = through(ALONE, tmp_path, sys.executable)
    for name in ALONE:
        assert f"through: {name}" in output


@pytest.mark.mpi
def test_python_blocks_run_on_ranks(tmp_path: Path) -> None:
    output = through(PARALLEL, tmp_path, "mpiexec", "-n", "2", sys.executable, "-m", "mpi4py")
    for name in PARALLEL:
        assert output.count(f"through: {name}") == 2


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [line[2:].split("#")[0].strip() for line in lines]


#: What takes long in a command depends on its size alone, or goes into starting a process for each core: whether it runs can be seen
#: with less.
SMALLER = [
    (r"(--iterations |iterations=)\d+", r"\g<1>20"),
    (r"--ranks 1024", "--ranks 64"),
    (r"-n 4(?!.*--times)", "-n 2"),  # times are for a simulation of as many ranks
    (r"^wagma (sweep|compare) .*", r"\g<0> --jobs 1"),
    (r"^(wagma fuzz --seeds) \d+", r"\g<1> 500"),
]


def smaller(command: str) -> str:
    if command.startswith("wagma explore "):  # as small as its case: each rank's number of iterations says what is searched
        return command
    for pattern, text in SMALLER:
        command = re.sub(pattern, text, command)
    sized = not re.match("wagma (simulate|train|compare) ", command) or "iterations" in command
    return command if sized else f"{command} --iterations 3"


def run_command(command: str, folder: Path) -> None:
    first, *words = shlex.split(command)
    if first == "make":  # these run this test; that the targets exist is what can be checked here
        assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text()
    elif "--real" in words:  # a job for each seed: minutes; a small form of them is run below
        parser().parse_args(words)
    elif first == "wagma" and words[0] not in ("train", "demo", "bench"):
        assert main(words) == 0, command
    else:
        assert first in ("wagma", "python", "mpiexec"), f"{command}: this test does not know how to run it"
        processes.run([sys.executable, "-m", first, *words] if first == "wagma" else [first, *words], folder)


def pages_with_commands() -> list[object]:
    """Pages, marked if one of their commands starts ranks."""
    ranks = re.compile(r"^(wagma train|mpiexec|python)")
    marks = {True: [pytest.mark.mpi], False: []}
    return [pytest.param(p, id=p.name, marks=marks[any(map(ranks.match, commands(p)))]) for p in PAGES if commands(p)]


@pytest.mark.parametrize("page", pages_with_commands())
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("examples", "tools"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        run_command(smaller(command), tmp_path)


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_run_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("examples", "tools"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        run_command(command, tmp_path)


REAL = sorted({command for page in PAGES for command in commands(page) if "--real" in command.split()})


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", REAL)
def test_comparisons_on_real_ranks_run(command: str, tmp_path: Path) -> None:
    """As printed, but of one seed and few iterations: every algorithm gets a line, and pictures and files are where they were asked for."""
    words = shlex.split(command)
    if "rl" in words:
        pytest.importorskip("gymnasium")
    for option in ("--plot", "--json", "--csv"):
        if option in words:
            (tmp_path / words[words.index(option) + 1]).parent.mkdir(parents=True, exist_ok=True)
    small = ["--iterations", "4", "--every", "2", "--seeds", "1", "--json", "small.json"]
    output = processes.run([sys.executable, "-m", "wagma", *words[1:], *small], tmp_path, timeout=240)
    found = json.loads((tmp_path / "small.json").read_text())
    asked = parser().parse_args(words[1:]).algorithms
    names = (
        asked.split(",") if asked else [name for name, spec in ALGORITHMS.items() if spec.collectives is not Collectives.NONE]
    )
    assert [line["label"] for line in found["lines"]] == names
    for line in found["lines"]:
        assert line["label"] in output
        (only,) = line["runs"]
        assert [point["iterations"] for point in only["curve"]] == [0, 2, 4]
    if "--plot" in words:
        assert (tmp_path / words[words.index("--plot") + 1]).read_bytes().startswith(b"\x89PNG")


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub has it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, _, place in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", page.read_text()):
        if "://" not in target:
            to = page.parent / target if target else page
            assert to.exists(), f"{page.name}: {target}"
            assert not place or place in anchors(to), f"{page.name}: {target}#{place}"


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
