"""The options that commands share, and what they turn into: scenarios, and files for the results."""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagma.errors import InputError
from wagma.files import why_not_writable
from wagma.results import Result, to_json
from wagma.scenario import Scenario, changed, load_table, read

STDOUT = "-"


def add_scenario_options(parser: argparse.ArgumentParser, algorithms: str | None) -> None:
    """A scenario and what changes it; `algorithms` is the default."""
    parser.add_argument("scenario", metavar="SCENARIO", help="a TOML file, or a name that `wagma scenarios` lists")
    parser.add_argument(
        "--algorithms",
        "--algorithm",
        metavar="A,B|all",
        default=algorithms,
        help=f"which to run (default: {algorithms or 'all'})",
    )
    parser.add_argument("--iterations", type=_integer_or(None), metavar="N", help="iterations of each rank")
    parser.add_argument("--seed", type=_integer_or(None), metavar="N", help="what all random draws come from")
    parser.add_argument(
        "--group-size",
        type=_integer_or("sqrt"),
        metavar="N|sqrt",
        help="ranks in a group; for every algorithm, also where the scenario gives one its own",
    )
    parser.add_argument(
        "--sync-period",
        type=_integer_or("never"),
        metavar="N|never",
        help="iterations from sync to sync; for every algorithm, also where the scenario gives one its own",
    )
    parser.add_argument("--delay", type=_number, metavar="SECONDS", help="delay_s of every [[imbalance]] of the scenario")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a dotted key of the scenario, with the last word over other options; VALUE is TOML, or else a string",
    )


def add_run_options(parser: argparse.ArgumentParser, engines: Sequence[str], algorithms: str) -> None:
    """What simulate and train have in common; the first of `engines` and `algorithms` are the defaults."""
    add_scenario_options(parser, algorithms)
    parser.add_argument("--engine", choices=engines, default=engines[0], help=f"what runs it (default: {engines[0]})")
    parser.add_argument(
        "--trace", metavar="FILE", help="write the trace; of several runs, to FILE with .ALGORITHM.RANKS before its suffix"
    )
    add_output_options(parser)


def add_output_options(parser: argparse.ArgumentParser, *, columns: bool = True) -> None:
    """--json, -q and -v; columns: there are more that -v can show."""
    parser.add_argument(
        "--json", metavar="FILE|-", help="write the results as JSON; with - nothing else goes to standard output"
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="no table and no progress")
    if columns:
        loudness.add_argument("-v", "--verbose", action="store_true", help="more columns")


def parse_ranks(text: str) -> list[int]:
    """ "16,64" -> [16, 64]. Raises ArgumentTypeError."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise argparse.ArgumentTypeError(f"{text!r}: must be different whole numbers, at least 1, with commas between")
    return sizes


def load_scenarios(options: argparse.Namespace, ranks: Sequence[int] | None = None) -> list[Scenario]:
    """The scenario with all options applied, once for each number of ranks. Raises InputError.

    The options come first: a file may lack what they give.
    """
    table, source = load_table(options.scenario)
    changes = scenario_changes(options, table, source)
    if ranks is None:
        return [read(changed(table, changes, source), source)]
    if "ranks" in changes:
        raise InputError(f"--set ranks={changes['ranks']}: the number of ranks is given by another option already")
    return [read(changed(table, {"ranks": size, **changes}, source), source) for size in ranks]


def scenario_changes(options: argparse.Namespace, table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The dotted keys that the options set. Raises InputError for a --set that is none, or a --delay of nothing."""
    changes: dict[str, Any] = {}
    for key in ("iterations", "seed"):
        if (value := getattr(options, key)) is not None:
            changes[key] = value
    training = table.get("training", {})
    if options.iterations is not None and isinstance(training, dict) and "iterations" in training:
        changes["training.iterations"] = {}  # as below: who asks for so many means it
    for key in ("group_size", "sync_period"):
        if (value := getattr(options, key)) is not None:
            changes[f"algorithm.{key}"] = value
            # Who asks for a period means it: a scenario's own one for local_sgd, say, must not quietly stay.
            own = table.get("algorithms", {})
            sections = own.items() if isinstance(own, dict) else ()
            changes |= {f"algorithms.{name}.{key}": value for name, section in sections if key in section}
    settings = parse_settings(options.set)
    if options.delay is not None:
        imbalance = settings.get("imbalance", table.get("imbalance", []))
        if not imbalance or not isinstance(imbalance, list):
            raise InputError(f"--delay {options.delay:g}: {source} has no [[imbalance]] whose delay_s it could set")
        changes |= {f"imbalance.{number}.delay_s": options.delay for number in range(len(imbalance))}
    # A whole section first, then keys inside it, whatever option they come from.
    return dict(sorted((changes | settings).items(), key=lambda change: change[0].count(".")))


