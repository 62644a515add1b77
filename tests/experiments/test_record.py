"""`run.json`: written whole, read back, and free of keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.errors import CheckpointError
from holdfast.experiments.record import (
    environment,
    hub_commit,
    read_record,
    without_keys,
    write_record,
)


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record = {"config": {}, "settings": {}, "name": "läuft"}
    write_record(record | {"stages": {"sft": {"loss": float("nan"), "steps": 3}}}, path)
    assert read_record(path) == record | {"stages": {"sft": {"loss": None, "steps": 3}}}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "{}",
            "5",
            '{"stages": []}',
            "\xff",
            '{"stages": {}}',
            '{"stages": {}, "config": {}}',
        ),
        '{"config": {}, "settings": {}, "stages": {"sft": 5}}',
        '{"config": [], "settings": {}, "stages": {}}',
    ],
)
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="run.json"):
        read_record(path)


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://user:KEY@host/a/b", "https://host/a/b"),
        ("https://KEY@host", "https://host"),
        ("https://user:p@KEY@host/a@b", "https://host/a@b"),
        ("https://host/a?token=KEY&b=1", "https://host/a"),
        ("https://host/a#KEY", "https://host/a"),
        ("see s3://k:KEY@bucket/x?y=KEY, and http://h/", "see s3://bucket/x and http://h/"),
        ("no URL: a@b?c#d", "no URL: a@b?c#d"),
        ("runs/x", "runs/x"),
    ],
)
def test_keys_in_urls_are_left_out(text: str, kept: str) -> None:
    assert without_keys(text) == kept
    assert without_keys({"a": [text, {"b": (text, 1, None)}]}) == {"a": [kept, {"b": [kept, 1, None]}]}
    assert "KEY" not in kept


def test_keys_reach_no_record(tmp_path: Path) -> None:
    write_record({"stages": {}, "run_name": "https://user:KEY@host/"}, tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["run_name"] == "https://host/"


def test_the_environment_names_no_host_and_no_user() -> None:
    assert environment().keys() == {"versions", "device", "devices", "threads", "started"}


def test_the_commit_of_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef" * 2 + "01234567"
    for folder, text in (("models--o--n", commit), ("datasets--o--n", "f" * 40)):
        (tmp_path / folder / "refs").mkdir(parents=True)
        (tmp_path / folder / "refs" / "main").write_text(text)
    (tmp_path / "models--o--n" / "refs" / "v1").write_text("a" * 40)
    assert hub_commit("model", "o/n") == commit
    assert hub_commit("model", "o/n", "v1") == "a" * 40
    assert hub_commit("dataset", "o/n") == "f" * 40
    assert hub_commit("model", "o/other") is None
    assert hub_commit("model", "o/n", "v2") is None
    assert hub_commit("model", "o/other", commit) == commit  # it is one already
