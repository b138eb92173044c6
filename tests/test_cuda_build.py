"""The build with CUDA, where nvcc works, is missing, or is broken in any way: native/cmake/cuda.cmake, tools/cuda_build.py, nvcc.py.

What stands in for nvcc are shell scripts. The module that was really built: test_cuda_module.py.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from native_programs import ROOT, tool

sys.path.insert(0, str(ROOT / "tools"))

import nvcc
import setup_env

DEFAULT = "sm_70 sm_80 sm_90 compute_70"
#: A working nvcc, by what it is called with. What has no kernels any C++ compiler can compile, in place of nvcc.
ANSWERS = {
    "--version": "echo 'Cuda compilation tools, release 12.4, V12.4.131'",
    "--list-gpu-code": "printf 'sm_%s\\n' 50 60 70 75 80 86 89 90",
    "--dryrun": """echo '#$ LIBRARIES=  "-L{lib}/stubs" "-L{lib}"' >&2""",
    "trial.cu": "touch trial.o",
    "wagma_cuda.cu": """arguments=
for argument; do case "$argument" in -c|-o|-M*|-I*|*/wagma_cuda.*) arguments="$arguments $argument";; esac; done
exec c++ -x c++ -std=c++20 -fPIC $arguments""",
}
PROBE = """
cmake_minimum_required(VERSION 3.24)
project(probe LANGUAGES NONE)
include("{native}/cmake/cuda.cmake")
wagma_probe_cuda()
message(STATUS "codes=${{codes}}; runtime=${{runtime}}")
"""
BUILD = """
cmake_minimum_required(VERSION 3.24)
project(build LANGUAGES CXX)
include("{native}/cmake/cuda.cmake")
add_executable(answers main.cpp)
target_include_directories(answers PRIVATE "{native}/bindings")
wagma_add_cuda(answers)
"""
MAIN = """
#include <cstdio>
#include "cuda_build.hpp"
#include "device.hpp"
int main() {
  using namespace wagma::cuda;
  std::printf("%s|%s|%d|%s", kWhyNot ? kWhyNot : "-", kCodes, device_count(), why_no_device().c_str());
}
"""
#: As much of native/device as cuda_build.cpp knows of it; the one that is compiled sees two devices.
HEADER = """
#pragma once
#include <memory>
#include <stdexcept>
#include <string>
namespace wagma {
struct Device {};
struct DeviceError : std::runtime_error { using std::runtime_error::runtime_error; };
namespace cuda {
std::shared_ptr<Device> make_device(int index);
int device_count() noexcept;
std::string why_no_device();
}
}
"""
SOURCE = """
#include "device.hpp"
namespace wagma::cuda {
std::shared_ptr<Device> make_device(int) { return nullptr; }
int device_count() noexcept { return 2; }
std::string why_no_device() { return ""; }
}
"""


def fake(folder: Path, **changed: str) -> Path:
    """An nvcc; `changed`: other answers, by what ANSWERS calls them, without signs (`list_gpu_code`)."""
    lib = folder / "lib"
    lib.mkdir(exist_ok=True)
    (lib / nvcc.RUNTIME).write_bytes(b"!<arch>\n")
    names = {key.lstrip("-").replace("-", "_").replace(".", "_"): key for key in ANSWERS}
    answers = ANSWERS | {names[name]: answer for name, answer in changed.items()}
    cases = "".join(f"  *{key}*)\n{answer.replace('{lib}', str(lib))};;\n" for key, answer in answers.items())
    path = folder / "nvcc"
    path.write_text(f'#!/bin/sh\necho "$*" >>{folder}/calls\ncase "$*" in\n{cases}esac\n')
    path.chmod(0o755)
    return path


def cmake(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDAHOSTCXX", "NVCC_CCBIN")}
    command = [tool("cmake"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)


def configure(folder: Path, project: str, native: Path, program: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    (folder / "CMakeLists.txt").write_text(project.format(native=native))
    defined = {"Python_EXECUTABLE": sys.executable, "WAGMA_NVCC": program, **variables}
    options = [f"-D{name}={value}" for name, value in defined.items()]
    return cmake("-S", folder, "-B", folder / "build", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *options)


def probe(folder: Path, program: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    return configure(folder, PROBE, ROOT / "native", program, CMAKE_CXX_COMPILER=shutil.which("true"), **variables)


def why_not(done: subprocess.CompletedProcess[str]) -> str:
    """The one line; the build goes on."""
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "without kernels: " in line)
    assert done.stderr == ""
    assert "codes=;" in done.stdout
    return line.partition("without kernels: ")[2]


def test_nvcc_that_works_is_tried_once(tmp_path: Path) -> None:
    program = fake(tmp_path)
    for _ in range(2):
        done = probe(tmp_path, program)
        assert done.returncode == 0, done.stderr
        assert f"wagma: CUDA module with {program}, release 12.4, for {DEFAULT}" in done.stdout
        assert f"runtime={tmp_path}/lib/{nvcc.RUNTIME}" in done.stdout
    calls = (tmp_path / "calls").read_text()
    assert calls.count("trial.cu") == 1
    assert calls.count("--version") == 2
    assert all(option in calls for option in ("--fmad=false", "--ftz=false", "-gencode=arch=compute_70,code=[sm_70]"))
    done = probe(tmp_path, program, WAGMA_CUDA_ARCHITECTURES="89")  # another code: another trial
    assert "for sm_89 compute_89" in done.stdout, done.stdout
    assert (tmp_path / "calls").read_text().count("trial.cu") == 2


BROKEN = {
    "no_library": ({"version": "echo 'nvcc: error while loading shared libraries' >&2; exit 127"}, "--version fails: nvcc: error while"),
    "killed": ({"version": "kill -9 $$"}, "--version fails: no message, signal 9"),
    "no_release": ({"version": "echo 'please\tinstall CUDA'"}, "--version names no release, but says 'please install CUDA'"),
    "old": ({"version": "echo 'Cuda compilation tools, release 11.8, V11.8.89'"}, "is of release 11.8: must be 12.1 or newer"),
    "lists_nothing": ({"list_gpu_code": "true"}, "--list-gpu-code names no architecture"),
    "cannot_list": ({"list_gpu_code": "echo 'nvcc fatal : Unknown option' >&2; exit 1"}, "--list-gpu-code fails: nvcc fatal : Unknown"),
    "too_new": ({"list_gpu_code": "echo sm_200"}, "knows none of the architectures 70 75 80 90 100 120, but 200"),
    "no_runtime": ({"dryrun": "true"}, f"comes without its runtime library {nvcc.RUNTIME}"),
    "no_cicc": ({"trial_cu": "echo 'sh: 1: cicc: not found' >&2; exit 255"}, "cannot compile a trivial kernel: sh: 1: cicc: not found"),
    "host_compiler": (
        {"trial_cu": "echo 'warning: x'; echo '/usr/include/crt/host_config.h:143:2: error: unsupported GNU version!' >&2; exit 1"},
        "cannot compile a trivial kernel: host_config.h:143:2: error: unsupported GNU version!",
    ),
    "writes_nothing": ({"trial_cu": "true"}, "cannot compile a trivial kernel: no message, status 0"),
}  # fmt: skip


def reason(folder: Path, program: Path | str, compiler: str = "true") -> str:
    """Why it will not do; nothing else is said then."""
    found = nvcc.probe(str(program), compiler, "", folder, 100.0)
    assert found["codes"] == found["runtime"] == ""
    return found["why_not"]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_nvcc_is_one_line(tmp_path: Path, name: str) -> None:
    changed, expected = BROKEN[name]
    line = reason(tmp_path, fake(tmp_path, **changed))
    assert expected in line
    assert line.isprintable()


def test_what_is_no_nvcc(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\x00\x01")
    assert reason(tmp_path, file) == f"{file} cannot be run: Permission denied"
    file.chmod(0o755)
    assert reason(tmp_path, file) == f"{file} cannot be run: Exec format error"
    missing = tmp_path / "nowhere"
    assert why_not(probe(tmp_path, missing)) == f"{missing} cannot be run: No such file or directory"


def test_trivial_kernel_that_does_not_link(tmp_path: Path) -> None:
    expected = f"a trivial kernel cannot be linked with {nvcc.RUNTIME}: no message, status 1"
    assert reason(tmp_path, fake(tmp_path), compiler="false") == expected


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(process: str) -> bool:
    try:
        return "(zombie)" in Path("/proc", process, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


HANGS = "sleep 1000 & echo $! >{folder}/child.part; mv {folder}/child.part {folder}/child; wait"


def test_nvcc_that_hangs_is_ended(tmp_path: Path) -> None:
    """With what it has started."""
    program = fake(tmp_path, trial_cu=HANGS.format(folder=tmp_path))
    assert f"{program} has not ended after 1 s" in why_not(probe(tmp_path, program, WAGMA_CUDA_LIMIT_S=1))
    wait_until(lambda: ended((tmp_path / "child").read_text().strip()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_nothing(tmp_path: Path, native: Path, number: signal.Signals) -> None:
    program = fake(tmp_path, wagma_cuda_cu=f"echo half >{tmp_path}/wagma_cuda.part.o; {HANGS.format(folder=tmp_path)}")
    command = [
        sys.executable,
        str(tmp_path / "tools" / "cuda_build.py"),
        "compile",
        f"--nvcc={program}",
        "--compiler=c++",
        "--codes=sm_90",
    ]
    options = ["--limit=100", f"--source={native}", f"--object={tmp_path}/wagma_cuda.o"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "child").exists)
    process.send_signal(number)
    assert process.communicate(timeout=20)[1] == "interrupted\n"
    assert process.returncode == 1
    wait_until(lambda: ended((tmp_path / "child").read_text().strip()))
    assert not (tmp_path / "wagma_cuda.o").exists()


def test_on_insists_and_off_does_not_look(tmp_path: Path) -> None:
    program = fake(tmp_path, version="exit 1")
    done = probe(tmp_path, program, WAGMA_CUDA="ON")
    assert done.returncode != 0
    lines = [line.strip() for line in done.stderr.splitlines() if "WAGMA_CUDA" in line]
    assert lines == [f"WAGMA_CUDA = ON, but {program} --version fails: no message, status 1"]
    done = probe(tmp_path, program, WAGMA_CUDA="maybe")
    assert done.returncode != 0
    assert "WAGMA_CUDA = maybe: must be AUTO, OFF or ON" in done.stderr
    calls = (tmp_path / "calls").read_text()
    assert why_not(probe(tmp_path, program, WAGMA_CUDA="OFF")) == "switched off (WAGMA_CUDA = OFF)"
    assert (tmp_path / "calls").read_text() == calls
    assert "--version fails" in why_not(
        probe(tmp_path, program, WAGMA_CUDA="")
    )  # as scikit-build-core hands on an empty variable


def test_where_nvcc_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("path", "home/bin", "named"):
        (tmp_path / name).mkdir(parents=True)
        fake(tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert nvcc.find_nvcc(str(tmp_path / "named" / "nvcc")) == tmp_path / "named" / "nvcc"
    assert nvcc.find_nvcc() == nvcc.find_nvcc("nvcc") == tmp_path / "path" / "nvcc"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvcc.find_nvcc() == tmp_path / "home" / "bin" / "nvcc"
    monkeypatch.setattr(nvcc, "candidates", list)
    assert reason(tmp_path, "") == "no nvcc found (WAGMA_NVCC, PATH, CUDA_HOME, CUDA_PATH, /usr/local/cuda*)"


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """A source tree of its own, to be changed, and beside it a program that prints how it was built."""
    native = tmp_path / "native"
    for path in (
        "native/cmake/cuda.cmake",
        "tools/nvcc.py",
        "tools/cuda_build.py",
        "native/bindings/cuda_build.cpp",
        "native/bindings/cuda_build.hpp",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    for path, text in {"native/device/device.hpp": HEADER, "native/device/device.cpp": SOURCE, "main.cpp": MAIN}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return native


def test_what_is_compiled_when(tmp_path: Path, native: Path) -> None:
    def build() -> str:
        done = cmake("--build", tmp_path / "build")
        return f"{done.stdout}{done.stderr}\nstatus {done.returncode}"

    def says() -> str:
        return subprocess.run([str(tmp_path / "build" / "answers")], capture_output=True, text=True, check=True).stdout.strip()

    def compiled() -> int:
        return (tmp_path / "calls").read_text().count("wagma_cuda.cu")

    def change(path: str) -> None:
        time.sleep(0.01)  # for the time of the file to be another one
        (native / path).write_text((native / path).read_text() + "\n")

    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler of the name c++")
    program = fake(tmp_path)
    assert configure(tmp_path, BUILD, native, program).returncode == 0
    printed = build()
    assert printed.endswith("status 0"), printed
    assert f"wagma: CUDA module for {DEFAULT}, compiled in " in printed
    assert says() == f"-|{DEFAULT}|2|"

    # Nothing has changed, or nothing that counts; then a header, which only the compiler knows of.
    assert "no work to do" in build()
    (native / "device" / "other.hpp").write_text("")
    assert "no work to do" in build()
    assert compiled() == 1
    change("device/device.hpp")
    assert build().endswith("status 0")
    assert compiled() == 2

    # nvcc does not take the files: the module is built, and says so.
    fake(tmp_path, wagma_cuda_cu="echo '/far/away/device.cpp(7): error: too clever' >&2; exit 2")
    change("device/device.cpp")
    reason = f"{program} cannot compile native/device: device.cpp(7): error: too clever"
    printed = build()
    assert printed.endswith("status 0"), printed
    assert f"wagma: CUDA module without kernels: {reason}" in printed
    assert says() == f"{reason}||0|wagma was built without CUDA: {reason}"
    assert "no work to do" in build()

    # ON tries again, and takes no less.
    assert configure(tmp_path, BUILD, native, program, WAGMA_CUDA="ON").returncode == 0
    printed = build()
    assert not printed.endswith("status 0")
    assert f"\nerror: WAGMA_CUDA = ON, but {reason}\n" in printed
    # Repaired; a header of native/device is what it was.
    fake(tmp_path)
    assert build().endswith("status 0")
    assert says() == f"-|{DEFAULT}|2|"

    assert configure(tmp_path, BUILD, native, program, WAGMA_CUDA="OFF").returncode == 0
    assert build().endswith("status 0")
    assert says().startswith("switched off (WAGMA_CUDA = OFF)||0|")


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("wagma: CUDA module for sm_90, compiled in 2 s", "setup: CUDA module with NVCC, release 12.4, for sm_90\n"),
        ("wagma: CUDA module without kernels: a, b", "setup: NOTICE: the kernel was built without CUDA: a, b\n"),
    ],
)
def test_setup_says_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last: str, said: str
) -> None:
    monkeypatch.delenv("WAGMA_CUDA", raising=False)
    monkeypatch.setenv("WAGMA_NVCC", str(fake(tmp_path)))
    printed = f"  -- wagma: looking for nvcc\n  -- wagma: CUDA module with NVCC, release 12.4, for sm_90\n  {last}\n"
    setup_env.report_cuda(printed)
    assert capsys.readouterr().out == said
    monkeypatch.setenv("WAGMA_CUDA", "OFF")
    setup_env.report_cuda(printed)
    assert capsys.readouterr().out == ""


def test_setup_runs_again_for_another_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake(tmp_path)
    seen = [setup_env.cuda_choice()]
    for name, value in (("WAGMA_NVCC", program), ("WAGMA_CUDA", "OFF"), ("WAGMA_CUDA_ARCHITECTURES", "90")):
        monkeypatch.setenv(name, str(value))
        seen.append(setup_env.cuda_choice())
    os.utime(program, (1, 1))
    seen.append(setup_env.cuda_choice())
    assert all(a != b for a, b in itertools.combinations(seen, 2))
