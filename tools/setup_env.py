"""Sets up the development environment in .venv: `make setup` runs this.

Standard library only, with the system's Python. Every step is skipped while what it depends on is
unchanged, so a second run takes a fraction of a second and a change of the native sources costs
one incremental build. What pip and the compiler print goes to build/setup.log.

Environment:
    TORCH_INDEX  URL of a further package index, for torch's CPU build.
    TORCH_CUDA   1 accepts the CUDA build (several GB) on a machine without a GPU.
    CXX          the C++ compiler.
    WAGMA_CUDA, WAGMA_CUDA_ARCHITECTURES, WAGMA_NVCC
                 see docs/install.md; scikit-build-core reads them.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nvcc import find_nvcc
from progress import progress_line

MINIMUM_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BUILD = ROOT / "build"
STAMP = VENV / "wagma-setup.json"
LOG = BUILD / "setup.log"
EXTRAS = ("torch", "rl", "plot", "frames", "parquet", "tensorboard", "mpi", "dev")
CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")
TORCH_DOWNLOAD = re.compile(r"Downloading \S*?torch-([^-\s]+)-\S+\.whl \(")


class SetupError(Exception):
    """What the user has to know, in one line or a few."""


# --- Running programs, with progress --------------------------------------------------------------


def say(message: str) -> None:
    """One line for the user."""
    print(f"setup: {message}", flush=True)


def environment() -> dict[str, str]:
    """The environment for pip and the build: the virtual environment's programs come first."""
    ignored = {"PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX"}
    env = {key: value for key, value in os.environ.items() if key not in ignored}
    env["VIRTUAL_ENV"] = str(VENV)
    env["PATH"] = f"{VENV / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    env["PIP_NO_INPUT"] = "1"
    env.setdefault("PIP_DEFAULT_TIMEOUT", "15")
    env.setdefault("PIP_RETRIES", "2")
    return env


def run_logged(command: list[str], what: str, until: re.Pattern[str] | None = None) -> int:
    """Runs a command with its output appended to the log; returns its exit status.

    Ends the command, with status 0, as soon as `until` is found in what it prints.
    """
    with LOG.open("a") as log, progress_line(what) as tick:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment(),
        )
        try:
            while True:
                try:
                    return process.wait(timeout=0.1)
                except subprocess.TimeoutExpired:
                    tick()
                    if until is not None and until.search(last_output()):
                        process.terminate()
                        process.wait()
                        return 0
        except BaseException:
            process.terminate()
            process.wait()
            raise


def last_output() -> str:
    """What the last command has logged."""
    return LOG.read_text(errors="replace").rpartition("\n$ ")[2] if LOG.exists() else ""


def log_tail(lines: int = 15) -> str:
    """The last lines of the log, indented."""
    text = LOG.read_text(errors="replace").splitlines() if LOG.exists() else []
    return "\n".join(f"    {line}" for line in text[-lines:])


def cause_in_log() -> str:
    """One line that says what went wrong, from what the last command logged."""
    text = last_output()
    unreachable = ("Temporary failure in name resolution", "Failed to establish a new connection")
    if any(sign in text for sign in (*unreachable, "ConnectTimeoutError", "Read timed out")):
        return "the package index cannot be reached"
    if "No space left on device" in text:
        return "the disk is full"
    # The true cause comes first, before what pip and the build programs say of each other.
    vague = ("subprocess-exited-with-error", "metadata-generation-failed", "Failed to build")
    signs = ("WAGMA_CUDA = ", "CMake Error", "fatal error:", " error: ", "Exception", "ERROR: ", "error: ")
    lines = [line for line in text.splitlines() if not any(word in line for word in vague)]
    for sign in signs:
        for line in lines:
            if sign in line:
                return line.strip()
    return "see the log"


def run_step(command: list[str], what: str, until: re.Pattern[str] | None = None) -> None:
    """Runs a command that has to succeed."""
    if run_logged(command, what, until) != 0:
        raise SetupError(f"{what} failed: {cause_in_log()}\n{log_tail()}\n  full log: {LOG.relative_to(ROOT)}")


# --- What a step depends on -----------------------------------------------------------------------


