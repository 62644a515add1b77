"""Configurations and tokenizer files made to exhaust or confuse: one message that names the folder, before any memory
is taken and before rows are trained on.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.commands import copied, holdfast, set_keys, stage

LARGE = 10**9


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Sixteen GiB of addresses: what asks for more fails here, and is not left to the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


CONFIGS: dict[str, dict[str, Any]] = {
    "a billion features": {"hidden_size": LARGE},
    "a billion tokens": {"vocab_size": LARGE},
    "ten million layers": {"num_hidden_layers": 10**7, "layer_types": None},
    "layers of each their type": {"num_hidden_layers": 10**5, "layer_types": ["full_attention"] * 10**5},
    "features below nothing": {"hidden_size": -32},
    "no tokens": {"vocab_size": 0},
    "tokens below nothing": {"vocab_size": -5},
    "tokens without end": {"vocab_size": 1e300},
    "tokens in words": {"vocab_size": "many"},
    "null": {"hidden_size": None},
    "no heads": {"num_attention_heads": 0},
    "a billion heads": {"num_attention_heads": LARGE},
    "heads that do not share": {"num_key_value_heads": 3},
    "an end token that is none": {"eos_token_id": "x"},
    "padding behind the end": {"pad_token_id": 10**6},
    "an unknown family": {"model_type": "nonesuch"},
    "a family that is a list": {"model_type": ["qwen3"]},
    "an unknown dtype": {"dtype": "evil"},
    "an unknown activation": {"hidden_act": "evil"},
    "unknown positions": {"rope_parameters": {"rope_type": "evil", "rope_theta": 1.0}},
    "positions in words": {"rope_parameters": "x"},
    "unknown layers": {"layer_types": ["x", "x"]},
    "one position": {"max_position_embeddings": 1},
    "ties that are none": {"tie_word_embeddings": "maybe"},
    "weights in four bits": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_cannot_be_is_one_message(
    start: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = copied(start, tmp_path / "model")
    set_keys(folder / "config.json", **changes)
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert ended.error
    assert len(ended.error) < 2000
    assert not (tmp_path / "run").exists()  # the next try is another run, and finds nothing in its way


TEXTS = {
    "nothing": "",
    "null": "null",
    "a list": "[]",
    "a number": "5",
    "cut": '{"model_type": "qwen3", ',
    "nested": "[" * 1_000_000,
    "an integer without end": '{"vocab_size": ' + "9" * 5000 + "}",
    "half a character": '{"model_type": "\udc80"}',
    "nonsense": "x" * 20_000_000,
}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_files_that_are_no_json_are_named(
    start: Path, rows: Path, tmp_path: Path, name: str, text: str
) -> None:
    folder = copied(start, tmp_path / "model")
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    for ended in (stage("align", folder, rows, tmp_path / "run"), holdfast("check", rows, "--model", folder)):
        assert ended.code == 2
        assert str(folder) in ended.error
        assert len(ended.error) < 2000


def test_a_tokenizer_of_other_things(start: Path, rows: Path, tmp_path: Path) -> None:
    """A class that transformers has, and that is no tokenizer of text."""
    folder = copied(start, tmp_path / "model")
    set_keys(folder / "tokenizer_config.json", tokenizer_class="RagTokenizer")
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert str(folder) in ended.error


def test_ids_beyond_every_integer(start: Path, rows: Path, tmp_path: Path) -> None:
    folder = copied(start, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["the"] = 2**40
    (folder / "tokenizer.json").write_text(json.dumps(content))
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert str(folder) in ended.error
