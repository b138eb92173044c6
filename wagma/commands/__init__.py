"""The commands of the command line, one module each: its docstring is the help, `configure` adds options, `run` does it."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Protocol, cast

#: In the order of the help.
COMMANDS = (
    "simulate",
    "compare",
    "sweep",
    "calibrate",
    "plot",
    "train",
    "measure",
    "compare-worlds",
    "validate",
    "replay",
    "explore",
    "fuzz",
    "trace",
    "demo",
    "bench",
    "scenarios",
    "env",
)


class Command(Protocol):
    """What the command line needs of a module in this folder."""

    __name__: str
    __doc__: str | None

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""

    def run(self, options: argparse.Namespace) -> int:
        """Carry the command out; returns the exit status."""


def load_command(name: str) -> Command:
    """The module of a command."""
    return cast(Command, import_module(f"{__name__}.{name.replace('-', '_')}"))