def forwarded(options: argparse.Namespace) -> list[str]:
    """The options of `add_scenario_options` as a command line again, for ranks; but for scenario, algorithms and seed."""
    given: list[str] = []
    for key in ("iterations", "group_size", "sync_period", "delay"):
        if (value := getattr(options, key)) is not None:
            given += [f"--{key.replace('_', '-')}", str(value)]
    for setting in options.set:
        given += ["--set", setting]
    return given


def parse_settings(settings: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """["a.b=1"] -> {"a.b": 1}. What is no TOML value is a string. Raises InputError, naming the option."""
    changes = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise InputError(f"{option} {setting}: must be KEY=VALUE with a dotted key, for example network.latency_ns=500")
        changes[key.strip()] = toml_value(text.strip())
    return changes


def toml_value(text: str) -> Any:
    """The TOML value that `text` is, else `text` itself."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A line break would let the text go on with keys of its own.
    return table["value"] if len(table) == 1 else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number") from None


def _integer_or(word: str | None) -> Any:
    def parse(text: str) -> int | str:
        if text == word:
            return text
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number{f' or {word}' if word else ''}") from None

    return parse


def trace_path(base: str, algorithm: str, ranks: int, several: bool) -> Path:
    """Where the trace of a run goes: `base`, or next to it under a name of its own if there are several runs."""
    path = Path(base)
    return path.with_name(f"{path.stem}.{algorithm}.{ranks}{path.suffix}") if several else path


def check_writable(**files: str | None) -> None:
    """Raise InputError, before any work is done, if a file that an option names cannot be written, or if two name the same."""
    taken: dict[str, str] = {}
    for option, name in files.items():
        if name is None or (name == STDOUT and option == "json"):
            continue
        reason = "it goes to a file" if name == STDOUT else why_not_writable(name)
        if reason is not None:
            raise InputError(f"--{option} {name!r}: cannot be written: {reason}")
        first = taken.setdefault(os.path.realpath(name), option)
        if first != option:
            raise InputError(f"--{option} {name!r}: --{first} goes to the same file; must be another one")


def write_json(target: str | None, scenario: str, results: Sequence[Result]) -> None:
    """Write the results where --json says. Raises InputError if that fails."""
    write_text(target, to_json(scenario, results))


def write_text(target: str | None, text: str) -> None:
    """One line to a file, or to standard output for "-". Raises InputError if the file cannot be written."""
    if target == STDOUT:
        print(text)
    elif target is not None:
        try:
            Path(target).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--json {target}: cannot be written: {error.strerror}") from error


def prints_table(options: argparse.Namespace) -> bool:
    """Whether tables go to standard output."""
    return not options.quiet and options.json != STDOUT


def overview(scenario: Scenario, world: str) -> str:
    """The line above a table: what was run."""
    delays = ", ".join(f"{i.delay_s:g} s" for i in scenario.imbalance)
    delayed = f"delays of {delays}" if delays else "no injected delay"
    return f"{scenario.name}: {world}, {scenario.iterations} iterations, seed {scenario.seed}, {delayed}"
