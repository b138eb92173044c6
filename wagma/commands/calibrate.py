"""Fit a scenario's free parameters to measured throughputs.

The file has the columns workload, ranks, algorithm, throughput and, if known, read_error and unit; workload is the name of the
scenario. One set of values serves all algorithms and scales. Printed are the values with their uncertainty, the error at each point, and
how well fits without the points of one scale predict that scale.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from wagma.commands.options import STDOUT, add_output_options, check_writable, parse_settings, prints_table
from wagma.errors import InputError
from wagma.fitting import Bounds, parse_bounds
from wagma.progress import Progress
from wagma.report.paper import FILE
from wagma.scenario import load, packaged
from wagma.studies import pool
from wagma.studies.calibrate import (
    Calibration,
    Comparison,
    LeftOut,
    Parameter,
    calibrate,
    in_processes,
    mean_beyond,
    mean_error,
)
from wagma.studies.observations import read_observations
from wagma.studies.tomledit import set_values
from wagma.text import number, percent, table

SCHEMA = 1
PAPER = "paper"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("scenario", metavar="SCENARIO", help="a TOML file, or a name that `wagma scenarios` lists")
    parser.add_argument(
        "--against",
        metavar="FILE|paper",
        required=True,
        help="the measured throughputs, CSV; paper: those that wagma brings along",
    )
    parser.add_argument(
        "--free",
        action="append",
        default=[],
        metavar="KEY,KEY|KEY=[LOW,HIGH]",
        help="what to fit, with the scenario's bounds or one's own; several times (default: the scenario's [calibration])",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a dotted key before the fit")
    parser.add_argument(
        "--leave-out", metavar="A,B", help='algorithms that are shown but not fitted (default: the scenario\'s; "" for none)'
    )
    parser.add_argument("--iterations", type=_positive, metavar="N", help="of every simulation (default: the scenario's)")
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="how many processes (default: one for each core); 1: this one"
    )
    parser.add_argument("--no-scales", action="store_true", help="no fits without one scale each, which take most of the time")
    parser.add_argument("--write", metavar="FILE", help="write the scenario with the fitted values, comments kept")
    add_output_options(parser)


def run(options: argparse.Namespace) -> int:
    """Fit, print, write."""
    check_writable(json=options.json)
    settings = parse_settings(options.set)
    if options.write is not None:
        _check_write(options.write, settings)
    scenario = load(options.scenario, settings)
    observations = (
        read_observations(FILE, scenario, PAPER) if options.against == PAPER else read_observations(options.against, scenario)
    )
    free = parse_free(options.free, dict(scenario.calibration.free))
    leave_out = None if options.leave_out is None else [name for name in options.leave_out.split(",") if name]
    for name in leave_out or []:
        if name not in {point.algorithm for point in observations}:
            raise InputError(f"--leave-out {name}: {options.against} has no such algorithm for {scenario.name}")
    runner = pool.run_here if options.jobs == 1 else in_processes(options.jobs or len(os.sched_getaffinity(0)))
    with Progress(f"calibrating {scenario.name}, at most", options.quiet) as progress:
        result = calibrate(
            scenario,
            observations,
            free,
            leave_out,
            options.iterations,
            not options.no_scales,
            runner,
            progress,
        )
    if options.write is not None:
        _write(options.write, options.scenario, settings | result.changes)
    if prints_table(options):
        print(describe(result, scenario.work_unit))
    if options.json is not None:
        _write_json(options.json, result)
    return 0


def parse_free(settings: list[str], known: dict[str, Bounds]) -> dict[str, Bounds]:
    """["a.b,c.d", "e.f=[0,1]"] -> {key: bounds}; without any, all that are known. Raises InputError for a key without bounds."""
    if not settings:
        return known
    free: dict[str, Bounds] = {}
    for setting in settings:
        if "=" in setting:
            for key, value in parse_settings([setting], "--free").items():
                if key in free:
                    raise InputError(f"--free {setting}: {key} is there twice")
                free[key] = parse_bounds(value, f"--free {key}")
            continue
        for key in (part.strip() for part in setting.split(",")):
            if key not in known:
                named = ", ".join(known) or "none"
                raise InputError(
                    f"--free {key}: no bounds; give them as {key}=[LOW,HIGH], or one of the scenario's [calibration.free]: {named}"
                )
            free[key] = known[key]
    return free


def describe(result: Calibration, unit: str) -> str:
    """The fit as text."""
    counted = [point for point in result.points if point.counted]
    text = [table(["parameter", "value", "±", "from", "to", ""], [_parameter_row(p) for p in result.parameters])]
    text.append(
        "±: one standard deviation if the errors at the points were independent; it knows nothing of what is wrong with the model"
    )
    text.append("")
    header = ["ranks", "algorithm", f"{unit}/s", "measured", "error", "beyond reading", ""]
    text.append(table(header, [_point_row(point) for point in result.points]))
    text.append(
        f"mean of {len(counted)} points: error {percent(mean_error(counted))}, beyond the reading {percent(mean_beyond(counted))}; "
        f"another seed changes a point by {percent(result.noise)}"
    )
    text.extend(
        f"fitted without {left.ranks} ranks, those predicted: error {percent(mean_error(left.points))}, "
        f"beyond the reading {percent(mean_beyond(left.points))}"
        for left in result.left_out
    )
    text.append(f"{result.simulations} simulations of {result.scenario.iterations} iterations")
    return "\n".join(text)


def _parameter_row(parameter: Parameter) -> list[str]:
    deviation = "not determined" if parameter.deviation is None else f"{parameter.deviation:.2g}"
    note = "at its bound" if parameter.at_bound else ""
    return [parameter.key, f"{parameter.value:.4g}", deviation, f"{parameter.low:g}", f"{parameter.high:g}", note]


def _point_row(point: Comparison) -> list[str]:
    observation = point.observation
    measured = f"{number(observation.throughput)} ± {number(observation.read_error)}"
    return [
        str(observation.ranks), observation.algorithm, number(point.simulated), measured,
        f"{100 * point.error:+.1f} %", percent(point.beyond), "" if point.counted else "left out",
    ]  # fmt: skip


def _write_json(name: str, result: Calibration) -> None:
    document = {
        "schema": SCHEMA,
        "scenario": result.scenario.name,
        "iterations": result.scenario.iterations,
        "simulations": result.simulations,
        "seed_noise": result.noise,
        "parameters": [_parameter_json(parameter) for parameter in result.parameters],
        "points": [_point_json(point) for point in result.points],
        "mean_error": mean_error(result.points),
        "mean_error_beyond_reading": mean_beyond(result.points),
        "left_out_scales": [_left_out_json(left) for left in result.left_out],
    }
    text = json.dumps(document, allow_nan=False)
    if name == STDOUT:
        print(text)
    else:
        Path(name).write_text(text + "\n", encoding="utf-8")


def _parameter_json(parameter: Parameter) -> dict[str, Any]:
    return {
        "key": parameter.key, "value": parameter.value, "deviation": parameter.deviation,
        "low": parameter.low, "high": parameter.high, "at_bound": parameter.at_bound,
    }  # fmt: skip


def _point_json(point: Comparison) -> dict[str, Any]:
    observation = point.observation
    return {
        "ranks": observation.ranks, "algorithm": observation.algorithm, "simulated": point.simulated,
        "measured": observation.throughput, "read_error": observation.read_error,
        "error": point.error, "beyond_reading": point.beyond, "counted": point.counted,
    }  # fmt: skip


def _left_out_json(left: LeftOut) -> dict[str, Any]:
    return {
        "ranks": left.ranks,
        "parameters": [_parameter_json(parameter) for parameter in left.parameters],
        "points": [_point_json(point) for point in left.points],
        "mean_error": mean_error(left.points),
        "mean_error_beyond_reading": mean_beyond(left.points),
    }


def _check_write(name: str, settings: dict[str, Any]) -> None:
    """Raise InputError, before any work is done, if the scenario cannot be written there."""
    path = Path(name)
    if not name or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--write {name}: must be a file in a folder that exists")
    if path.suffix != ".toml":
        raise InputError(f"--write {name}: a scenario is a .toml file")
    for key, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"--write {name}: --set {key}: only numbers can be written; set it in the scenario's file")


def _write(name: str, scenario: str, values: dict[str, float]) -> None:
    """The scenario's own text with these values in it."""
    source = packaged().get(scenario, Path(scenario))
    text = set_values(source.read_text(encoding="utf-8"), values, scenario)
    try:
        Path(name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--write {name}: cannot be written: {error.strerror}") from error


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 1")
    return value
