"""nvcc: where it is, whether it works, and how it is called. Needs Python alone.

Whatever is wrong with it is one line, an `Unusable`, and no run of it goes on for longer than a limit.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

#: Of the GPUs in data centres one for each generation: V100, T4, A100, H100, B200, RTX PRO 6000. Machine code for 8.0 runs on 8.6 (A10) and
#: 8.9 (L4, L40), too: a GPU takes that of its generation's earlier members.
DEFAULT_ARCHITECTURES = (70, 75, 80, 90, 100, 120)
#: Kernels take more than 4 KB of parameters (native/device/kernels.hpp): from this release of nvcc on, and from this architecture.
OLDEST_RELEASE = (12, 1)
OLDEST_ARCHITECTURE = 70
#: Equal inputs give equal bits everywhere, as with -ffp-contract=off in native/CMakeLists.txt: neither contraction into FMA nor anything
#: of --use_fast_math. tests/test_device_ptx.py looks at what comes of it.
EXACT = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
#: -O1 is for what runs on the host, which launches and asks: with -O3 that takes longer to compile than the kernels, which -O is not for.
LANGUAGE = ("-x", "cu", "-std=c++20", "-O1", *EXACT)
RUNTIME = "libcudart_static.a"
QUICK_S = 60.0  # for what prints a line or two
LONGEST_REASON = 300

TRIAL = """
#include <cuda_runtime.h>
#include <concepts>
template <std::integral T>
__global__ void fill(T* to, T value) { to[threadIdx.x] = value; }
int trial(int* to) {
  fill<<<1, 32>>>(to, 1);
  return static_cast<int>(cudaDeviceSynchronize());
}
"""


class Unusable(Exception):
    """Why there will be no kernels for GPUs, in one line."""


# --- Running programs -------------------------------------------------------------------------------


def run(command: Sequence[str], limit_s: float, folder: Path | None = None) -> tuple[int, str, str]:
    """Exit status, output, and error output of a program. Raises Unusable if it cannot be started or is not over in time.

    It gets a session of its own: what it has started itself ends with it, also when this program is interrupted.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise Unusable(f"{command[0]} cannot be run: {error.strerror}") from None
    try:
        output, errors = process.communicate(timeout=limit_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # it is still there, or has not been waited for: nobody else has its number
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Unusable(f"{command[0]} has not ended after {limit_s:.0f} s") from None
        raise
    return process.returncode, output, errors


def first_error(status: int, text: str) -> str:
    """The line that says what went wrong: the first one that reads like it, else the last one. Without folders: they are this machine's."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sign = re.compile(r"error|fatal|cannot|not found|no such file|killed|denied|segmentation", re.IGNORECASE)
    line = next((line for line in lines if sign.search(line) and "warning" not in line), lines[-1] if lines else "")
    how = f"status {status}" if status >= 0 else f"signal {-status}"
    return plain(re.sub(r"(?<![\w.])/\S*/(?=\S)", "", line)) or f"no message, {how}"


def plain(text: str) -> str:
    """One line of ASCII."""
    text = "".join(sign if " " <= sign <= "~" else " " if sign.isspace() else "?" for sign in text)
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."


def text_of(limit_s: float, *command: str) -> str:
    """What a program prints that has to succeed. Raises Unusable."""
    status, output, errors = run(command, limit_s)
    if status != 0:
        raise Unusable(f"{' '.join(command)} fails: {first_error(status, errors or output)}")
    return output


# --- What there is ----------------------------------------------------------------------------------


def candidates() -> list[Path]:
    """Where an nvcc may be that nobody has named, in the order in which they are taken."""
    found = [Path(name) for name in (shutil.which("nvcc"),) if name]
    found += [Path(os.environ[name], "bin", "nvcc") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    versions = sorted(
        Path("/usr/local").glob("cuda-*"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], reverse=True
    )
    return [*found, *(folder / "bin" / "nvcc" for folder in (Path("/usr/local/cuda"), *versions, Path("/opt/cuda")))]


def find_nvcc(named: str = "") -> Path | None:
    """The nvcc to take: the one that was named (a path, or a name on PATH), else the first that exists."""
    if named:
        return Path(shutil.which(named) or named)
    return next((path for path in candidates() if path.is_file()), None)


def release_of(nvcc: Path, limit_s: float) -> tuple[int, int]:
    """Its release. Raises Unusable."""
    printed = text_of(min(QUICK_S, limit_s), str(nvcc), "--version")
    found = re.search(r"release (\d+)\.(\d+)", printed)
    if found is None:
        raise Unusable(f"{nvcc} --version names no release, but says {plain(printed.strip())!r}")
    release = int(found[1]), int(found[2])
    if release < OLDEST_RELEASE:
        raise Unusable(f"{nvcc} is of release {found[1]}.{found[2]}: must be {'.'.join(map(str, OLDEST_RELEASE))} or newer")
    return release


def known_architectures(nvcc: Path, limit_s: float) -> list[int]:
    """Those that it compiles for, ascending. Raises Unusable."""
    printed = text_of(min(QUICK_S, limit_s), str(nvcc), "--list-gpu-code")
    known = sorted(int(number) for number in re.findall(r"^sm_(\d+)$", printed, re.MULTILINE))
    if not known:
        raise Unusable(f"{nvcc} --list-gpu-code names no architecture")
    return known


def choose_codes(wanted: str, known: Sequence[int]) -> list[str]:
    """What to compile for, in nvcc's words: sm_NN (machine code) and compute_NN (PTX, which drivers compile for newer GPUs).

    `wanted`: numbers, e.g. "80;90"; machine code for each, and PTX of the first. As in CMake, NN-real and NN-virtual ask for one of both.
    Nothing: one architecture a generation of DEFAULT_ARCHITECTURES, the first that is known. Raises Unusable.
    """
    names = re.findall(r"[^;,\s]+", wanted)
    if not names:
        first = {number // 10: number for number in reversed(DEFAULT_ARCHITECTURES) if number in known}
        names = [str(number) for number in sorted(first.values())]
        if not names:
            raise Unusable(f"nvcc knows none of the architectures {numbers(DEFAULT_ARCHITECTURES)}, but {numbers(known)}")
    codes = set()
    for name in names:
        found = re.fullmatch(r"(\d+)(-real|-virtual)?", name)
        if found is None or int(found[1]) not in known or int(found[1]) < OLDEST_ARCHITECTURE:
            allowed = numbers(number for number in known if number >= OLDEST_ARCHITECTURE)
            raise Unusable(
                f"WAGMA_CUDA_ARCHITECTURES = {plain(name)}: must be of those that this nvcc and wagma know, {allowed}"
            )
        codes.add((found[2] == "-virtual", int(found[1])))
    if not any("-" in name for name in names):
        codes.add((True, min(number for _, number in codes)))
    return [f"{'compute' if virtual else 'sm'}_{number}" for virtual, number in sorted(codes)]


def numbers(values: Iterable[int]) -> str:
    """Numbers as a text."""
    return " ".join(map(str, values))


def host_compiler(compiler: str) -> str:
    """The C++ compiler for nvcc to use, which may not take the newest: CMake's and nvcc's own variables go before CMake's compiler."""
    return os.environ.get("CUDAHOSTCXX") or os.environ.get("NVCC_CCBIN") or compiler


def code_options(codes: Sequence[str]) -> list[str]:
    """Codes as options of nvcc, which makes all machine code from PTX of the oldest of its architectures.

    That PTX is made once, which halves the time that all of this takes; and the kernels read and write memory, for which newer PTX has
    nothing that they would use. Machine code is made for each architecture by itself.
    """
    real = [int(code[3:]) for code in codes if code.startswith("sm_")]
    virtual = [int(code[8:]) for code in codes if code.startswith("compute_")]
    groups = {min(real): [f"sm_{number}" for number in real]} if real else {}
    for number in virtual:
        groups.setdefault(number, []).append(f"compute_{number}")
    return [f"-gencode=arch=compute_{base},code=[{','.join(made)}]" for base, made in groups.items()]


def compile_options(compiler: str, codes: Sequence[str]) -> list[str]:
    """How everything is compiled. Hidden: nothing of it is for other modules."""
    host = "-fPIC,-ffp-contract=off,-fvisibility=hidden"
    how = ["-ccbin", host_compiler(compiler), f"-Xcompiler={host}", "-Xfatbin=-compress-all", "-Wno-deprecated-gpu-targets"]
    return [*LANGUAGE, *how, *code_options(codes)]


def find_runtime(nvcc: Path, limit_s: float) -> Path:
    """CUDA's runtime library as an archive, so that a wheel needs none on the machine where it runs. Raises Unusable.

    A dry run says where nvcc links from; beside it the library has been in these places.
    """
    _, output, errors = run([str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull], min(QUICK_S, limit_s))
    line = re.search(r"^#\$ LIBRARIES=(.*)$", output + errors, re.MULTILINE)
    folders = [Path(word[2:]) for word in shlex.split(line[1]) if word.startswith("-L")] if line else []
    top = nvcc.resolve().parent.parent
    folders += [top / "lib64", top / "lib", *sorted(top.glob("targets/*/lib"))]
    for folder in folders:
        if (folder / RUNTIME).is_file():
            return (folder / RUNTIME).resolve()
    raise Unusable(f"{nvcc} comes without its runtime library {RUNTIME}")


def try_out(nvcc: Path, compiler: str, code: str, runtime: Path, limit_s: float) -> None:
    """Compiles and links a small kernel. Raises Unusable."""
    with tempfile.TemporaryDirectory(prefix="wagma-nvcc-") as name:
        folder = Path(name)
        (folder / "trial.cu").write_text(TRIAL)
        command = [str(nvcc), *compile_options(compiler, [code]), "-c", "trial.cu", "-o", "trial.o"]
        status, output, errors = run(command, limit_s, folder)
        if status != 0 or not (folder / "trial.o").is_file():
            raise Unusable(f"{nvcc} cannot compile a trivial kernel: {first_error(status, errors + output)}")
        link = [
            compiler,
            "-shared",
            "trial.o",
            str(runtime),
            "-Wl,--no-undefined",
            "-ldl",
            "-lrt",
            "-lpthread",
            "-o",
            "trial.so",
        ]
        status, output, errors = run(link, limit_s, folder)
        if status != 0:
            raise Unusable(f"a trivial kernel cannot be linked with {runtime.name}: {first_error(status, errors + output)}")


def probe(named: str, compiler: str, architectures: str, folder: Path, limit_s: float) -> dict[str, str]:
    """What CMake has to know; `why_not` is empty if nvcc is usable.

    `named`: an nvcc, or nothing; `folder`: where to note what has been tried, which is not tried again when CMake configures anew.
    """
    found = dict.fromkeys(("nvcc", "release", "codes", "runtime", "why_not"), "")
    try:
        nvcc = find_nvcc(named)
        if nvcc is None:
            raise Unusable("no nvcc found (WAGMA_NVCC, PATH, CUDA_HOME, CUDA_PATH, /usr/local/cuda*)")
        found["nvcc"] = str(nvcc)
        release = release_of(nvcc, limit_s)
        codes = choose_codes(architectures, known_architectures(nvcc, limit_s))
        runtime = find_runtime(nvcc, limit_s)
        key = json.dumps([str(nvcc), release, str(runtime), runtime.stat().st_mtime, compiler, host_compiler(compiler), codes])
        tried = folder / "tried.json"
        if not tried.is_file() or tried.read_text() != key:
            try_out(nvcc, compiler, codes[0], runtime, limit_s)
            tried.write_text(key)
        found |= {"release": ".".join(map(str, release)), "codes": " ".join(codes), "runtime": str(runtime)}
    except Unusable as error:
        found["why_not"] = plain(str(error))
    return found
