"""`holdfast export`: what it prints, and how it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from holdfast.cli.main import app, main
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's folder, in the current one."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_bpe_tokenizer(["hello"], 300)
    tiny_model("qwen3", len(tokenizer)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    return tmp_path


def test_says_folder_dtype_and_drift(folder: Path) -> None:
    result = CliRunner().invoke(
        app, ["export", "model", "out", "--dtype", "bfloat16"], catch_exceptions=False
    )
    assert result.exit_code == 0
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert {name: words.strip() for name, words in said.items() if name != "drift"} == {
        "source": "whole model",
        "folder": "out",
        "dtype": "bfloat16",
        "stops at": "<|im_end|>",
    }
    assert "nats a token" in said["drift"]
    assert str(AutoModelForCausalLM.from_pretrained(folder / "out").dtype) == "torch.bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "'nowhere' is not there: SOURCE is the folder of an adapter, of a checkpoint"),
        (["model/config.json", "out"], "'model/config.json' is a file: SOURCE is the folder"),
        (["model", "model"], "nothing is overwritten"),
        (["model", "out", "--base", "other/model"], "--base and --revision belong to an adapter"),
    ],
)
def test_refusals_are_one_message_and_exit_code_2(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["holdfast", "export", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["model"]
