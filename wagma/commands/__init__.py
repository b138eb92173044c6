"""The commands of the command line, one module each: its docstring is the help, `configure` adds options, `run` does it."""

from __future__ import annotations

import argparse
from typing import Protocol, cast

from wagma.commands import demo, env, scenarios, simulate, train, validate


class Command(Protocol):
    """What the command line needs of a module in this folder."""

    __name__: str
    __doc__: str | None

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""

    def run(self, options: argparse.Namespace) -> int:
        """Carry the command out; returns the exit status."""


#: In the order of the help.
COMMANDS = tuple(cast(Command, module) for module in (simulate, train, validate, demo, scenarios, env))
