"""Kinds of compute times and of imbalance, for the reference of scenario keys (`wagma.reference.keys`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wagma.sections import LARGEST
from wagma.timing.compute import COMPONENT_KINDS, LONGEST_S
from wagma.timing.imbalance import LONGEST_BURST

Schema = dict[str, Any]

#: The default of a key that has to be there.
REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Key:
    """One key. schema: its type and range, as JSON Schema says it. default: a value, or a text in parentheses; REQUIRED without."""

    name: str
    schema: Schema
    meaning: str
    default: Any = REQUIRED
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """One `kind` of a section, with its own keys. open: a schema for whatever further keys there may be. examples: valid, whole."""

    name: str
    meaning: str
    keys: tuple[Key, ...]
    examples: tuple[Mapping[str, Any], ...]
    open: Schema | None = None


def integer(minimum: int, maximum: int | None = None) -> Schema:
    """A whole number from minimum to maximum."""
    return {"type": "integer", "minimum": minimum} | ({} if maximum is None else {"maximum": maximum})


def number(minimum: float = 0.0, maximum: float = LARGEST) -> Schema:
    """A number from minimum to maximum."""
    return {"type": "number", "minimum": minimum, "maximum": maximum}


def positive(maximum: float = LARGEST) -> Schema:
    """A number above 0."""
    return {"type": "number", "exclusiveMinimum": 0, "maximum": maximum}


def choice(allowed: Any) -> Schema:
    """One of these."""
    return {"enum": list(allowed)}


def either(word: str, other: Schema) -> Schema:
    """This word, or something else."""
    return {"anyOf": [{"const": word}, other]}


def array(items: Schema, least: int = 1) -> Schema:
    """An array of at least so many items."""
    return {"type": "array", "items": items} | ({"minItems": least} if least else {})


STRING: Schema = {"type": "string", "minLength": 1}
BOOLEAN: Schema = {"type": "boolean"}
_SECONDS = positive(LONGEST_S)
_POSITIVE = positive(LONGEST_S)
DELAY = Key("delay_s", number(0, LONGEST_S), "the delay of a rank that is hit", unit="s")
_COUNT = Key("count", integer(0), "how many ranks; all if there are fewer")
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}


def component(weighted: bool) -> tuple[Kind, ...]:
    """The kinds of compute times that can stand alone and in a mixture, there with a weight."""
    weight = (Key("weight", _POSITIVE, "of the component; weights need not sum to 1"),) if weighted else ()
    extra = {"weight": 1} if weighted else {}
    kinds = (
        Kind("constant", "the same always", (Key("seconds", _SECONDS, "the time", unit="s"),), ({"seconds": 0.4},)),
        Kind(
            "scipy",
            "a continuous distribution of scipy.stats with a finite mean and no negative values",
            (
                Key("distribution", STRING, "its name in scipy.stats"),
                Key("loc", {"type": "number", "maximum": LARGEST}, "where it begins, or its middle", 0.0, "s"),
                Key("scale", positive(), "its width", 1.0, "s"),
            ),
            ({"distribution": "gamma", "a": 2.0, "loc": 0.3, "scale": 0.05},),
            {"type": "number", "maximum": LARGEST},
        ),
        Kind(
            "samples",
            "one of these, drawn for each rank and iteration",
            (Key("seconds", array(_SECONDS), "the times", unit="s"),),
            ({"seconds": [0.31, 0.33, 0.58]},),
        ),
        Kind(
            "buckets",
            "batches of sequences of similar length: base_s + linear_s length + quadratic_s length²",
            (
                Key(
                    "lengths",
                    array({"anyOf": [_POSITIVE, array(_POSITIVE, 2) | {"maxItems": 2}]}),
                    "of the sequences of each bucket, or [shortest, longest]",
                ),
                Key("weights", array(_POSITIVE), "how often each bucket is taken", "(equal)"),
                Key("base_s", number(0, LONGEST_S), "the time of no sequence at all", 0.0, "s"),
                Key("linear_s", _SECONDS, "a unit of length adds that much", unit="s"),
                Key("quadratic_s", number(0, LONGEST_S), "and times the length, that much", 0.0, "s"),
                Key("shared", BOOLEAN, "all ranks take the same bucket in an iteration", False),
            ),
            ({"lengths": [16, [17, 64]], "weights": [3, 1], "linear_s": 0.005, "shared": True},),
        ),
    )
    return tuple(
        Kind(
            kind.name,
            kind.meaning,
            weight + kind.keys,
            tuple({"kind": kind.name, **extra, **e} for e in kind.examples),
            kind.open,
        )
        for kind in kinds
    )


COMPUTE = (
    *component(weighted=False),
    Kind(
        "mixture",
        "one of several, drawn for each rank and iteration",
        (
            Key("components", array({"$ref": "#/definitions/component"}), "`[[compute.components]]`, see below"),
            Key("shared", BOOLEAN, "all ranks take the same component in an iteration", False),
        ),
        ({"kind": "mixture", "components": [e for kind in component(weighted=True) for e in kind.examples], "shared": False},),
    ),
    Kind(
        "trace",
        "measured: rank r's time in iteration t, from the start again for ranks and iterations beyond the file's",
        (
            Key(
                "file",
                STRING,
                "CSV with the columns rank, iteration, seconds; relative to the scenario file",
                "(or `seconds`)",
            ),
            Key("seconds", array(array(_SECONDS)), "the same in place: an array for each rank", "(or `file`)", "s"),
        ),
        ({"kind": "trace", "seconds": [[0.4, 0.5], [0.6, 0.4]]},),
    ),
)

IMBALANCE = (
    Kind(
        "independent",
        "each rank by itself, in each iteration",
        (
            Key("probability", PROBABILITY, "of a rank to be hit", "(or `draws`)"),
            Key(
                "draws",
                integer(1),
                "as in the authors' program: hit with probability 1 - (1 - 1/P)^draws",
                "(or `probability`)",
            ),
        ),
        ({"kind": "independent", "delay_s": 0.3, "probability": 0.1}, {"kind": "independent", "delay_s": 0.3, "draws": 2}),
    ),
    Kind(
        "exactly",
        "so many distinct ranks, others in each iteration",
        (_COUNT,),
        ({"kind": "exactly", "delay_s": 0.3, "count": 2},),
    ),
    Kind(
        "linear",
        "rank r by delay_s r / (P - 1)",
        (Key("shuffled", BOOLEAN, "dealt out anew in each iteration", False),),
        ({"kind": "linear", "delay_s": 0.3, "shuffled": True},),
    ),
    Kind(
        "fixed",
        "the same ranks always",
        (
            Key("ranks", array(integer(0), 0) | {"uniqueItems": True}, "which", "(or `count`)"),
            Key("count", integer(0), "how many, drawn once from the seed", "(or `ranks`)"),
        ),
        ({"kind": "fixed", "delay_s": 0.3, "ranks": [0, 3]}, {"kind": "fixed", "delay_s": 0.3, "count": 1}),
    ),
    Kind(
        "burst",
        "a rank that is hit stays delayed for some iterations",
        (
            Key("probability", PROBABILITY, "of a rank to be hit in an iteration"),
            Key("length", integer(1, LONGEST_BURST), "how many iterations it stays delayed; a further hit prolongs it"),
        ),
        ({"kind": "burst", "delay_s": 0.3, "probability": 0.02, "length": 10},),
    ),
)

assert tuple(kind.name for kind in component(weighted=False)) == COMPONENT_KINDS