def fingerprint(parts: Iterable[object]) -> str:
    """A digest of files' contents (paths) and of anything else's representation."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else repr(part).encode()
        digest.update(f"{part}:{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def read_pyproject() -> dict[str, Any]:
    """The tables of pyproject.toml."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(pyproject: dict[str, Any]) -> list[str]:
    """What has to be installed: to build, to run, and for every extra."""
    found: list[str] = list(pyproject["build-system"]["requires"])
    found += pyproject["project"]["dependencies"]
    for extra in EXTRAS:
        found += pyproject["project"]["optional-dependencies"][extra]
    return list(dict.fromkeys(found))


def native_sources() -> list[Path]:
    """The files that the Python modules are built from."""
    folders = ("src", "include", "bindings", "device", "cmake", "tools")
    files = [ROOT / "native" / "CMakeLists.txt", *(ROOT / "tools" / name for name in ("cuda_build.py", "nvcc.py"))]
    for folder in folders:
        files += (path for path in (ROOT / "native" / folder).rglob("*") if path.is_file())
    return sorted(files)


def cuda_choice() -> list[str]:
    """What the module for CUDA depends on beside its sources: what was asked for, and the compiler that is there."""
    asked = [os.environ.get(name, "") for name in ("WAGMA_CUDA", "WAGMA_CUDA_ARCHITECTURES", "WAGMA_NVCC")]
    nvcc = find_nvcc(asked[-1])
    changed = nvcc.resolve().stat().st_mtime if nvcc is not None and nvcc.exists() else None
    return [*asked, f"{nvcc} {changed}"]


def read_stamp(file: Path) -> dict[str, str]:
    """What the last run left, or nothing."""
    try:
        stamp: dict[str, str] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return stamp


# --- Steps ----------------------------------------------------------------------------------------


