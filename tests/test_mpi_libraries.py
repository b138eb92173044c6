"""MPICH, Open MPI, and what is said where they meet: an extension of one beside mpi4py on the other, an mpiexec of the wrong one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from mpi_launch import mpiexec

from wagma.real import library
from wagma.real.launching.manager import BLOCK_LIMIT, Manager
from wagma.real.library import Library

ROOT = Path(__file__).parent.parent
#: The environments of `make setup` and `make setup-openmpi`: their folder, and what their libraries and extensions are called.
ENVIRONMENTS = {
    "MPICH": (".venv", "MPICH Version: 5.", "libmpi.so.12"),
    "Open MPI": (".venv-openmpi", "Open MPI v5.", "libmpi.so.40"),
}


def python_and_extension(family: str) -> tuple[Path, Path]:
    folder = ROOT / ENVIRONMENTS[family][0]
    extensions = sorted(folder.glob("lib/python*/site-packages/wagma/_native_mpi*.so"))
    if not extensions:
        pytest.skip(f"{folder.name} is not set up")
    return folder / "bin" / "python", extensions[0]


@pytest.mark.mpi
@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [("MPICH", "Open MPI"), ("Open MPI", "MPICH")])
def test_extension_of_another_mpi_is_refused_on_every_rank(
    ours: str, theirs: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are real: the extension of one environment, in ranks of the other, and `found`: its library is on the system, too."""
    python, _ = python_and_extension(theirs)
    other, extension = python_and_extension(ours)
    if found:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(other.parent.parent / "lib"))
    job = mpiexec(3, "other_library.py", str(extension), timeout=30, python=str(python))
    assert job.returncode == 0, job.output
    refused = re.findall(r"^rank \d: refused: rank 0: (.*)$", job.output, re.MULTILINE)
    assert len(refused) == 3, job.output
    assert len(set(refused)) == 1
    needed = "" if found else f" ({ENVIRONMENTS[ours][2]})"
    built = f"wagma._native_mpi was built against {ours}{needed}, mpi4py has opened {ENVIRONMENTS[theirs][1]}"
    assert refused[0].startswith(built)
    assert "mpicxx of mpi4py's MPI first on PATH (docs/install.md)" in refused[0]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("level", "ranks", "name"),
    [("single", "012", "SINGLE"), ("serialized", "012", "SERIALIZED"), ("funneled", "1", "FUNNELED")],
)
def test_without_thread_multiple_every_rank_says_so(level: str, ranks: str, name: str) -> None:
    """Also where one rank alone lacks it: the others do not wait for it. No thread but the program's calls MPI for shared memory."""
    job = mpiexec(3, "threads.py", level, *ranks, timeout=30)
    assert job.returncode == 0, job.output
    message = f"refused: rank {ranks[0]}: MPI was initialised with MPI_THREAD_{name}: must be MPI_THREAD_MULTIPLE"
    assert job.output.count(message) == 3, job.output
    assert job.output.count("works: shared memory") == 3, job.output
    assert job.seconds < 15


@pytest.mark.mpi
def test_the_library_of_mpi4py_and_its_mpiexec() -> None:
    found = library.library_of_mpi4py()
    assert found is not None
    assert found.family in (library.OPEN_MPI, library.MPICH)
    assert found.path is not None
    program = library.find_mpiexec(found)
    assert program is not None
    assert program.name.startswith("mpiexec")


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python with MPICH's mpiexec beside it, and nothing else on PATH yet."""
    program(tmp_path / "venv" / "bin" / "mpiexec", "HYDRA build details:")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path


def test_an_mpiexec_of_another_mpi_is_passed_over(places: Path) -> None:
    """Even beside Python, where it usually is the right one."""
    chosen = Library("Open MPI v5.0.11", places / "site" / "lib" / "libmpi.so.40")
    assert library.find_mpiexec(chosen) is None
    on_path = program(places / "path" / "mpiexec", "mpirun (Open MPI) 5.0.11")
    assert library.find_mpiexec(chosen) == on_path
    beside_library = program(places / "site" / "bin" / "mpiexec", "mpiexec (OpenRTE) 4.1.4")
    assert library.find_mpiexec(chosen) == beside_library


def test_mpiexec_where_a_system_has_two(places: Path) -> None:
    """Debian's names: the plain one belongs to whichever was chosen last."""
    program(places / "usr" / "bin" / "mpiexec", "HYDRA build details:")
    second = program(places / "usr" / "bin" / "mpiexec.openmpi", "mpiexec (OpenRTE) 4.1.4")
    chosen = Library("Open MPI v4.1.4", places / "usr" / "lib" / "x86_64-linux-gnu" / "openmpi" / "lib" / "libmpi.so.40.30.4")
    assert library.find_mpiexec(chosen) == second


def test_mpiexec_of_an_mpi_that_nobody_knows(places: Path) -> None:
    """The first one is as good as any: what it starts finds out."""
    beside_python = places / "venv" / "bin" / "mpiexec"
    assert library.find_mpiexec(Library("A vendor's MPI 1.0", None)) == beside_python
    assert library.find_mpiexec(None) == beside_python


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("MPICH Version:      5.0.2\nMPICH Release date: ...\n\0", "MPICH Version: 5.0.2"),
        ("Open MPI v5.0.11, package: Open MPI user@host, ident: 5.0.11", "Open MPI v5.0.11"),
        ("\0", "an MPI without a name"),
    ],
)
def test_a_library_in_few_words(text: str, short: str) -> None:
    assert library.short_version(text) == short


RULER = "-" * 74 + "\n"


def test_messages_of_open_mpi_are_told_from_those_of_ranks() -> None:
    manager = Manager(blocks=True)
    lines = [
        "a rank\n",
        RULER,
        "prterun detected that\n",
        "   Exit code:    137\n",
        RULER,
        "Traceback\n",
        "[host:17] *** Process\n",
    ]
    assert [manager.says(line) for line in lines] == [False, True, True, True, True, False, True]


def test_a_ruler_of_a_rank_hides_little() -> None:
    manager = Manager(blocks=True)
    said = [manager.says(line) for line in [RULER] + ["a rank\n"] * 2 * BLOCK_LIMIT]
    assert said == [True] * (BLOCK_LIMIT + 1) + [False] * BLOCK_LIMIT
    assert not Manager(blocks=False).says(RULER)  # tables on standard output
