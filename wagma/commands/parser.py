"""argparse, except that whatever is wrong is an InputError: one line that names the option, its value, and what is allowed."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from wagma.errors import InputError

#: What types that argparse calls by their function's name are called here.
TYPES: dict[Any, str] = {int: "a whole number", float: "a number"}


class Parser(argparse.ArgumentParser):
    """Of the program, and of each of its commands: argparse makes those of commands by the class of the program's."""

    def __init__(self, *positional: Any, **options: Any) -> None:
        super().__init__(*positional, **{"allow_abbrev": False, **options})
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Everything has to be known. Raises InputError."""
        self._given = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(self._given, namespace)
        if unknown:
            self._refuse(unknown[0])
        return found, []

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        if message.startswith("the following arguments are required"):
            for given in filter(self._is_unknown_option, self._given):  # argparse would speak of it later only
                self._refuse(given)
            if commands := [name for action in self._get_positional_actions() for name in action.choices or ()]:
                message += f", one of {', '.join(commands)}"
        message = re.sub(r"ignored explicit argument (.*)", r"\1: takes no value", message)
        raise InputError(f"{message} (see {self.prog} --help)")

    def _is_unknown_option(self, given: str) -> bool:
        """Not a short option with its value, nor a negative number."""
        known = given.partition("=")[0] in self._option_string_actions or given[:2] in self._option_string_actions
        return given.startswith("-") and not known and given not in ("-", "--") and not given[1].isdigit()

    def _refuse(self, given: str) -> NoReturn:
        if not given.startswith("-"):
            places = " ".join(_place(action) for action in self._get_positional_actions())
            self.error(f"argument {given!r}: one too many; allowed: {places or 'options only'}")
        shown = (action for action in self._get_optional_actions() if action.help != argparse.SUPPRESS)
        self.error(f"argument {given}: unknown; allowed: {', '.join(max(one.option_strings, key=len) for one in shown)}")

    # What argparse complains of in these, it would say in other words.

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r}: must be one of {', '.join(map(str, action.choices))}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if action.type not in TYPES:
                raise
            raise argparse.ArgumentError(action, f"{arg_string!r}: must be {TYPES[action.type]}") from None

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError:
            raise argparse.ArgumentError(action, f"must be followed by {_place(action)}") from None


def _place(action: argparse.Action) -> str:
    return str(action.metavar or action.dest)
