"""The native modules, and MPI, as far as they are here: every one may be missing, and says so in one line.

Loading order matters: `_native_mpi` names no search path for libmpi, so mpi4py has to have opened its own first; both then call
one library. `_native_cuda` is the same code as the emulated device of `_native`, compiled for GPUs, and needs none to be imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wagma.errors import MissingDependencyError
from wagma.real import library
from wagma.real.launching.announced import check_world
from wagma.real.limited import check_watchdog, is_local
from wagma.real.node import Transport, check_transport


def native() -> Any:
    """The module wagma._native. Raises MissingDependencyError."""
    try:
        return import_module("wagma._native")
    except ImportError as error:
        raise MissingDependencyError(
            f"the native kernel wagma._native cannot be imported ({error}): build wagma again, with a C++ compiler (docs/install.md)"
        ) from error


def _mpi4py() -> Any:
    try:
        return import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(library.why_no_mpi(error)) from error


def mpi_native() -> Any:
    """The module wagma._native_mpi, on the MPI library of mpi4py. Raises MissingDependencyError."""
    mpi = _mpi4py()
    native()
    try:
        module = import_module("wagma._native_mpi")
    except ImportError as error:
        raise MissingDependencyError(library.why_not_imported(error, mpi)) from error
    wrong = library.difference(module, mpi) or library.too_few_threads(mpi)
    if wrong is not None:
        raise MissingDependencyError(wrong)
    return module


def cuda_native() -> Any:
    """The module wagma._native_cuda. Raises MissingDependencyError where it was not built, or built without a CUDA compiler."""
    native()
    try:
        module = import_module("wagma._native_cuda")
    except ImportError as error:
        raise MissingDependencyError(
            f"wagma._native_cuda cannot be imported ({error}): build wagma again (docs/install.md)"
        ) from error
    if module.why_not is not None:
        raise MissingDependencyError(f"wagma was built without CUDA kernels: {module.why_not}")
    return module


def require(comm: Any, transport: Transport = "auto", watchdog_s: float = 0.0) -> None:
    """Raise MissingDependencyError if there is no kernel for this communicator; InputError for options that no engine has."""
    check_transport(transport)
    check_watchdog(watchdog_s)
    native()
    if transport in ("mpi", "cuda-mpi") and not is_local(comm):
        mpi_native()


def require_letters(comm: Any) -> None:
    """Raise MissingDependencyError if ranks cannot write to each other: threads of one process can, others over MPI."""
    if not is_local(comm) and (wrong := library.too_few_threads(_mpi4py())) is not None:
        raise MissingDependencyError(wrong)


def world() -> Any:
    """mpi4py's COMM_WORLD. Raises MissingDependencyError; InputError if several processes were started that MPI knows nothing of."""
    mpi = _mpi4py()
    check_world(mpi.COMM_WORLD.size, mpi.Get_library_version())
    return mpi.COMM_WORLD
