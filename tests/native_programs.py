"""Builds the programs of native/tools where needed, so that plain `pytest` finds them, and runs them."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "native-tests"  # the directory of `make test-native`: nothing is compiled twice


def tool(name: str) -> str:
    """The tool beside this Python, else the one on the path."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} not found: the native programs cannot be built")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


@functools.cache
def program(name: str) -> Path:
    """The program of native/tools/`name`.cpp, up to date."""
    cmake, ninja = tool("cmake"), tool("ninja")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "pytest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest may run in several processes
        if not (BUILD / "build.ninja").exists():
            options = ("-DWAGMA_BUILD_PYTHON=OFF", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_MAKE_PROGRAM={ninja}")
            _run(cmake, "-S", str(ROOT / "native"), "-B", str(BUILD), "-G", "Ninja", *options)
        _run(cmake, "--build", str(BUILD), "--target", name)
    return BUILD / name


def run(name: str, *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and the JSON line that the program prints. A usage error fails the test."""
    command = [str(program(name)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, f"{' '.join(command)}: {done.stderr}"
    return done.returncode, json.loads(done.stdout)
