"""YAML as a run reads it: what plain YAML would pass over is an error that names the file, the line and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigError
from holdfast.experiments.yaml_file import apply_override, read_yaml


def read(tmp_path: Path, text: str) -> dict[str, Any]:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return read_yaml(file)


def test_numbers_look_like_numbers(tmp_path: Path) -> None:
    assert yaml.safe_load("a: 1e-6")["a"] == "1e-6"  # the trap
    numbers = {"1e-6": 1e-6, "-1E5": -1e5, "+2e+3": 2e3, ".5e3": 500.0, "1.e2": 100.0, "1.0e6": 1e6, "3": 3}
    for text, number in numbers.items():
        assert read(tmp_path, f"a: {text}") == {"a": number}
    for text in ("e5", "1e", "1e5x", "1.2.3", "'1e5'", "v1e5"):
        assert read(tmp_path, f"a: {text}") == {"a": text.strip("'")}


def test_aliases_and_merge_keys(tmp_path: Path) -> None:
    text = """
        base: &base {k: 1, j: 1}
        x: {a: &a {<<: *base, k: 2}}
        b: {<<: *a, k: 3}
        c: {<<: [*base, *a]}
        d: *base
    """
    found = read(tmp_path, text)
    assert found["x"]["a"] == {"k": 2, "j": 1}
    assert found["b"] == {"k": 3, "j": 1}
    assert found["c"] == found["d"] == {"k": 1, "j": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: the key 'a' is given twice \(first in line 1\)"),
        (
            "sft:\n  lr: 1\n  x: {y: 1}\n  'lr': 2\n",
            r"line 4: the key 'lr' is given twice \(first in line 2\)",
        ),
        ("a: {b: 1, b: 1}", "line 1: the key 'b'"),
        ("a: [{b: 1}, {c: 1, c: 2}]", "the key 'c'"),
        ("a: {<<: {k: 1}, <<: {j: 1}}", "the key '<<'"),
        ("a: 1\nno: 2\n", "line 2: YAML reads the key no as bool: write it in quotes"),
        ("2: 1", "the key 2 as int"),
        ("? [a]\n: 1", "a key must be text"),
        ("a:\n\tb: 1\n", "line 2: .*indent with spaces"),
        ("a:\n  b: 1\n\tc: 2\n", "line 3: .*indent with spaces"),
        ("a: 1\n b: 2\n", "line 2: mapping values"),
        ("a: [", "line 1: "),
        ("a: \x01", "special characters"),
        ("a: !!python/name:os.system x", "constructor"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("a: 2024-13-01", "month"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- 1", "expected keys.*found a list"),
        ("slime", "expected keys.*found the value 'slime'"),
    ],
)
def test_faults_name_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        read(tmp_path, text)
    assert str(tmp_path / "run.yaml") in str(raised.value)


@given(st.lists(st.sampled_from("abcdef"), max_size=6))
def test_keys_are_read_exactly_when_none_repeats(keys: list[str]) -> None:
    raw: dict[str, Any] = {}
    override = "x={" + ", ".join(f"{key}: 1" for key in keys) + "}"
    if len(set(keys)) < len(keys):
        with pytest.raises(ConfigError, match="given twice"):
            apply_override(raw, override)
    else:
        apply_override(raw, override)
        assert raw == {"x": dict.fromkeys(keys, 1)}


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no config file '.*missing.yaml'"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=f"'{tmp_path}' cannot be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: né".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml is not text in UTF-8: .* at byte 4"):
        read_yaml(tmp_path / "latin.yaml")

    def refuse(self: Path, **options: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match="latin.yaml' cannot be read: Permission denied"):
        read_yaml(tmp_path / "latin.yaml")


def test_overrides() -> None:
    raw: dict[str, Any] = {"align": {"objective": "slime"}, "seed": 3}
    apply_override(raw, "align.objective.hard_margin=1e-1")
    apply_override(raw, "sft.train_on=all")
    apply_override(raw, "adapter=null")
    assert raw == {
        "align": {"objective": {"name": "slime", "hard_margin": 0.1}},
        "seed": 3,
        "sft": {"train_on": "all"},
        "adapter": None,
    }
    for bad in ("seed", "=3", "data..limit=1"):
        with pytest.raises(ConfigError, match="not an override"):
            apply_override(raw, bad)
    with pytest.raises(ConfigError, match="'seed' is a value"):
        apply_override(raw, "seed.x=1")
    with pytest.raises(ConfigError, match=r"'a=\[': the value is not valid YAML"):
        apply_override(raw, "a=[")


def test_an_override_leaves_an_aliased_section_alone(tmp_path: Path) -> None:
    raw = read(tmp_path, "sft: &stage {x: {y: 1}}\nalign: *stage\n")
    apply_override(raw, "align.x.y=2")
    assert raw == {"sft": {"x": {"y": 1}}, "align": {"x": {"y": 2}}}
