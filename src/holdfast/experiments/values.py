"""A value out of YAML held against the type of its field, and what is wrong with it in words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from holdfast.errors import ConfigError, did_you_mean


def check_value(value: Any, annotation: Any, where: str) -> Any:
    """`value` as its field's type; text such as `1e-4` becomes the number it looks like.

    Raises:
        ConfigError: another type, a number out of range or not finite; starts with `where`.
    """
    if mistaken_for_number(value, annotation):
        raise ConfigError(f"{where}: expected a number, got {shown(value)}")
    try:
        return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        fault: Any = error.errors()[0]
        raise ConfigError(f"{where}: {fault_words(fault)}") from error


def mistaken_for_number(value: Any, annotation: Any) -> bool:
    """Whether a truth value would pass as 1 or 0 where a number belongs."""
    return isinstance(value, bool) and set(members(annotation)) <= {int, float, type(None)}


def members(annotation: Any) -> tuple[Any, ...]:
    """What a union joins; a type that is none, alone. Metadata is left out."""
    if hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return get_args(annotation)
    return (annotation,)


def fault_words(fault: Mapping[str, Any]) -> str:
    """One of pydantic's faults, for somebody who wrote YAML."""
    value, kind = fault["input"], fault["type"]
    got = f"got {shown(value)}"
    if kind == "missing":
        return "missing"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"expected keys with values, {got}"
    if kind in ("string_type", "enum", "literal_error"):
        known = re.findall(r"'([^']*)'", fault.get("ctx", {}).get("expected", ""))
        if isinstance(value, str) and known:
            return f"no such value as {shown(value)}{did_you_mean(value, known)}"
        expected = f"must be {fault['ctx']['expected']}" if known else "expected text"
        return f"{expected}, {got}{_quotes(value, known)}"
    words = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return words if kind == "value_error" and isinstance(value, dict) else f"{words}, {got}"


def _quotes(value: Any, known: list[str]) -> str:
    """How to write text that YAML reads as something else; nothing where no text would do."""
    if (
        value is None
        or isinstance(value, list | dict)
        or (known and not {"yes", "no", "on", "off"} & {*known})
    ):
        return ""
    truth = isinstance(value, bool)
    reason = " (YAML reads yes, no, on and off as truth values)" if truth else ""
    return f"""{reason}: put text in quotes, on a command line as 'key="{"no" if truth else value}"'"""


def shown(value: Any) -> str:
    """A value as YAML has it, not as Python does. Of a URL, which may carry a key, only the scheme."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value) if isinstance(value, str | list | dict) else str(value)
    return re.sub(r"(\w://)[^'\"]*", r"\1...", text)
