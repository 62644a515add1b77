"""A model is its files: answers of what it was are not taken for those of what it has become."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from holdfast.errors import DataError, ModelError
from holdfast.evaluation.answers.client import Settings
from holdfast.evaluation.answers.generation_turns import Question, generate
from holdfast.evaluation.answers.identity import model_identity
from holdfast.evaluation.answers.transformers_backend import TransformersGenerator
from holdfast.models.loading import load_model

QUESTIONS = [Question(1, ("what?",), Settings(max_tokens=3))]


def test_a_folder_is_its_content(answering_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(answering_folder, moved)
    first = model_identity(str(answering_folder))
    assert model_identity(str(moved)) == first
    (tmp_path / "a.jinja").write_text("{{ messages }}")
    others = [
        model_identity(str(moved), dtype="float32"),
        model_identity(str(moved), chat_template=str(tmp_path / "a.jinja")),
        model_identity(str(moved), chat_template_kwargs={"enable_thinking": False}),
        model_identity("owner/model"),
        model_identity("owner/model", revision="abc"),
    ]
    assert len({first, *others}) == 6


def test_a_template_that_is_not_there(answering_folder: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        model_identity(str(answering_folder), chat_template="missing.jinja")


def test_a_model_trained_anew_under_its_name_is_not_answered_for(
    answering_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "final"
    shutil.copytree(answering_folder, folder)
    generate(TransformersGenerator.load(str(folder), device="cpu"), QUESTIONS, tmp_path / "out")
    again = generate(TransformersGenerator.load(str(folder), device="cpu"), QUESTIONS, tmp_path / "out")
    assert again.answers[1][0] is not None
    model = load_model(str(folder))
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    model.save_pretrained(folder)
    with pytest.raises(DataError, match="the model, the messages or the settings have changed"):
        generate(TransformersGenerator.load(str(folder), device="cpu"), QUESTIONS, tmp_path / "out")
