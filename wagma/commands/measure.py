"""Measure what messages, collectives and progress threads cost on this machine, for a scenario's [network].

LogGP parameters of the collective over shared memory and over MPI, of gossip's messages and of MPI's own, what adding up costs, the
memory's rate, and how long a sleeping progress thread takes to act: each with the bounds that 95 of 100 repetitions would keep. Takes well
under a minute; let nothing else run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from wagma.commands.options import add_output_options, check_writable, prints_table, write_text
from wagma.errors import InputError
from wagma.progress import Progress
from wagma.real.launching.launch import require, under_mpiexec
from wagma.studies import machine
from wagma.studies.machine import Figure, Machine, Settings
from wagma.text import table

TRANSPORTS = (*machine.TRANSPORTS, "both")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("-n", "--ranks", type=int, default=2, metavar="N", help="ranks to start (default: 2)")
    parser.add_argument("--transport", choices=TRANSPORTS, default="both", help="of the collective (default: both)")
    parser.add_argument(
        "--bytes", type=int, default=machine.MODEL_BYTES, metavar="N",
        help=f"size of the model that will be averaged (default: {machine.MODEL_BYTES})",
    )  # fmt: skip
    parser.add_argument(
        "--work", type=float, default=machine.WORK_S, metavar="SECONDS",
        help=f"what a rank computes after each collective before it sleeps (default: {machine.WORK_S:g})",
    )  # fmt: skip
    parser.add_argument(
        "--application", choices=machine.APPLICATIONS, default="computing",
        help="what a late rank does in the file: computing, or sleeping, as where training.paced is set (default: computing)",
    )  # fmt: skip
    parser.add_argument(
        "--repetitions",
        type=int,
        default=machine.REPETITIONS,
        metavar="N",
        help=f"of each probe (default: {machine.REPETITIONS})",
    )
    parser.add_argument("--write", metavar="FILE", help="write [network], with its levels, as TOML")
    add_output_options(parser, columns=False)


def run(options: argparse.Namespace) -> int:
    """Measure, then print and write."""
    chosen = tuple(machine.TRANSPORTS) if options.transport == "both" else (options.transport,)
    settings = Settings(options.ranks, chosen, options.bytes, options.work, options.repetitions)
    settings.check()
    check_writable(json=options.json, write=options.write)
    if under_mpiexec():
        raise InputError("wagma measure starts its ranks itself: run it without mpiexec")
    require(training=False, transport="mpi" if "mpi" in chosen else "auto")
    with Progress(f"measuring on {options.ranks} ranks", options.quiet) as progress:
        found = machine.measure(settings, progress)
    if options.write is not None:
        write_network(options.write, found, options.application)
    if prints_table(options):
        print(describe(found))
    write_text(options.json, json.dumps(machine.to_json(found), allow_nan=False))
    return 0


def write_network(name: str, found: Machine, application: str) -> None:
    """The sections as a file. Raises InputError if it cannot be written."""
    try:
        Path(name).write_text(machine.to_toml(found, application), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--write {name}: cannot be written: {error.strerror}") from error


def describe(found: Machine) -> str:
    """A table of the keys, by what they are of, and a line of what they rest on."""
    columns: dict[str, Any] = {}
    for transport in found.settings.transports:
        own = dict(found.keys[transport, "computing"])
        own["... if it sleeps"] = found.keys[transport, "sleeping"]["progress_computing_ns"]
        columns[f"collective, {'shared memory' if transport == 'shared' else 'MPI'}"] = own
    columns |= {"letters of gossip": found.letters, "MPI messages": found.messages}
    names = list(dict.fromkeys(name for own in columns.values() for name in own))
    names = sorted(names, key=lambda name: (name.startswith(("progress", "...")), 0))
    rows = [[name, *(_shown(own.get(name)) for own in columns.values())] for name in names]
    settings = found.settings
    below = (
        f"memory: {_rate(found.bandwidth)}, read and written by copies on all cores; adding up: {_shown(found.adding)} ns a byte;"
        f" a sleep of 5 ms is {_shown(found.oversleeping)} ns too long\n"
        f"{settings.ranks} ranks, {found.cores} cores, a model of {settings.model_bytes:,} bytes, {1e3 * settings.work_s:.3g} ms of work"
        f" after each collective; in parentheses: from where to where the value would be in 95 of 100 repetitions"
    )
    return f"{table(['', *columns], rows)}\n{below}"


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{_digits(figure.value)} ({_digits(figure.low)} to {_digits(figure.high)})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rate(figure: Figure) -> str:
    return f"{figure.value / 1e9:.1f} GB/s ({figure.low / 1e9:.1f} to {figure.high / 1e9:.1f})"