def check_python() -> None:
    """The Python that runs this must be new enough and able to create virtual environments."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot create virtual environments: "
            "install its venv module (on Debian and Ubuntu the package python3-venv)"
        )


def create_venv() -> None:
    """A fresh .venv."""
    say(f"creating .venv with Python {sys.version.split()[0]}")
    run_step([sys.executable, "-m", "venv", "--clear", str(VENV)], "creating .venv")


def pip(*arguments: str) -> list[str]:
    """A pip command of the virtual environment."""
    return [str(VENV / "bin" / "python"), "-m", "pip", *arguments]


def index_options() -> list[str]:
    """The further index that the user asks for."""
    index = os.environ.get("TORCH_INDEX", "")
    return ["--extra-index-url", index] if index else []


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def check_torch(torch: str) -> None:
    """Stops before several GB of CUDA are downloaded to a machine that cannot use them."""
    if has_gpu() or os.environ.get("TORCH_CUDA", "") not in ("", "0"):
        return
    say("asking which torch fits this machine")
    report = BUILD / "torch-report.json"
    report.unlink(missing_ok=True)
    command = pip("install", "--dry-run", "--no-deps", "--report", str(report))
    command += ["-c", "constraints.txt", *index_options(), torch]
    # Not every index offers the metadata alone: the file's name has to do before pip downloads it.
    run_step(command, "resolving torch", until=TORCH_DOWNLOAD)
    download = TORCH_DOWNLOAD.search(last_output())
    if report.exists():
        (planned,) = json.loads(report.read_text())["install"] or [{"metadata": {}}]
        cuda = any(
            line.startswith(CUDA_PREFIXES) and "extra ==" not in line for line in planned["metadata"].get("requires_dist", ())
        )
    else:
        cuda = sys.platform == "linux" and download is not None and "cpu" not in download[1]
    if cuda:
        raise SetupError(
            "the torch that pip would install here brings CUDA (several GB), but this machine "
            "shows no NVIDIA GPU. Choose one:\n"
            "  make setup TORCH_INDEX=<URL of PyTorch's CPU package index, printed on PyTorch's"
            ' "Get started" page>\n'
            "  make setup TORCH_CUDA=1    to install it nevertheless"
        )


def install_dependencies(needed: list[str]) -> None:
    """Installs everything but wagma, at the versions of constraints.txt."""
    torch = next(item for item in needed if item.startswith("torch=="))
    check_torch(torch)
    say("installing the dependencies (minutes the first time)")
    run_step(
        pip("install", "-c", "constraints.txt", *index_options(), *needed),
        "installing the dependencies",
    )


def find_compiler() -> str | None:
    """The C++ compiler that CMake would take."""
    chosen = os.environ.get("CXX", "").split()
    for name in (*chosen[:1], "c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    return None


def modules_built(venv: Path) -> list[str]:
    """Which native modules a virtual environment has now."""
    folders = list((venv / "lib").glob("python*/site-packages/wagma"))
    names = {path.name.split(".")[0] for folder in folders for path in folder.glob("_native*.so")}
    return sorted(names)


def editable(venv: Path) -> list[str]:
    """A pip command for the editable installation of wagma."""
    install = ("install", "--no-deps", "--no-build-isolation", "--editable", ".")
    return pip("--python", str(venv / "bin" / "python"), *install)


def build_options(venv: Path, folder: str, built: str = "") -> list[str]:
    """What to add to build the native modules in a folder of build/, incrementally, with the environment's MPI.

    What does not depend on MPI is taken from the folder `built` instead, if there is one.
    """
    settings = {
        "build-dir": f"build/{folder}",
        "cmake.define.MPI_CXX_COMPILER": str(venv / "bin" / "mpicxx"),
        "cmake.define.WAGMA_BUILT": str(BUILD / built) if built else "",
    }
    return ["--verbose", *(f"--config-settings={key}={value}" for key, value in settings.items())]


def report_cuda(printed: str) -> None:
    """Says what CMake and the build have printed about CUDA, if there is an nvcc that somebody may count on."""
    nvcc = find_nvcc(os.environ.get("WAGMA_NVCC", ""))
    if nvcc is None or os.environ.get("WAGMA_CUDA") == "OFF":
        return
    without = re.search(r"wagma: CUDA module without kernels: (.*)", printed)
    if without:
        say(f"NOTICE: the kernel was built without CUDA: {without[1]}")
    elif found := re.search(r"wagma: (CUDA module with .*)", printed):
        say(found[1])


def install_wagma() -> bool:
    """The editable installation with its native modules; returns whether the kernel was built."""
    if find_compiler() is None:
        say("no C++ compiler found: installing without the native kernel (install g++ to get it)")
        pure = "--config-settings=wheel.cmake=false"
        run_step([*editable(VENV), pure], "installing wagma without its kernel")
        return False
    say("building the native kernel and installing wagma")
    run_step([*editable(VENV), *build_options(VENV, "editable")], "building the native kernel")
    built = modules_built(VENV)
    report_cuda(last_output())
    if "_native" not in built:
        say(f"NOTICE: the native kernel could not be built: {cause_in_log()}")
        say(f"NOTICE: wagma works without it, in pure Python; full log: {LOG.relative_to(ROOT)}")
        return False
    if "_native_mpi" not in built:
        say("NOTICE: CMake found no MPI, so the kernel was built without it")
    return True


def set_up() -> None:
    """All steps, each only if something that it depends on has changed."""
    pyproject = read_pyproject()
    needed = requirements(pyproject)
    here = Path(__file__).resolve()
    python = [str(ROOT), sys.version_info[:2]]
    dependencies = fingerprint([*python, needed, ROOT / "constraints.txt", here])
    tables = [pyproject["project"], pyproject["tool"]["scikit-build"]]
    installation = fingerprint([*tables, *native_sources(), *cuda_choice(), find_compiler() is None])

    stamp = read_stamp(STAMP)
    usable = stamp.get("python") == repr(python) and (VENV / "bin" / "python").exists()
    if (
        usable
        and stamp.get("dependencies") == dependencies
        and stamp.get("installation") == installation
        and (VENV / "bin" / "wagma").exists()
    ):
        return

    check_python()
    start = time.monotonic()
    LOG.unlink(missing_ok=True)
    if not usable:
        create_venv()
        stamp = {"python": repr(python)}
        STAMP.write_text(json.dumps(stamp))
    if stamp.get("dependencies") != dependencies:
        install_dependencies(needed)
        stamp["dependencies"] = dependencies
        STAMP.write_text(json.dumps(stamp))
    stamp.pop("installation", None)
    STAMP.write_text(json.dumps(stamp))
    if install_wagma() or find_compiler() is None:
        stamp["installation"] = installation
        STAMP.write_text(json.dumps(stamp))
    say(f"ready after {time.monotonic() - start:.0f} s: .venv/bin/wagma")


def run_guarded(steps: Callable[[], None]) -> int:
    """Runs the steps under a lock; failures are one message, not a traceback. Returns the exit status."""
    try:
        BUILD.mkdir(exist_ok=True)
        with (BUILD / "setup.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another setup in this checkout")
                fcntl.flock(lock, fcntl.LOCK_EX)
            steps()
    except (SetupError, OSError) as error:
        print(f"setup: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run it again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded(set_up))
