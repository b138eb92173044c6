"""Without a compiler, MPI and torch: wagma installs, simulates, and says what training lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALL_TIMEOUT_S = 600

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * INSTALL_TIMEOUT_S)]


def copy_sources(target: Path) -> None:
    """Copies what git tracks, and what it would, so that building leaves the checkout alone."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():  # a tracked file may have been deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own, without pip."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def pip_install(self, *arguments: str, **variables: str) -> str:
        """Installs with this interpreter's pip; returns what it printed."""
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install"]
        done = subprocess.run(
            [*command, *arguments],
            env={
                **os.environ,
                "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def pip_refuses(self, *arguments: str, **variables: str) -> str:
        """The same where the installation has to fail."""
        with pytest.raises(AssertionError) as caught:
            self.pip_install(*arguments, **variables)
        return str(caught.value)

    def wagma(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the installed command, away from the checkout and with a bare environment."""
        return subprocess.run(
            [str(self.bin / "wagma"), *arguments],
            cwd=self.folder,
            env={"PATH": f"{self.bin}{os.pathsep}{os.defpath}", "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def wheel_tag(self) -> str:
        """The tag of the wheel that wagma was installed from."""
        (wheel,) = self.folder.glob("lib/python*/site-packages/wagma-*.dist-info/WHEEL")
        (tag,) = (line for line in wheel.read_text().splitlines() if line.startswith("Tag: "))
        return tag.removeprefix("Tag: ")

    def native_modules(self) -> list[Path]:
        return list(self.folder.glob("lib/python*/site-packages/wagma/_*.so"))


def make_environment(folder: Path) -> Environment:
    venv.create(folder, with_pip=False)
    return Environment(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    folder = tmp_path_factory.mktemp("sources")
    copy_sources(folder)
    return folder


@pytest.fixture(scope="module")
def pure(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = make_environment(tmp_path_factory.mktemp("pure"))
    environment.pip_install("simpy", "numpy", "scipy")
    # A compiler that always fails shows that none is needed.
    environment.pip_install("--no-deps", str(sources), "--config-settings=wheel.cmake=false", CC="false", CXX="false")
    return environment


def test_wheel_is_pure(pure: Environment) -> None:
    assert pure.wheel_tag() == "py3-none-any"
    assert pure.native_modules() == []


def test_version(pure: Environment) -> None:
    done = pure.wagma("--version")
    assert done.returncode == 0, done.stderr
    assert "0.1.0" in done.stdout


def test_simulates_a_packaged_scenario(pure: Environment) -> None:
    options = ["--ranks", "4", "--iterations", "20", "--algorithms", "all", "-q", "--json", "-"]
    done = pure.wagma("simulate", "resnet50_imagenet", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_training_says_what_is_missing(pure: Environment) -> None:
    done = pure.wagma("train", "digits", "-n", "2")
    assert done.returncode in (1, 2), done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert any(name in lines[0] for name in ("mpi4py", "MPI", "torch")), done.stderr


@pytest.mark.parametrize("command", ["explore --ranks 2", "fuzz"])
def test_proofs_say_what_is_missing(pure: Environment, command: str) -> None:
    done = pure.wagma(*command.split())
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "wagma._proof cannot be imported" in line


@pytest.mark.long
def test_failed_build_falls_back_to_pure(sources: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "fallback")
    environment.pip_install("simpy", "numpy", "scipy")
    printed = environment.pip_install("--verbose", "--no-deps", str(sources), CC="false", CXX="false")
    assert "pure-Python installation" in printed
    assert environment.native_modules() == []
    assert environment.wagma("--version").returncode == 0


@pytest.mark.long
def test_cuda_that_is_insisted_on_does_not_fall_back(sources: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "insisting")
    missing = str(tmp_path / "nvcc")
    line = f"WAGMA_CUDA = ON, but {missing} cannot be run: No such file or directory"
    for options, variables in (
        (("-C", "wagma.cuda=ON", "-C", f"wagma.nvcc={missing}"), {}),
        ((), {"WAGMA_CUDA": "ON", "WAGMA_NVCC": missing}),
    ):
        printed = environment.pip_refuses("--verbose", "--no-deps", str(sources), *options, **variables)
        assert line in printed
        assert "pure-Python installation" not in printed
