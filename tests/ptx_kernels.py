"""The kernels of native/device as PTX, and what the host says for them.

with_...() of native/device/kernels.hpp, compiled as for the emulated device, choose the variant, its parameters and the number of
blocks, as they do for a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native_programs import ROOT
from ptx_machine import Kernel, Memory, launch

sys.path.insert(0, str(ROOT / "tools"))

import nvcc

Array = npt.NDArray[Any]

DTYPES = ("float32", "float64", "float16", "bfloat16")  # as wagma::DType counts
SIZES = dict(zip(DTYPES, (4, 8, 2, 2), strict=True))
NUMPY = dict(zip(DTYPES, ("f4", "f8", "u2", "u2"), strict=True))  # of items: 16 bits as their bits
ARCHITECTURE = "compute_80"  # known to every nvcc that C++20 asks for


def variants() -> dict[str, str]:
    """All kernels: their names in the PTX, and their types."""
    found = {"write_stamp": "WriteStamp"}
    for dtype in DTYPES:
        kind = f"k::{dtype.capitalize()}"
        for operation in ("publish", "take", "add", "merge"):
            for alike in ("true", "false") if SIZES[dtype] > 2 else ("true",):
                mixed = "" if alike == "true" else "_mixed"
                found[f"{operation}_{dtype}{mixed}"] = f"OverParts<k::{operation.capitalize()}<{kind}>, {alike}>"
        for n in (1, 2, 3, 4, 8):
            found[f"reduce_{dtype}_{n}"] = f"Reduce<{kind}, k::Few<{kind}, {n}>>"
        found[f"reduce_{dtype}_many"] = f"Reduce<{kind}, k::Many<{kind}>>"
        found[f"merge_into_{dtype}"] = f"MergeInto<{kind}>"
    return found


#: What the checks and the machine have to find, with kernels that are as they should be.
DEVICE = """
#include "kernels.hpp"
using wagma::Block;
namespace k = wagma::cuda;
#define KERNEL(name, ...) \\
  extern "C" __global__ void __launch_bounds__(wagma::kThreads, 2) name(const __grid_constant__ k::__VA_ARGS__ kernel) { kernel(Block{}); }
#include "variants.inc"
struct Planted { float* to; };
#define PLANTED(name, statement) \\
  extern "C" __global__ void planted_##name(const __grid_constant__ Planted planted) { float* to = planted.to; statement; }
