"""The reference of scenario keys as a JSON schema (draft 7, which TOML plug-ins of editors read) and as a page of Markdown."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from wagma.reference.keys import Section, sections
from wagma.reference.kinds import REQUIRED, Key, Kind, Schema

_HEAD = """# Every key of a scenario

Made from `wagma/reference/keys.py`, by `wagma scenarios reference`; `wagma scenarios schema` prints the same as a JSON schema. What the
keys mean together is in [scenarios.md](scenarios.md).

An editor with a TOML plug-in that knows schemas (Even Better TOML, Taplo) completes and checks keys if the first line of a scenario names
the schema:

```toml
#:schema ./scenario.schema.json
```

for a file made by `wagma scenarios schema > scenario.schema.json`, or the one beside this page. The reader is stricter than a schema can
be: a group is no larger than the number of ranks, for instance.
"""


def schema() -> Schema:
    """The JSON schema of a scenario."""
    known = {section.name: section for section in sections()}
    top = _table(known[""].keys)
    properties = top["properties"]
    for name, section in known.items():
        path = name.split(".")
        if name in ("", "compute.components") or path[0] == "algorithms":
            continue
        here = properties
        for part in path[:-1]:
            here = here[part]["properties"]
        here[path[-1]] = _section(section)
    own = [section for name, section in known.items() if name.startswith("algorithms.")]
    properties["algorithms"] = _table(()) | {
        "description": "Settings of one algorithm, over those of all.",
        "properties": {section.name.partition(".")[2]: _section(section) for section in own},
    }
    top["required"] += ["model", "work", "compute"]
    component = _section(known["compute.components"])["items"]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A scenario of wagma",
        **top,
        "definitions": {"component": component},
    }


def schema_text() -> str:
    """The schema as `wagma scenarios schema` prints it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False)


def _section(section: Section) -> Schema:
    if section.kinds:
        table: Schema = {"oneOf": [_kind(section, kind) for kind in section.kinds]}
    else:
        table = _table(section.keys, section.open)
    if section.array:
        return {"type": "array", "items": table, "description": section.title}
    return {**table, "description": section.title}


def _kind(section: Section, kind: Kind) -> Schema:
    selector = Key("kind", {"const": kind.name}, kind.meaning)
    return _table((selector, *section.keys, *kind.keys), kind.open)


def _table(keys: Sequence[Key], rest: Schema | None = None) -> Schema:
    properties = {}
    for key in keys:
        unit = f", {key.unit}" if key.unit else ""
        properties[key.name] = {**key.schema, "description": f"{key.meaning}{unit}"}
        if key.default is not REQUIRED and not str(key.default).startswith("("):
            properties[key.name]["default"] = key.default
    return {
        "type": "object",
        "properties": properties,
        "required": [key.name for key in keys if key.default is REQUIRED],
        "additionalProperties": False if rest is None else rest,
    }


def reference_text() -> str:
    """docs/reference.md."""
    parts = [_HEAD]
    known = sections()
    for section in known:
        if section.name.startswith("algorithms."):
            continue
        heading = f"[[{section.name}]]" if section.array else f"[{section.name}]"
        parts.append(f"## {f'`{heading}`: ' if section.name else ''}{section.title}")
        if section.keys:
            parts.append(_rows(section.keys))
        if section.open is not None:
            parts.append('Keys are those of the scenario, in quotes: `"network.gap_per_byte_ns" = [0.05, 0.5]`.')
        if section.name == "compute.components":
            parts.append(f"`kind`, with the keys that it has above: {_names(section)}. And of each:")
            parts.append(_rows([key for key in section.kinds[0].keys if key.name == "weight"]))
        elif section.name == "noise.per_iteration":
            parts.append(f"`kind`, with the keys that it has above: {_names(section)}.")
        elif section.kinds:
            parts += _kinds(section, heading)
        if section.name == "algorithm":
            parts += _own_settings(known)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _kinds(section: Section, heading: str) -> list[str]:
    parts = [f"`kind`: {_names(section)}"]
    for kind in section.kinds:
        parts += [f'**`kind = "{kind.name}"`**: {kind.meaning}{_further(kind)}', _rows(kind.keys)]
        parts += [_example(heading, example) for example in kind.examples if kind.name != "mixture"]
    return parts


def _own_settings(known: Sequence[Section]) -> list[str]:
    """All `[algorithms.NAME]` together: most of their keys are the same."""
    shared = {key.name for section in known if section.name == "algorithm" for key in section.keys}
    own: dict[str, tuple[Key, list[str]]] = {}
    for section in known:
        _, _, algorithm = section.name.partition("algorithms.")
        for key in section.keys if algorithm else ():
            if key.name not in shared:
                own.setdefault(key.name, (key, []))[1].append(algorithm)
    lines = ["| key | of | type | default | meaning |", "|---|---|---|---|---|"]
    for key, algorithms in own.values():
        lines.append(
            f"| `{key.name}` | {', '.join(f'`{name}`' for name in algorithms)} | {describe(key.schema)} | {_default(key)} "
            f"| {key.meaning} |"
        )
    title = "## `[algorithms.NAME]`: Settings of one algorithm, over those of all"
    return [
        title,
        "The keys of `[algorithm]`, by default with its values; and some that only certain algorithms have:",
        "\n".join(lines),
    ]


def _names(section: Section) -> str:
    return ", ".join(f"`{kind.name}`" for kind in section.kinds)


def _further(kind: Kind) -> str:
    return "" if kind.open is None else "; further keys: its shape parameters, numbers, under the names that scipy gives them"


def _rows(keys: Sequence[Key]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        unit = f" ({key.unit})" if key.unit else ""
        lines.append(f"| `{key.name}` | {describe(key.schema)}{unit} | {_default(key)} | {key.meaning} |")
    return "\n".join(lines)


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    text = str(key.default)
    return text[1:-1] if text.startswith("(") else f"`{toml(key.default)}`"


def describe(schema: Mapping[str, Any]) -> str:
    """A schema of a value in words."""
    if "$ref" in schema:
        return "tables"
    if "const" in schema:
        return f"`{toml(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{toml(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(describe(choice) for choice in schema["anyOf"])
    match schema["type"]:
        case "boolean":
            return "`true`, `false`"
        case "string":
            return "string"
        case "array":
            several = f"array of {schema['minItems']}" if schema.get("maxItems") else "array of"
            return f"{several} {_plural(describe(schema['items']))}"
    words = "whole number" if schema["type"] == "integer" else "number"
    if "exclusiveMinimum" in schema:
        words += " above 0"
    elif "minimum" in schema:
        words += f" from {schema['minimum']:g}"
    largest = schema.get("maximum")
    # Limits that only keep arithmetic finite are for the schema, not for the reader.
    return f"{words} to {largest:,g}" if largest is not None and largest <= 1e6 else words


def _plural(words: str) -> str:
    return words.replace("number", "numbers", 1) if words.startswith(("number", "whole number")) else words


def _example(heading: str, example: Mapping[str, Any]) -> str:
    lines = "\n".join(f"{key} = {toml(value)}" for key, value in example.items())
    return f"```toml\n{heading}\n{lines}\n```"


def toml(value: Any) -> str:
    """A value as TOML writes it; JSON does so for what scenarios hold, tables excepted."""
    text = json.dumps(value, ensure_ascii=False)
    assert tomllib.loads(f"value = {text}") == {"value": value}
    return text
