"""Runs commands on the hosts of tools/hosts.py for tests; skipped, with the reason, where none can be made."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_launch import Finished, Launched

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "tools"
HOSTS = TOOLS / "hosts.py"
UNABLE = 69


@functools.cache
def why_not(path: str) -> str | None:
    """Why no hosts can be made here, None if they can. path: the PATH, which the answer depends on."""
    command = [sys.executable, str(HOSTS), "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path}, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


def start(*command: str, options: tuple[str, ...] = (), **environment: str) -> Launched:
    """Start a command on the first host."""
    if (reason := why_not(os.environ["PATH"])) is not None:
        pytest.skip(reason)
    own = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    own.pop("OMP_NUM_THREADS", None)  # the launcher chooses
    return Launched([sys.executable, str(HOSTS), *options, "--", *command], own)


def run(*command: str, options: tuple[str, ...] = (), timeout: float = 60.0, **environment: str) -> Finished:
    """Run it to its end; the caller judges returncode and output."""
    return start(*command, options=options, **environment).wait(timeout)
