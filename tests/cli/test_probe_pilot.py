"""The settings of a probe's pilot, and the file to paste that has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from holdfast.capability.demonstrations import RowSettings
from holdfast.cli.probe_pilot import pilot_config, piloted_run
from holdfast.errors import ConfigError
from holdfast.experiments.config import AdapterSection, load_config


def test_the_file_to_paste_is_the_run_the_pilot_measured(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    settings = [
        *("learning_rate=1e-3", "adapter=null", "per_device_train_batch_size=4", "use_cpu=true"),
        *("model.tokenizer=owner/other", "model.dtype=float32", "lr_scheduler_type=cosine"),
    ]
    config = pilot_config("owner/name", "rows.jsonl", settings)
    run = RowSettings(max_length=128, append_eos=True).run("owner/name", "rows.jsonl")
    file.write_text(yaml.safe_dump(piloted_run(run, config, 3)), encoding="utf-8")
    found = load_config(file)
    assert found.sft == config.sft
    assert (found.model, found.adapter) == (config.model.model_copy(update={"append_eos": True}), None)
    assert (found.data.max_length, found.seed) == (128, 3)
    default = piloted_run(run, pilot_config("owner/name", "rows.jsonl", []), 0)
    assert default["adapter"] == AdapterSection().model_dump()
    assert default["model"] == {"name": "owner/name", "append_eos": True}


def test_the_file_to_paste_has_the_quantization_of_the_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.models.quantized.find_spec", lambda name: name)  # as if it were installed
    config = pilot_config("owner/name", "rows.jsonl", ["model.quantization=nf4", "bf16=true"])
    run = piloted_run(RowSettings().run("owner/name", "rows.jsonl"), config, 0)
    assert run["model"] == {"name": "owner/name", "quantization": "nf4"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("objective.name=p", "the pilot compares several"),
        ("objective=p", "the pilot compares several"),
        ("max_steps=5", "the option --pilot"),
        ("percentiles=x", "percentiles: is no setting of a pilot; leave it out"),
        ("num_train_epochs=2", "is no setting of a pilot"),
        ("model.trust_remote_code=true", "is no setting of a pilot; leave it out"),
        ("model.append_eos=true", "the option --append-eos"),
        ("data.sft_fraction=0.5", "is no setting of a pilot; leave it out"),
        ("data.limit=5", "the option --rows"),
        ("output_dir=x", "the option --output-dir"),
        ("train_on=all", "the option --train-on"),
        ("data.max_length=5", "the option --max-length"),
        ("seed=5", "the option --seed"),
        ("learning_rat=5", "did you mean 'learning_rate'"),
        ("align.beta=5", "has no align stage"),
    ],
)
def test_a_pilots_settings_are_a_stages(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pilot_config("owner/name", "rows.jsonl", [setting])


def test_a_pilots_settings_reach_the_stage() -> None:
    config = pilot_config("owner/name", "rows.jsonl", ["learning_rate=1e-3", "adapter.rank=4"])
    assert config.sft is not None
    assert config.adapter is not None
    assert (config.sft["learning_rate"], config.adapter.rank) == (1e-3, 4)
