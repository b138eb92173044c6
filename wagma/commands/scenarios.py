"""List the packaged scenarios, show one of them, or print what a scenario may hold.

`schema` is for editors: save it, and name it in the first line of a scenario, #:schema ./scenario.schema.json.
"""

from __future__ import annotations

import argparse

from wagma.errors import InputError
from wagma.reference.schema import reference_text, schema_text
from wagma.scenario import load, packaged
from wagma.text import table


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="name, ranks and description of each (the default)")
    show = actions.add_parser("show", help="print one, ready to be saved and changed")
    actions.add_parser("reference", help="print every key with its type, unit, default and meaning")
    actions.add_parser("schema", help="print the same as a JSON schema")
    show.add_argument("name", metavar="NAME", help="a name from the list")


def run(options: argparse.Namespace) -> int:
    """Print the list or the file."""
    known = packaged()
    if options.action == "reference":
        print(reference_text(), end="")
    elif options.action == "schema":
        print(schema_text())
    elif options.action != "show":
        loaded = [load(name) for name in known]
        rows = [[s.name, str(s.ranks), str(s.iterations), str(s.table.get("description", ""))] for s in loaded]
        print(table(["scenario", "ranks", "iterations", "description"], rows))
    elif options.name not in known:
        raise InputError(f"scenario {options.name!r}: not packaged; packaged: {', '.join(known)}")
    else:
        print(known[options.name].read_text(encoding="utf-8"), end="")
    return 0
