"""Show versions, MPI and devices, for bug reports."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from wagma import __version__
from wagma.commands.options import STDOUT, add_output_options, check_writable, write_text
from wagma.progress import Progress
from wagma.real.launching.launch import find_mpiexec

PACKAGES = (
    "numpy", "scipy", "simpy", "mpi4py", "torch", "scikit-learn", "gymnasium", "matplotlib", "pandas", "pyarrow", "tensorboard",
)  # fmt: skip
PROBE_LIMIT_S = 60.0

#: Each runs in a process of its own, since a broken MPI or CUDA installation may crash whoever asks it.
PROBES = {
    "mpi_library": """
import mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False
from mpi4py import MPI
found = MPI.Get_library_version().strip(chr(0)).splitlines()[0].strip()
""",
    "kernel": """
import wagma._native
found = "available"
""",
    "kernel_mpi": """
import mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False
from wagma.real.modules import mpi_native
mpi_native()
found = "available"
""",
    "kernel_cuda": """
import wagma._native_cuda as cuda
found = f"not built: {cuda.why_not}" if cuda.why_not else " ".join(cuda.architectures)
""",
    "devices": """
import wagma._native_cuda as cuda
found = [f"cuda:{index} {cuda.device(index).name}" for index in range(cuda.devices())] or f"none: {cuda.why_no_device}"
""",
    "torch_devices": """
import torch
found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
""",
}
NEEDS = {
    "mpi_library": "mpi4py",
    "kernel": "wagma._native",
    "kernel_mpi": "wagma._native_mpi",
    "kernel_cuda": "wagma._native_cuda",
    "devices": "wagma._native_cuda",
    "torch_devices": "torch",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_output_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print what is here."""
    check_writable(json=options.json)
    found = collect(options.quiet)
    if options.json != STDOUT and not options.quiet:
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:<{width}}  {_show(value)}")
    write_text(options.json, json.dumps(found, allow_nan=False))
    return 0


def collect(quiet: bool = True) -> dict[str, Any]:
    """Name -> version, description or device list; None for what is not installed."""
    found: dict[str, Any] = {
        "wagma": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    found |= {name: _version(name) for name in PACKAGES}
    mpiexec = find_mpiexec()
    found["mpiexec"] = None if mpiexec is None else str(mpiexec)
    with Progress("looking around", quiet) as progress:
        for done, name in enumerate(PROBES):
            progress(done, len(PROBES))
            found[name] = _probe(name)
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _probe(name: str) -> Any:
    """What the probe found, None if what it needs is not installed, or the last line of its complaint."""
    if find_spec(NEEDS[name]) is None:
        return None
    code = f"{PROBES[name]}\nimport json\nprint(json.dumps(found))"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],  # -P: the current folder must not hide the installed package
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_LIMIT_S:.0f} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return f"fails: {lines[-1] if lines else f'status {done.returncode}'}"
    return json.loads(done.stdout.splitlines()[-1])


def _show(value: Any) -> str:
    if value is None:
        return "not installed"
    if isinstance(value, list):
        return ", ".join(value) if value else "no GPU"
    return str(value)
