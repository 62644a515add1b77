"""SFTTrainer: what it trains, what it logs, every token objective."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from holdfast import SFTConfig, SFTTrainer, list_objectives
from holdfast.errors import ConfigError, DataError
from tests.training.conftest import rows

DEMONSTRATIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows(12)]


def build(
    model: Any, tokenizer: Any, arguments: dict[str, Any], dataset: Any = DEMONSTRATIONS, **settings: Any
) -> Any:
    return SFTTrainer(
        model=model,
        args=SFTConfig(**settings, **arguments),
        train_dataset=dataset,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("objective", list_objectives("token"))
def test_every_token_objective_trains(
    objective: str, model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    trainer = build(model_of(), tokenizer, arguments, objective=objective)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_log_against_own_logits(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    """NLL, log-prob and probability of exactly the completion's tokens, end of turn included."""
    model = model_of()
    trainer = build(model, tokenizer, arguments, per_device_train_batch_size=12)
    expected = []
    with torch.no_grad():
        for row in DEMONSTRATIONS:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(prompt + row["completion"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
            start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected += [logps[i - 1, ids[i]] for i in range(start, len(ids))]
    target = torch.stack(expected)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(-target.mean().item(), rel=1e-5)
    assert first["mean_logps/target"] == pytest.approx(target.mean().item(), rel=1e-5)
    assert first["probability/target"] == pytest.approx(target.exp().mean().item(), rel=1e-4)
    assert first["tokens/kept"] == 1.0


def test_flattened_and_padded_rows_train_the_same(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    logs = []
    for padding_free in (True, False):
        with caplog.at_level("INFO", logger="holdfast"):
            trainer = build(
                model_of("gemma3"),
                tokenizer,
                arguments,
                padding_free=padding_free,
                per_device_train_batch_size=4,
                learning_rate=1e-3,
            )
        assert trainer.padding_free is padding_free
        trainer.train()
        logs.append([log for log in trainer.state.log_history if "loss" in log])
    assert [r.getMessage() for r in caplog.records if "rows: " in r.getMessage()] == [
        "rows: plain, without padding",
        "rows: plain, padded",
    ]
    for mine, other in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "mean_logps/target", "num_tokens"):
            assert mine[name] == pytest.approx(other[name], rel=2e-4), name


def test_chosen_side_of_preference_rows(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    from_pairs = build(model_of(), tokenizer, arguments, dataset=rows(12))
    from_rows = build(model_of(), tokenizer, arguments)
    columns = ["input_ids", "completion_mask"]
    assert (
        from_pairs.train_dataset.select_columns(columns)[:]
        == from_rows.train_dataset.select_columns(columns)[:]
    )


def test_all_turns_of_a_conversation(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    turns = ["the tide?", "comes in", "and then?", "goes out"]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    last = build(model_of(), tokenizer, arguments, dataset=[{"messages": messages}])
    every = build(model_of(), tokenizer, arguments, dataset=[{"messages": messages}], train_on="all")
    row = every.train_dataset[0]
    trained = [t for t, flag in zip(row["input_ids"], row["completion_mask"], strict=True) if flag]
    assert tokenizer.decode(trained) == "comes in<|im_end|>goes out<|im_end|>"
    assert sum(last.train_dataset[0]["completion_mask"]) < sum(row["completion_mask"])
    every.train()


def test_faults_are_named(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="completion"):
        build(model_of(), tokenizer, arguments, dataset=[{"prompt": "the tide?", "completion": ""}])
    with pytest.raises(ConfigError, match="token objective"):
        SFTConfig(objective="slime", **arguments)


def test_lenient_trains_on_exactly_the_good_rows(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    bad = [DEMONSTRATIONS[0], {"prompt": "x", "completion": " "}, DEMONSTRATIONS[1]]
    trainer = build(model_of(), tokenizer, arguments, dataset=bad, validation="lenient")
    assert len(trainer.train_dataset) == 2
    assert trainer.prepared["train"].report["refused"] == {"empty_completion": 1}
