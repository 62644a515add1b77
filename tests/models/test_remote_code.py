"""What pins a model's code, and when code is needed. Whether it runs is in tests/faults/test_remote_code.py."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError, ModelError
from holdfast.models.remote_code import code_digest, code_options, require_pinned, require_pinned_kernel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def folder(path: Path, config: dict[str, Any], tokenizer: dict[str, Any] | None = None) -> str:
    (path / "config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(path)


def test_the_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    assert code_digest(tmp_path) == f"sha256:{hashlib.sha256().hexdigest()}"
    (tmp_path / "b.py").write_text("xy")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.py").write_text("z")
    (tmp_path / "notes.txt").write_text("not code")
    expected = hashlib.sha256(b"a/c.py\n1\nzb.py\n2\nxy").hexdigest()
    assert code_digest(tmp_path) == f"sha256:{expected}"


MAP = {"auto_map": {"AutoModelForCausalLM": "own.Own"}}
NATIVE = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        (NATIVE, False),
        (NATIVE | MAP, False),
        (NATIVE | {"auto_map": {"AutoModel": "own.Own"}}, False),
        (NATIVE | {"auto_map": ["own.Own"]}, False),
        (NATIVE | MAP | {"architectures": None}, False),
        (NATIVE | MAP | {"architectures": ["Own"]}, True),
        ({"model_type": "own"} | MAP, True),
        ({"model_type": ["qwen3"]} | MAP, True),
        ({"auto_map": {"AutoConfig": "own.Own"}}, True),
    ],
)
def test_when_a_model_needs_its_code(tmp_path: Path, config: dict[str, Any], needed: bool) -> None:
    name = folder(tmp_path, config)
    if needed:
        with pytest.raises(ModelError, match="needs code of its own"):
            code_options(name, None, False)
    else:
        assert code_options(name, None, False) == {"trust_remote_code": False}


@pytest.mark.parametrize(
    ("tokenizer", "needed"),
    [
        ({"tokenizer_class": "Qwen2Tokenizer"}, False),
        ({"tokenizer_class": "Qwen2Tokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}, False),
        ({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}, True),
        ({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}, True),
        ({"auto_map": ["own.Own", None]}, True),
    ],
)
def test_when_a_tokenizer_needs_its_code(tmp_path: Path, tokenizer: dict[str, Any], needed: bool) -> None:
    name = folder(tmp_path, NATIVE, tokenizer)
    if needed:
        with pytest.raises(ModelError, match="needs code of its own"):
            code_options(name, None, False, of_tokenizer=True)
    else:
        assert code_options(name, None, False, of_tokenizer=True) == {"trust_remote_code": False}


def test_trusted_code_is_named_by_its_revision(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Own: pass")
    name = folder(tmp_path, {"model_type": "own"} | MAP)
    options = code_options(name, code_digest(tmp_path), True)
    assert options == {"trust_remote_code": True, "code_revision": None}
    with pytest.raises(ConfigError, match="pinned by its digest"):
        code_options(name, COMMIT, True)
    # nothing to run: nothing is run
    assert code_options(folder(tmp_path, NATIVE), code_digest(tmp_path), True) == {"trust_remote_code": False}


def test_names_on_the_hub_are_pinned_by_commits() -> None:
    require_pinned("me/mine", COMMIT)
    for revision in (None, "", "main", COMMIT[:-1], COMMIT + "0", COMMIT.upper(), f" {COMMIT}"):
        with pytest.raises(ConfigError, match="40 hexadecimal digits"):
            require_pinned("me/mine", revision)


def test_attention_code_is_pinned_likewise() -> None:
    for attention in (None, "sdpa", "eager", f"me/mine@{COMMIT}", f"me/mine@{COMMIT}:fast"):
        require_pinned_kernel(attention)
    for attention in ("me/mine", "me/mine@main", f"me/mine@{COMMIT}0", "me/mine:fast"):
        with pytest.raises(ConfigError, match="me/mine.*COMMIT"):
            require_pinned_kernel(attention)