PLANTED(fma, to[threadIdx.x] = fmaf(to[threadIdx.x], to[1024], 1.0f))
PLANTED(approximate, to[threadIdx.x] = __fdividef(to[threadIdx.x], to[1024]))
PLANTED(race, to[threadIdx.x / 2] = 1.0f)
PLANTED(outside, to[threadIdx.x + blockIdx.x * 4000] = 1.0f)
PLANTED(misaligned, *reinterpret_cast<float4*>(to + 4 * threadIdx.x + 1) = float4{})
PLANTED(exchange, float old = to[threadIdx.x]; __syncthreads(); to[255 - threadIdx.x] = old)
PLANTED(unsynchronised, to[255 - threadIdx.x] = to[threadIdx.x])
"""

HOST = """
#include "kernels.hpp"
using namespace wagma;
namespace k = wagma::emulated;
template <class Kernel> struct NameOf;
#define KERNEL(name, ...) template <> struct NameOf<k::__VA_ARGS__> { static constexpr const char* value = #name; };
#include "variants.inc"
using Launch = void (*)(const char*, const void*, std::size_t, unsigned);
struct Launcher {
  Launch launch;
  template <class Kernel> void operator()(const Kernel& kernel, unsigned blocks) const {
    launch(NameOf<Kernel>::value, &kernel, sizeof kernel, blocks);
  }
};
struct Host { k::Room room; Launch launch; };
extern "C" {
void publish(const Host& host, DType model, const k::PartsTable& parts, std::size_t begin, std::size_t count, std::byte* to,
             std::int64_t* stamp, Version version) {
  k::with_publish(model, parts, begin, count, to, stamp, version, host.room, Launcher{host.launch});
}
void merge(const Host& host, DType model, const k::PartsTable& parts, std::size_t begin, std::size_t count, const std::byte* total,
           int own_weight, int divisor) {
  k::with_merge(model, parts, begin, count, total, own_weight, divisor, host.room, Launcher{host.launch});
}
void take(const Host& host, DType model, const k::PartsTable& parts, std::size_t begin, std::size_t count, const std::byte* items) {
  k::with_take(model, parts, begin, count, items, host.room, Launcher{host.launch});
}
void add(const Host& host, DType model, const k::PartsTable& parts, std::size_t begin, std::size_t count, const std::byte* items) {
  k::with_add(model, parts, begin, count, items, host.room, Launcher{host.launch});
}
void reduce(const Host& host, DType dtype, std::size_t begin, std::size_t count, std::size_t n, const Reduction::Source* sources,
            std::size_t m, const Reduction::Target* targets, const Version* stamp, k::Finding* finding) {
  Reduction reduction{dtype, begin, count, {sources, sources + n}, {targets, targets + m}, {}};
  if (stamp) reduction.stamp = *stamp;
  k::with_reduce(reduction, finding, host.room, Launcher{host.launch});
}
void merge_into(const Host& host, DType dtype, std::byte* destination, const std::byte* own, const std::byte* total, int divisor,
                std::size_t count) {
  k::with_merge_into(dtype, destination, own, total, divisor, count, host.room, Launcher{host.launch});
}
void write_stamp(const Host& host, std::int64_t* stamp, Version version) { k::with_write_stamp(stamp, version, Launcher{host.launch}); }
}
"""

LAUNCH = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)


class HostRecord(ctypes.Structure):
    _fields_ = [("processors", ctypes.c_uint), ("ticket", ctypes.c_void_p), ("launch", LAUNCH)]


class PartsTable(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("ends", "data", "dtypes")),
        ("parts", ctypes.c_uint32),
        ("alike", ctypes.c_bool),
    ]


class Source(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stamp", ctypes.c_void_p), ("expected", ctypes.c_int64)]


class Target(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stamp", ctypes.c_void_p), ("divisor", ctypes.c_int)]


class Kernels:
    """The compiled kernels; each call of run() is what a Queue's is, with the machine in place of the GPU."""

    def __init__(self, module: str, library: ctypes.CDLL) -> None:
        self.module, self.library = module, library
        self.memory = Memory()  # of the last run

    @functools.cache  # noqa: B019 - there is one of these
    def kernel(self, name: str) -> Kernel:
        return Kernel(self.module, name)

    def run(
        self, call: str, *arguments: object, memory: Sequence[Array], seed: int = 1, unit: int = 256, most_blocks: int = 3
    ) -> list[str]:
        """One of HOST's functions; the kernels that it launches may access these arrays. Returns their names.

        `most_blocks`: each goes over several tiles, as on a GPU that is small for them; seed, unit: as for ptx_machine.launch.
        """
        ticket = np.zeros(1, np.uint32)
        allowed = self.memory = Memory(ticket, *memory)
        names: list[str] = []
        problems: list[Exception] = []

        def run(name: bytes, parameters: int, size: int, blocks: int) -> None:
            try:
                names.append(name.decode())
                if not problems:
                    launch(
                        self.kernel(names[-1]),
                        ctypes.string_at(parameters, size),
                        min(blocks, most_blocks),
                        allowed,
                        seed,
                        unit,
                    )
            except Exception as error:
                problems.append(error)  # an exception does not find its way through C++

        host = HostRecord(1, ticket.ctypes.data, LAUNCH(run))
        given = [argument.ctypes.data if isinstance(argument, np.ndarray) else argument for argument in arguments]
        converted = [
            ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_size_t(a) if isinstance(a, int) else a
            for a in given
        ]
        getattr(self.library, call)(ctypes.byref(host), *converted)
        if problems:
            raise problems[0]
        assert ticket[0] == 0, "the next kernel would count on"
        return names


def compiled() -> Kernels:
    """The kernels, compiled once for a session. Skips the test where there is no nvcc or no C++ compiler."""
    found = nvcc.find_nvcc()
    if found is None:
        pytest.skip("no nvcc: neither on PATH nor at CUDA_HOME nor in /usr/local/cuda")
    compiler = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    includes = ["-I", str(ROOT / "native" / "include"), "-I", str(ROOT / "native" / "device")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "variants.inc").write_text("".join(f"KERNEL({name}, {kind})\n" for name, kind in variants().items()))
        (folder / "device.cu").write_text(DEVICE)
        (folder / "host.cpp").write_text(HOST)
        commands = [
            [str(found), *nvcc.LANGUAGE, f"-arch={ARCHITECTURE}", *includes, "-ptx", "device.cu", "-o", "device.ptx"],
            [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", *includes, "host.cpp", "-o", "host.so"],
        ]
        running = [
            subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for command in commands
        ]
        try:
            for process in running:
                output, _ = process.communicate(timeout=240)
                if process.returncode:
                    pytest.fail(f"{process.args!r}:\n{output}")
        finally:  # the folder goes
            for process in running:
                process.kill()
                process.wait()
        return Kernels((folder / "device.ptx").read_text(), ctypes.CDLL(str(folder / "host.so")))
