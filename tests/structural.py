"""Kubernetes' structural schemas, as far as HermesRun's definition uses them: checks and defaults.

Small on purpose, so that what the definition says can be compared with what the run document says without
an API server. Rules in CEL are not evaluated, but for patterns of keys.
"""

import copy
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

_KEY_RULE = re.compile(r"self\.all\(key, key\.matches\('(.*)'\)\)")
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def problems(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """What is wrong with `value`, unknown fields included."""
    kinds = (int, str) if schema.get("x-kubernetes-int-or-string") else _KINDS[schema["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        yield f"{path}: {value!r} is of another type"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    match value:
        case bool():
            pass
        case int() | float():
            if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
                yield f"{path}: {value} is out of range"
            if schema.get("format") == "int64" and not -(2**63) <= value < 2**63:
                yield f"{path}: {value} has more than 64 bits"
        case str():
            yield from _text_problems(value, schema, path)
        case list():
            if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
                yield f"{path}: {len(value)} items"
            for index, item in enumerate(value):
                yield from problems(item, schema["items"], f"{path}[{index}]")
        case dict():
            yield from _object_problems(value, schema, path)


def _text_problems(value: str, schema: dict[str, Any], path: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path}: {len(value)} characters"
    pattern = schema.get("pattern", "")
    if pattern and not re.search(pattern.removesuffix("$") + (r"\Z" if pattern.endswith("$") else ""), value):
        yield f"{path}: {value!r} does not match {pattern}"
    if schema.get("format") == "date-time":
        try:
            datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            yield f"{path}: {value!r} is no time"


def _object_problems(value: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}: {name} is missing"
    if len(value) > schema.get("maxProperties", len(value)):
        yield f"{path}: {len(value)} fields"
    for rule in schema.get("x-kubernetes-validations", ()):
        found = _KEY_RULE.fullmatch(rule["rule"])
        pattern = found[1].removesuffix("$") + r"\Z" if found else ""
        for key in value:
            if not re.search(pattern, key):
                yield f"{path}: {rule['message']}: {key}"
    for name, held in value.items():
        known = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
        if known is not None:
            yield from problems(held, known, f"{path}.{name}")
        elif schema.get("properties"):
            yield f"{path}: unknown field {name}"


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """`value` with every default that the schema has."""
    if isinstance(value, list):
        return [with_defaults(item, schema["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    made = dict(value)
    for name, known in schema.get("properties", {}).items():
        if name not in made and "default" in known:
            made[name] = copy.deepcopy(known["default"])
        if name in made:
            made[name] = with_defaults(made[name], known)
    return made
