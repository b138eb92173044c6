"""`wagma bench training`: what distributing an optimizer costs one rank, and several beside DistributedDataParallel."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from wagma.commands.bench_device import NO_TIMES
from wagma.commands.bench_ranks import check, choices, device, listed
from wagma.commands.options import add_output_options, parse_ranks, prints_table, write_text
from wagma.errors import InputError
from wagma.progress import Progress
from wagma.real.devices.choice import choose
from wagma.real.launching.launch import require
from wagma.studies import training
from wagma.studies.collective_device import EMULATED
from wagma.text import seconds, table

DEFAULT = training.Settings()
#: Options of one part only: field of Settings -> how the command calls it.
OF_PART = {
    "overhead": {"parameters": "--parameters", "iteration_s": "--iteration"},
    "balanced": {"ranks": "--ranks", "counts": "--count", "batch": "--batch"},
}


def configure(kinds: Any) -> None:
    """Add the subcommand."""
    one = kinds.add_parser("training", help="a training loop, distributed, beside the bare one and DistributedDataParallel")
    one.add_argument(
        "--part", type=choices(training.PARTS), metavar=",".join(training.PARTS),
        help="one rank over its bare optimizer; several balanced ranks over gloo (default: both; with --device: overhead)",
    )  # fmt: skip
    one.add_argument("--parameters", type=int, metavar="N", help=f"of the one rank's model (default: {DEFAULT.parameters})")
    one.add_argument(
        "--iteration", type=float, dest="iteration_s", metavar="SECONDS",
        help="that the one rank's bare iteration takes; the batch follows from it (default: {host}; with --device {device})".format(
            **training.ITERATION_S
        ),
    )  # fmt: skip
    one.add_argument(
        "--device", type=device, metavar="DEVICE",
        help="where the one rank's model and data are: cpu, cuda, cuda:N or emulated (default: cpu)",
    )  # fmt: skip
    one.add_argument("-n", "--ranks", type=int, metavar="N", help=f"balanced ranks (default: {DEFAULT.ranks})")
    one.add_argument(
        "--count", type=parse_ranks, dest="counts", metavar="N,M",
        help=f"parameters of balanced ranks' models (default: {listed(DEFAULT.counts)})",
    )  # fmt: skip
    one.add_argument("--batch", type=int, metavar="N", help=f"samples of a balanced rank (default: {DEFAULT.batch})")
    one.add_argument(
        "--iterations", type=int, metavar="N", help="of each loop in each repetition (default: 10; more for smaller models)"
    )
    one.add_argument(
        "--repetitions", type=int, default=DEFAULT.repetitions, metavar="N", help="of everything (default: %(default)s)"
    )
    add_output_options(one)


def run(options: argparse.Namespace) -> int:
    """Measure, then print."""
    check(options)
    parts = options.part or (["overhead"] if options.device else training.PARTS)
    own = {name: value for of in OF_PART.values() for name in of if (value := getattr(options, name)) is not None}
    settings = training.Settings(
        parts=parts, iterations=options.iterations, repetitions=options.repetitions, device=options.device, **own
    )
    settings.check()
    _check_used(options, parts)
    require()
    if options.device is not None:
        choose(options.device, 0, 0)  # else the rank would say that it cannot
    with Progress("measuring training loops", options.quiet) as progress:
        found = training.measure(settings, progress)
    if prints_table(options):
        print(describe(found))
    write_text(options.json, json.dumps(found))
    return 0


def _check_used(options: argparse.Namespace, parts: Sequence[str]) -> None:
    """Raise InputError for an option of a part that is not measured."""
    for part in training.PARTS:
        for name, option in OF_PART[part].items():
            value = getattr(options, name)
            if part not in parts and value is not None:
                given = listed(value) if isinstance(value, list) else f"{value:.9g}"
                why = "with --device one rank is measured (overhead)" if options.device else f"--part {','.join(parts)}"
                raise InputError(f"{option} {given}: of {part}, which is not measured: {why}; leave it out")


def describe(found: Mapping[str, Any]) -> str:
    """A table for each part."""
    texts = []
    if (one := found.get("overhead")) is not None:
        rows = [
            [
                row["loop"], seconds(row["median_s"]), "{} to {}".format(*map(seconds, row["quartiles_s"])),
                "" if row["loop"] == "bare" else _share(row["overhead"], row["overhead_spread"]),
            ]
            for row in one["results"]
        ]  # fmt: skip
        where = "" if one["device"] is None else f" on {one['device']['name']}"
        texts.append(
            f"one rank{where}, {one['parameters']:,} parameters, batch {one['batch']}, {one['threads']} threads\n"
            + table(["loop", "iteration", "middle half", "over bare"], rows)
        )
        if one["transport"] is not None:
            texts.append(
                f"{training.EXCHANGING}: publishes and takes back its whole model, as one of several ranks does, through"
                f" {one['transport']}; the other loops of a rank alone move nothing of it"
            )
        if one["device"] is not None and one["device"]["kind"] == EMULATED:
            texts.append(NO_TIMES)
    if (several := found.get("balanced")) is not None:
        rows = [
            [
                f"{row['parameters']:,}", row["loop"], seconds(row["median_s"]), "{} to {}".format(*map(seconds, row["spread_s"])),
                "{:.2f} ({:.2f} to {:.2f})".format(row["ratio_to_ddp"], *row["ratio_to_ddp_spread"]),
            ]
            for row in several["results"]
        ]  # fmt: skip
        first = several["results"][0]
        texts.append(
            f"{first['ranks']} balanced ranks, batch {first['batch']}, {several['threads']} threads a rank\n"
            + table(["parameters", "loop", "iteration", "least to most", "over ddp"], rows)
        )
    texts.append(f"ratios: median of {found['repetitions']} repetitions (least to most)")
    return "\n\n".join(texts)


def _share(value: float, spread: list[float]) -> str:
    return "{:+.1f} % ({:+.1f} % to {:+.1f} %)".format(*(100 * number for number in (value, *spread)))
