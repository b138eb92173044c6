"""Compiles native/device for GPUs, or leaves what says why not. native/cmake/cuda.cmake runs this; it needs Python alone.

    python tools/cuda_build.py probe OPTIONS     when CMake configures: prints what nvcc there is, as JSON
    python tools/cuda_build.py compile OPTIONS   when CMake builds: leaves an object file

Whatever is wrong with nvcc, wagma is built, without CUDA then, and `wagma._native_cuda.why_not` says in one line why. Only --required
makes it an error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from nvcc import Unusable, compile_options, first_error, plain, probe, run


@dataclass(frozen=True)
class Job:
    """What CMake asks for."""

    nvcc: str
    compiler: str
    codes: list[str]
    source: Path  # native/
    object: Path
    limit_s: float

    @property
    def includes(self) -> list[str]:
        """Options for the folders of headers."""
        return [f"-I{self.source / folder}" for folder in ("include", "device", "src", "bindings")]

    @property
    def unfinished(self) -> Path:
        """The object while it is written: whoever kills this leaves none behind that looks whole."""
        return self.object.with_suffix(".part.o")

    @property
    def answers(self) -> Path:
        """What says how the object was made."""
        return self.source / "bindings" / "cuda_build.cpp"

    @property
    def depfile(self) -> Path:
        """What the object was made from, for make and ninja."""
        return self.object.with_suffix(".d")

    def with_nvcc(self) -> None:
        """Compiles all of native/device, as one unit: headers and templates are read once. Raises Unusable."""
        unit = self.object.with_suffix(".cu")
        files = sorted((self.source / "device").glob("*.cpp"))
        if not files:
            raise Unusable("there is nothing in native/device to compile")
        includes = [f'#include "{file}"' for file in (*files, self.answers)]
        unit.write_text("\n".join([f'#define WAGMA_CUDA_CODES "{" ".join(self.codes)}"', *includes, ""]))
        depends = ["-MD", "-MF", str(self.depfile), "-MT", str(self.object)]
        threads = f"--threads={max(1, min(len(self.codes), len(os.sched_getaffinity(0))))}"
        command = [self.nvcc, *compile_options(self.compiler, self.codes), threads, *self.includes, *depends]
        status, output, errors = run([*command, "-c", str(unit), "-o", str(self.unfinished)], self.limit_s)
        sys.stderr.write(errors + output)
        if status != 0 or not self.unfinished.is_file():
            raise Unusable(f"{self.nvcc} cannot compile native/device: {first_error(status, errors + output)}")
        self.unfinished.replace(self.object)

    def without(self, why_not: str) -> None:
        """Compiles what says why there is nothing else."""
        define = f"-DWAGMA_CUDA_WHY_NOT={json.dumps(plain(why_not))}"
        # Not -MD: a header of native/device may be what is wrong, and has to make it try again when it changes.
        headers = [
            path for folder in ("include", "device", "bindings") for path in sorted((self.source / folder).rglob("*.?pp"))
        ]
        command = [self.compiler, "-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", *self.includes, define]
        done = subprocess.run(
            [*command, "-c", str(self.answers), "-o", str(self.unfinished)], stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode != 0:
            sys.exit(done.returncode)
        self.unfinished.replace(self.object)
        escaped = [re.sub(r"([ #])", r"\\\1", str(path)) for path in (self.object, *headers)]
        self.depfile.write_text(f"{escaped[0]}: {' '.join(escaped[1:])}\n")


def build(options: argparse.Namespace) -> None:
    """Leaves the object file; exits with an error if nvcc fails and is required."""
    job = Job(options.nvcc, options.compiler, options.codes.split(), options.source, options.object, options.limit)
    start = time.monotonic()
    for left in (job.object, job.unfinished):
        left.unlink(missing_ok=True)
    why_not = options.why_not
    if not why_not:
        try:
            job.with_nvcc()
            print(f"wagma: CUDA module for {' '.join(job.codes)}, compiled in {time.monotonic() - start:.0f} s")
            return
        except Unusable as error:
            why_not = plain(str(error))
            if options.required:
                sys.exit(f"error: WAGMA_CUDA = ON, but {why_not}")
            print(f"wagma: CUDA module without kernels: {why_not}", flush=True)
    job.without(why_not)


def interrupted(*_: object) -> NoReturn:
    """Ends as Ctrl-C does: `run` ends nvcc then."""
    raise KeyboardInterrupt


def main() -> None:
    """What the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    probing, compiling = commands.add_parser("probe"), commands.add_parser("compile")
    for command in (probing, compiling):
        command.add_argument("--nvcc", default="")
        command.add_argument("--compiler", required=True, help="the C++ compiler of everything else")
        command.add_argument("--limit", type=float, required=True, help="seconds for one run of nvcc")
    probing.add_argument("--architectures", default="")
    probing.add_argument("--folder", type=Path, required=True, help="where to note what has been tried")
    compiling.add_argument("--codes", default="")
    compiling.add_argument("--source", type=Path, required=True, help="the folder native/")
    compiling.add_argument("--object", type=Path, required=True)
    compiling.add_argument("--why-not", default="", help="known already: leave nvcc alone")
    compiling.add_argument("--required", action="store_true")
    compiling.add_argument("--release", help="not read: with another one the build's command differs, and runs again")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    try:
        if hasattr(options, "object"):
            build(options)
        else:
            found = probe(options.nvcc, options.compiler, options.architectures, options.folder, options.limit)
            print(json.dumps(found))
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
