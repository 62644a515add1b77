"""Percentiles of the base model: measured once, before the first step, and kept by a run that is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.errors import ConfigError, DataError
from holdfast.objectives import Threshold
from holdfast.training import scoring
from holdfast.training.config import SFTConfig
from holdfast.training.percentiles import Percentiles
from holdfast.training.scoring import measure_percentiles
from holdfast.training.sft_trainer import SFTTrainer
from tests.training.conftest import rows

SQUARES = Percentiles(tuple((n / 100) ** 2 for n in range(101)))
LOWEST_TENTH = {"name": "threshold", "low_quantile": 0.1}


@pytest.fixture
def trainer_of(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> Any:
    def build(objective: Any, count: int = 12, **settings: Any) -> SFTTrainer:
        args = SFTConfig(
            **arguments | {"objective": objective, "max_steps": 4, "learning_rate": 1e-2} | settings
        )
        return SFTTrainer(
            model=model_of(),
            args=args,
            train_dataset=rows(count),
            eval_dataset=rows(3),
            processing_class=tokenizer,
        )

    return build


def probabilities(trainer: SFTTrainer) -> list[float]:
    """Of every target token, by the model's own plain logits."""
    found = []
    for row in trainer.train_dataset:
        ids, mask = torch.tensor(row["input_ids"]), torch.tensor(row["completion_mask"]).bool()
        with torch.no_grad():
            p = trainer.model(input_ids=ids[None], use_cache=False).logits[0].double().softmax(-1)
        found += [p[at - 1, ids[at]].item() for at in mask.nonzero()[:, 0]]
    return found


def test_shares_lie_between_percentiles() -> None:
    assert [SQUARES.at(q) for q in (0, 0.5, 1)] == [0, 0.25, 1]
    assert SQUARES.at(0.105) == pytest.approx((0.10**2 + 0.11**2) / 2)


def test_they_are_those_of_the_models_target_probabilities(trainer_of: Any) -> None:
    trainer = trainer_of("nll", per_device_eval_batch_size=5)
    found = measure_percentiles(trainer, trainer.train_dataset)
    truth = np.percentile(probabilities(trainer), range(101))
    np.testing.assert_allclose(found.values, truth, rtol=1e-5, atol=0)


def test_of_many_rows_a_sample_is_measured(trainer_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MEASURED_ROWS", 5)
    trainer = trainer_of("nll")
    found = measure_percentiles(trainer, trainer.train_dataset)
    assert found == measure_percentiles(trainer, trainer.train_dataset)
    truth = np.array(probabilities(trainer))
    for end in (found.values[0], found.values[-1]):
        assert np.isclose(truth, end, rtol=1e-5, atol=0).any()
    whole = Percentiles.of(truth)
    assert max(abs(a - b) for a, b in zip(found.values, whole.values, strict=True)) > 1e-5


def test_training_measures_before_its_first_step_and_disturbs_nothing(trainer_of: Any) -> None:
    """As with the probability in the place of the quantile: every loss, and every weight at the end."""
    base = Percentiles.of(probabilities(trainer_of("nll")))
    by_quantile = trainer_of(LOWEST_TENTH)
    assert by_quantile.measured is None
    by_quantile.train()
    np.testing.assert_allclose(by_quantile.percentiles.values, base.values, rtol=1e-5)
    low = by_quantile.measured.low
    assert by_quantile.measured == Threshold(low=low)
    assert low == pytest.approx(base.at(0.1), rel=1e-5)
    by_probability = trainer_of({"name": "threshold", "low": low})
    by_probability.train()
    losses = [
        [log["loss"] for log in t.state.log_history if "loss" in log] for t in (by_quantile, by_probability)
    ]
    assert losses[0] == losses[1]
    kept = by_quantile.state.log_history[0]["tokens/kept"]
    assert kept == pytest.approx(0.9, abs=0.06)  # eight of the twelve rows
    for one, other in zip(by_quantile.model.parameters(), by_probability.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert by_quantile.evaluate()["eval_loss"] == by_probability.evaluate()["eval_loss"]


def test_a_resumed_run_keeps_them(trainer_of: Any) -> None:
    """Bit for bit the run that was never stopped, though the model it goes on with is no base model any more."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(LOWEST_TENTH, **saving)
    whole.train()
    resumed = trainer_of(LOWEST_TENTH, **saving)
    calls: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.training.sft_trainer.measure_percentiles", lambda *_: calls.append(1))
        resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    assert calls == []
    assert resumed.percentiles == whole.percentiles
    assert resumed.measured == whole.measured
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def probe_of(model: str, values: Any = SQUARES.values) -> str:
    return json.dumps({"every": {"percentiles": values}, "probed": {"model": model}})


def test_a_probe_gives_them(trainer_of: Any, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(probe_of("base"))
    trainer = trainer_of({"name": "threshold", "base": "p", "high_quantile": 0.5}, percentiles=str(path))
    assert trainer.measured == Threshold(base="p", high=0.25)
    trainer.evaluate()
    trainer.train()
    assert trainer.percentiles == SQUARES


def test_an_evaluation_without_them_says_what_to_do(trainer_of: Any) -> None:
    with pytest.raises(ConfigError, match="train first, or give `percentiles"):
        trainer_of(LOWEST_TENTH).evaluate()


def test_bounds_that_contradict_each_other_once_measured(trainer_of: Any) -> None:
    with pytest.raises(
        ConfigError, match="with the base model's percentiles, threshold: low must be <= high"
    ):
        trainer_of({"name": "threshold", "low_quantile": 0.99, "high": 1e-9}).train()


@pytest.mark.parametrize(
    "values",
    [None, "0.1", [0.1], [0.5] * 100, [*[0.5] * 100, 0.4], [*[0.5] * 100, 1.5], [*[0.5] * 100, "1"], 3],
)
def test_what_is_no_percentiles_is_an_error(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "probe.json"
    path.write_text(probe_of("base", values))
    with pytest.raises(DataError, match=r"probe.json'"):
        Percentiles.of_probe(path)


def test_a_probe_of_another_model_is_refused(
    trainer_of: Any, tmp_path: Path, model_of: Any, tokenizer: Any
) -> None:
    """A folder is itself by any path to it."""
    path, folder = tmp_path / "probe.json", tmp_path / "base"
    model_of().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in (str(folder), f"{tmp_path}/./base"):
        path.write_text(probe_of(name))
        assert Percentiles.of_probe(path, str(folder)) == SQUARES
    path.write_text(probe_of("owner/other"))
    with pytest.raises(ConfigError, match="is a probe of 'owner/other', and the model to train is"):
        SFTTrainer(
            model=str(folder),
            args=trainer_of(LOWEST_TENTH, percentiles=str(path)).args,
            train_dataset=rows(4),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(
    ("objective", "probe", "message"),
    [
        ("nll", probe_of("base"), "percentiles: the objective has no quantile"),
        (LOWEST_TENTH, "{}", "percentiles: '.*' holds no percentiles of a probe"),
        ({"name": "threshold", "low_quantile": 0.9, "high": 0.1}, probe_of("base"), "low must be <= high"),
    ],
)
def test_percentiles_of_no_use_are_refused_before_rows_are_read(
    arguments: dict[str, Any], tmp_path: Path, objective: Any, probe: str, message: str
) -> None:
    path = tmp_path / "probe.json"
    path.write_text(probe)
    with pytest.raises(ConfigError, match=message):
        SFTConfig(**arguments, objective=objective, percentiles=str(path))


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"every": 3}', "[" * 100_000])
def test_what_is_no_probe_is_an_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "probe.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match="holds no percentiles of a probe"):
        Percentiles.of_probe(path)
