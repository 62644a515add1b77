from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import ConfigError
from holdfast.evaluation.judged.names import judge_path, stem_of


def test_a_models_file_has_the_last_part_of_its_name() -> None:
    assert stem_of("org/model") == stem_of("runs/model/") == stem_of("model") == "model"
    with pytest.raises(ConfigError, match="give one with --model-id"):
        stem_of("..")


def test_a_judges_folder_has_its_whole_name_and_leads_nowhere_else() -> None:
    assert judge_path("org/judge") == Path("org/judge")
    assert judge_path("/models/judge/") == judge_path("models/./judge") == Path("models/judge")
    for name in ("", "/", ".", "..", "a/../b", "a\0b"):
        with pytest.raises(ConfigError, match="no name for a judge"):
            judge_path(name)
