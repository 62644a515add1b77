"""YAML as a run reads it, and `key.path=value` overrides of it.

Stricter than plain YAML where that is a trap: a key given twice and a key that is no text are errors, and `1e-6` is the
number it looks like (as in YAML 1.2), not text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from holdfast.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
MOST_VALUES = 10_000  # far more than any run needs; aliases of aliases reach billions in ten lines


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses keys which would be misread, or drowned by a later one, and aliases without end."""

    def get_single_node(self) -> Any:
        """As the SafeLoader's, its aliases counted as what they stand for: merge keys and messages write them out."""
        node: Any = super().get_single_node()
        if node is not None and _values(node, {}) > MOST_VALUES:
            raise _fault(f"with its aliases written out the file has more than {MOST_VALUES} values", node)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """As the SafeLoader's, checked.

        Here and not where values are made: by then merge keys have put pairs of other mappings into the node.
        """
        node: Any = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault("a key must be text, not a list or a mapping", key)
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                kind = key.tag.removeprefix(_TAG)
                raise _fault(f"YAML reads the key {key.value or 'here'} as {kind}: write it in quotes", key)
            if (key.tag, key.value) in lines:
                first = lines[key.tag, key.value]
                raise _fault(f"the key '{key.value}' is given twice (first in line {first}); keep one", key)
            lines[key.tag, key.value] = key.start_mark.line + 1
        return node


def _values(node: Any, counted: dict[int, int | None]) -> int:
    """The values of a node, its aliases written out; `counted` holds those known, None while one is counted."""
    if id(node) in counted:
        known = counted[id(node)]
        if known is None:
            raise _fault("an alias stands within what it stands for", node)
        return known
    counted[id(node)] = None
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    inner = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
    counted[id(node)] = total = 1 + sum(_values(part, counted) for part in inner)
    return total


def _fault(problem: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a file holds.

    Raises:
        ConfigError: no such file, not YAML (names the line), or no mapping; always names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no config file '{path}'") from error
    except OSError as error:
        raise ConfigError(f"config file '{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    raw = _parse(text, f"{path} is not valid YAML: ", lines=True)
    if not isinstance(raw, dict):
        found = "the file is empty" if raw is None else f"found {_kind(raw)}"
        raise ConfigError(f"{path}: expected keys such as `model`, `data`, `align` at the top; {found}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in place; the value is read as YAML.

    `align.objective.hard_margin=1.2` works on a bare name too: `objective: slime` becomes a mapping first.

    Raises:
        ConfigError: no `=`, a path through something that is no mapping, or a value that is not YAML.
    """
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"'{override}' is not an override; write key=value, as in align.learning_rate=1.0e-6"
        )
    node = raw
    for depth, key in enumerate(keys[:-1]):
        child = node.get(key)
        if child is None:
            child = {}
        elif isinstance(child, str) and key in ("objective", "model"):
            child = {"name": child}
        elif not isinstance(child, dict):
            raise ConfigError(f"'{override}': '{'.'.join(keys[: depth + 1])}' is a value, not a section")
        node[key] = dict(child)  # a copy: an alias may have put the same mapping elsewhere too
        node = node[key]
    node[keys[-1]] = _parse(value, f"'{override}': the value is not valid YAML: ", lines=False)


def _parse(text: str, start: str, *, lines: bool) -> Any:
    """The text's value.

    Args:
        start: of an error's message.
        lines: name the line of a fault.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if lines and mark is not None else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        before = text[: mark.index + 1].rpartition("\n")[2] if mark is not None else ""
        hint = "; indent with spaces, YAML takes no tabs" if before.isspace() and "\t" in before else ""
        raise ConfigError(f"{start}{where}{problem}{hint}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, such as 2024-13-01
        raise ConfigError(f"{start}{str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{start}nested too deeply") from error


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the value {value!r}"
