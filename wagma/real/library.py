"""Which MPI library mpi4py uses here, the mpiexec that belongs to it, and whether wagma's extension was built against the same one.

mpi4py's wheels choose the library when `mpi4py.MPI` is imported: the one that MPI4PY_LIBMPI names, else that of the Python environment,
else the system's. A machine may hold several. An mpiexec of another one than mpi4py's starts ranks that do not know of each other, and
an extension that was built against another one would hand it handles that mean nothing there.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE_LIMIT_S = 60.0  # mpi4py is imported from a network's file system, perhaps

OPEN_MPI = "Open MPI"
MPICH = "MPICH"
#: What a library, or an mpiexec, that belongs to a family says of itself.
SIGNS = {OPEN_MPI: ("Open MPI", "OpenRTE", "PRTE"), MPICH: ("MPICH", "MVAPICH", "HYDRA", "Intel(R) MPI")}
#: The names by which an extension asks for its library; MPICH's relatives have one interface, and with it one name.
NEEDED = {"libmpi.so.40": OPEN_MPI, "libmpi.so.12": MPICH, "libmpich.so.12": MPICH}
#: Where a system holds several, each mpiexec has a second name.
MPIEXEC = {OPEN_MPI: ("mpiexec", "mpiexec.openmpi"), MPICH: ("mpiexec", "mpiexec.mpich", "mpiexec.hydra"), None: ("mpiexec",)}

NOT_OPENED = re.compile(r"(libmpi\S*\.so\S*): cannot open shared object")
REMEDY = "build wagma again with the mpicxx of mpi4py's MPI first on PATH (docs/install.md)"

#: In a process of its own: importing mpi4py.MPI opens the library, which cannot be undone, and a broken one may end the process.
PROBE = """
import json, mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False
from mpi4py import MPI
from wagma.real.library import opened
print(json.dumps([MPI.Get_library_version(), str(opened() or "")]))
"""


@dataclass(frozen=True, slots=True)
class Library:
    """An MPI library: its first words about itself, and its file where that is known."""

    version: str
    path: Path | None

    @property
    def family(self) -> str | None:
        """Whose mpiexec and whose extensions go with it."""
        return family_of(self.version)

    def __str__(self) -> str:
        return self.version if self.path is None else f"{self.version} ({self.path})"


def family_of(text: str) -> str | None:
    """The family that a description belongs to."""
    return next((family for family, signs in SIGNS.items() if any(sign in text for sign in signs)), None)


def short_version(text: str) -> str:
    """The first words of what MPI_Get_library_version says, which may be a page."""
    first = text.rstrip("\0\n ").splitlines()[0] if text.strip("\0\n ") else "an MPI without a name"
    return " ".join(first.split(",")[0].split())


def opened() -> Path | None:
    """The file of the MPI library that this process has opened, where the system tells."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    names = (line.split(maxsplit=5)[-1] for line in lines)
    return next((Path(name) for name in names if re.search(r"/libmpi(ch)?\.so[.\d]*$", name)), None)


def library_of_mpi4py() -> Library | None:
    """The library that mpi4py opens in a process started by this one; None if it opens none."""
    settings = tuple(os.environ.get(name) for name in ("MPI4PY_LIBMPI", "MPI4PY_MPIABI", "LD_LIBRARY_PATH", "PYTHONPATH"))
    return _probe(sys.executable, settings)


@functools.cache
def _probe(python: str, _settings: tuple[str | None, ...]) -> Library | None:
    """`_settings`: what the answer depends on, for the cache."""
    try:
        command = [python, "-P", "-c", PROBE]  # -P: a folder `wagma` of the current one must not hide the package
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=True
        )
        version, path = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return Library(short_version(version), Path(path) if path else None)


def find_mpiexec(library: Library | None) -> Path | None:
    """The library's mpiexec: beside it, else beside Python, else on PATH. One that is known to be of another family is passed over."""
    wanted = None if library is None else library.family
    for candidate in _candidates(library):
        found = _family_of_mpiexec(candidate) if wanted else None
        if found is None or found == wanted:
            return candidate
    return None


def _candidates(library: Library | None) -> Iterator[Path]:
    folders: list[Path] = []
    if library is not None and library.path is not None:
        folders += [parent / "bin" for parent in library.path.resolve().parents]
    folders.append(Path(sys.executable).parent)
    folders += [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    for folder in dict.fromkeys(folders):
        for name in MPIEXEC[None if library is None else library.family]:
            if os.access(folder / name, os.X_OK):
                yield folder / name


@functools.cache
def _family_of_mpiexec(program: Path) -> str | None:
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return family_of(done.stdout + done.stderr)


def why_no_mpi(error: Exception) -> str:
    """What to say when mpi4py.MPI cannot be imported."""
    reason = "; ".join(str(error).splitlines())
    return f"mpi4py cannot be imported ({reason}): install an MPI library, e.g. pip install mpich (docs/install.md)"


def why_not_imported(error: ImportError, mpi: Any) -> str:
    """What to say when wagma._native_mpi cannot be imported beside mpi4py's `mpi`."""
    missing = NOT_OPENED.search(str(error))
    if missing is None:
        return f"wagma._native_mpi cannot be imported ({error}): build wagma again with mpicxx on PATH (docs/install.md)"
    # The extension names no search path, so that it takes the library that mpi4py has opened; another one is not even looked for.
    built = f"{NEEDED.get(missing[1], 'another MPI')} ({missing[1]})"
    return f"wagma._native_mpi was built against {built}, mpi4py has opened {_opened_by(mpi)}: {REMEDY}"


def difference(module: Any, mpi: Any) -> str | None:
    """What to say if the extension was built against, or calls, another library than mpi4py has opened; None if it is the same."""
    theirs = mpi.Get_library_version()
    family = family_of(theirs)
    # Asked first: beside Open MPI, which makes its functions visible to all modules, another's extension calls those.
    if module.built_against and family and module.built_against != family:
        return f"wagma._native_mpi was built against {module.built_against}, mpi4py has opened {_opened_by(mpi)}: {REMEDY}"
    ours = module.library_version()
    if ours.rstrip("\0\n ") == theirs.rstrip("\0\n "):
        return None
    return f"wagma._native_mpi calls {short_version(ours)}, mpi4py has opened {short_version(theirs)}: {REMEDY}"


def too_few_threads(mpi: Any) -> str | None:
    """What to say if MPI does not allow a second thread to call it; None if it does, or is not initialised yet."""
    if not mpi.Is_initialized() or (level := mpi.Query_thread()) == mpi.THREAD_MULTIPLE:
        return None
    names = ("THREAD_SINGLE", "THREAD_FUNNELED", "THREAD_SERIALIZED")
    found = next((f"MPI_{name}" for name in names if level == getattr(mpi, name)), f"thread level {level}")
    return (
        f"MPI was initialised with {found}: must be MPI_THREAD_MULTIPLE, since a progress thread calls it, too;"
        " leave mpi4py.rc.thread_level as it is, and use an MPI that has it (docs/install.md)"
    )


def _opened_by(mpi: Any) -> str:
    return str(Library(short_version(mpi.Get_library_version()), opened()))
