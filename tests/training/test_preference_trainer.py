"""PreferenceTrainer: what it runs, what it logs, and that it agrees with TRL."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM

from holdfast import PreferenceConfig, PreferenceTrainer, get_objective
from holdfast.errors import ConfigError, DataError, ModelError
from holdfast.models.export import save_final
from holdfast.objectives.base import Objective
from holdfast.training import preference_trainer as module
from holdfast.training import scoring
from tests.training.conftest import rows

NAMES = {
    "loss",
    "loss/anchor",
    "loss/stabilizer",
    "loss/margin",
    "logps/chosen",
    "logps/rejected",
    "mean_logps/chosen",
    "mean_logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "margin/satisfied",
    "rejected/collapsed",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "tokens_per_second",
}


@pytest.fixture
def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry a log-prob forward: whether gradients were on."""
    calls: list[bool] = []
    original = module.token_logprobs

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "token_logprobs", spy)
    monkeypatch.setattr(scoring, "token_logprobs", spy)
    return calls


def test_slime_runs_one_forward_a_micro_batch_and_no_reference(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Counted inside the model itself, so that no forward can go unseen."""
    model = model_of()
    trainer = PreferenceTrainer(
        model=model,
        args=PreferenceConfig(per_device_train_batch_size=2, gradient_accumulation_steps=2, **arguments),
        train_dataset=rows(8),
        processing_class=tokenizer,
    )
    forwards: list[int] = []
    model.get_decoder().register_forward_hook(lambda *given: forwards.append(1))
    trainer.train()
    assert len(forwards) == 4
    assert not list((tmp_path / "cache").glob("reference-*"))
    assert "reference_chosen" not in trainer.train_dataset.column_names
    assert (
        sum(isinstance(value, torch.nn.Module) for value in vars(trainer).values()) == 2
    )  # model, and it wrapped


def test_metrics_have_the_names_the_ecosystem_knows(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    trainer = PreferenceTrainer(
        model=model_of(),
        args=PreferenceConfig(per_device_train_batch_size=4, gradient_accumulation_steps=1, **arguments),
        train_dataset=rows(8),
        eval_dataset=rows(3),
        processing_class=tokenizer,
    )
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first.keys() >= NAMES
    assert first["loss"] == pytest.approx(
        first["loss/anchor"] + first["loss/stabilizer"] + first["loss/margin"]
    )
    assert first["rewards/margins"] == pytest.approx(
        first["rewards/chosen"] - first["rewards/rejected"], abs=1e-5
    )
    assert 0 < first["num_tokens"] < second["num_tokens"]
    evaluated = trainer.evaluate()
    assert {
        "eval_loss",
        "eval_loss/anchor",
        "eval_logps/chosen",
        "eval_rewards/accuracies",
    } <= evaluated.keys()


def test_evaluation_does_not_depend_on_its_batches(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    def evaluate(size: int) -> dict[str, float]:
        trainer = PreferenceTrainer(
            model=model_of(),
            args=PreferenceConfig(per_device_eval_batch_size=size, **arguments),
            eval_dataset=rows(7),
            processing_class=tokenizer,
        )
        return trainer.evaluate()

    whole, cut = evaluate(7), evaluate(3)
    for name in NAMES & {n.removeprefix("eval_") for n in whole}:
        assert cut[f"eval_{name}"] == pytest.approx(whole[f"eval_{name}"], rel=1e-5), name


def test_reference_is_the_starting_policy_computed_once(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], count_forwards: list[bool], tmp_path: Path
) -> None:
    settings = {
        "objective": "dpo",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "reference_batch_size": 4,
    }

    def build() -> PreferenceTrainer:
        return PreferenceTrainer(
            model=model_of(),
            args=PreferenceConfig(learning_rate=1e-2, **settings, **arguments),
            train_dataset=rows(8),
            processing_class=tokenizer,
        )

    trainer = build()
    assert count_forwards == [False] * 2, "one pass over the rows, without gradients"
    trainer.train()
    assert count_forwards == [False] * 2 + [True] * 2
    # the policy is its own reference at the first step: every reward is 0 and the loss log 2
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert len(list((tmp_path / "cache").glob("reference-*.safetensors"))) == 1
    count_forwards.clear()
    again = build()
    assert count_forwards == [], "read from the cache"
    assert again.train_dataset["reference_chosen"] == trainer.train_dataset["reference_chosen"]


def test_other_weights_or_rows_are_another_reference(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    for seed, count in ((0, 4), (1, 4), (0, 5)):
        PreferenceTrainer(
            model=model_of(seed=seed),
            args=PreferenceConfig(objective="ipo", **arguments),
            train_dataset=rows(count),
            processing_class=tokenizer,
        )
    assert len(list((tmp_path / "cache").glob("reference-*.safetensors"))) == 3


def test_lora_trains_and_final_is_what_was_trained(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    start = {name: tensor.clone() for name, tensor in model_of().state_dict().items()}
    trainer = PreferenceTrainer(
        model=model_of(),
        args=PreferenceConfig(learning_rate=1e-3, per_device_train_batch_size=4, **arguments),
        train_dataset=rows(8),
        processing_class=tokenizer,
        peft_config={"rank": 4, "alpha": 8},
    )
    trainer.train()
    trainer.model.eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = trainer.model(input_ids=ids).logits
    save_final(
        trainer.model, tokenizer, tmp_path / "final", stop_token_ids=trainer.prepared["train"].end_tokens
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert any(not torch.equal(start[name], tensor) for name, tensor in loaded.state_dict().items())
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


def test_half_precision_base_trains_with_float32_adapters(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    trainer = PreferenceTrainer(
        model=model_of(dtype=torch.bfloat16),
        args=PreferenceConfig(bf16=True, learning_rate=1e-3, **arguments),
        train_dataset=rows(4),
        processing_class=tokenizer,
        peft_config={"rank": 4},
    )
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert all(p.dtype == torch.float32 for p in before.values())
    assert any(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters() if n in before)
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_half_precision_without_mixed_precision_is_an_error(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="bf16=True"):
        PreferenceTrainer(
            model=model_of(dtype=torch.bfloat16),
            args=PreferenceConfig(bf16=False, **arguments),
            train_dataset=rows(4),
            processing_class=tokenizer,
            peft_config={"rank": 4},
        )


def test_model_and_tokenizer_by_folder(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    save_final(model_of(), tokenizer, tmp_path / "base")
    trainer = PreferenceTrainer(
        model=str(tmp_path / "base"),
        args=PreferenceConfig(**arguments),
        train_dataset=datasets.Dataset.from_list(rows(4)),
    )
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("objective", ["cpo", "cpo_simpo", "ipo", "orpo", "sft", "simpo", "slic"])
def test_every_pair_objective_trains(
    objective: str, model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    trainer = PreferenceTrainer(
        model=model_of(),
        args=PreferenceConfig(objective=objective, **arguments),
        train_dataset=rows(4),
        processing_class=tokenizer,
    )
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_faults_are_named(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    def build(**changes: Any) -> PreferenceTrainer:
        given: dict[str, Any] = {
            "model": model_of(),
            "args": PreferenceConfig(**arguments),
            "train_dataset": rows(2),
            "processing_class": tokenizer,
        }
        return PreferenceTrainer(**(given | changes))

    with pytest.raises(DataError, match="row 2.*chosen"):
        build(train_dataset=[rows(1)[0], {**rows(2)[1], "chosen": "  "}])
    with pytest.raises(DataError, match="rejected"):
        build(train_dataset=[{k: v for k, v in rows(1)[0].items() if k != "rejected"}])
    bare = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    with pytest.raises(DataError, match="chat template"):
        build(processing_class=bare)
    with pytest.raises(ModelError, match="embeds"):
        build(model=_shrunken(model_of))
    with pytest.raises(ConfigError, match="positions"):
        build(args=PreferenceConfig(**{**arguments, "max_length": 100_000}))
    with pytest.raises(ConfigError, match="pair objective"):
        PreferenceConfig(objective="nll", **arguments)
    with pytest.raises(ConfigError, match="slime"):
        PreferenceConfig(objective="slim", **arguments)


def _shrunken(model_of: Any) -> Any:
    model = model_of()
    model.resize_token_embeddings(40)
    return model


def test_objective_instances_are_taken_as_they_are(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    objective = get_objective("slime", hard_margin=1.2)
    args = PreferenceConfig(objective=objective, **arguments)
    assert isinstance(args.objective, Objective)
    assert args.objective == objective
    assert args.to_dict()["objective"]["hard_margin"] == 1.2


FORMS = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True}], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("peft_config", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_every_form_of_rows_trains_the_same(
    peft_config: Any, settings: dict[str, Any], model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    """Rows that fill `max_length` among them: 64 tokens with the prompt."""
    data = [*rows(7), {"prompt": "the tide " * 12, "chosen": "comes in " * 60, "rejected": "goes out " * 60}]
    logs = []
    for shared_prefix, padding_free in FORMS:
        torch.manual_seed(0)  # the adapters' start
        trainer = PreferenceTrainer(
            model=model_of("gemma3"),
            args=PreferenceConfig(
                shared_prefix=shared_prefix,
                padding_free=padding_free,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=1,
                learning_rate=1e-3,
                num_train_epochs=2,
                **settings,
                **arguments,
            ),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        assert (trainer.shared_prefix, trainer.padding_free) == (shared_prefix, padding_free)
        longest = trainer.train_dataset[7]
        assert len(longest["prompt_ids"]) + len(longest["chosen_ids"]) == 64
        trainer.train()
        logs.append([log for log in trainer.state.log_history if "loss" in log])
    for log in logs[1:]:
        for mine, other in zip(log, logs[0], strict=True):
            for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected", "num_tokens"):
                assert mine[name] == pytest.approx(other[name], rel=2e-4, abs=1e-5), name
    assert logs[0][-1]["loss"] != logs[0][0]["loss"]


def test_a_model_that_takes_no_flattened_rows_pads_and_says_so(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="holdfast"):
        trainer = PreferenceTrainer(
            model=model_of("gemma2"),
            args=PreferenceConfig(**arguments),
            train_dataset=rows(4),
            processing_class=tokenizer,
        )
    assert trainer.shared_prefix
    assert not trainer.padding_free
    said = [record.getMessage() for record in caplog.records]
    assert sum("rows are padded: attention is 'eager'" in message for message in said) == 1
    assert said.count("rows: shared prefix, padded") == 1
    trainer.train()


@pytest.mark.parametrize(("ours", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_training_agrees_with_trl(
    ours: str, theirs: str, model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    """Same rows, seed and optimizer: losses, rewards and log-probs of every step as TRL's DPO trainer logs them."""
    from trl import DPOConfig, DPOTrainer

    shared = {
        "max_steps": 4,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
    }
    objective: dict[str, Any] = {"name": ours, "beta": 0.1}
    if ours == "ipo":
        objective["length_normalized"] = True
    trainer = PreferenceTrainer(
        model=model_of(),
        args=PreferenceConfig(objective=objective, **shared, **arguments),
        train_dataset=rows(16),
        processing_class=tokenizer,
    )
    trainer.train()
    settings = {k: v for k, v in arguments.items() if k not in ("cache_dir", "max_length")}
    conversations = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows(16)
    ]
    peer = DPOTrainer(
        model=model_of(),
        ref_model=model_of(),
        args=DPOConfig(
            beta=0.1,
            loss_type=theirs,
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            **shared,
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list(conversations),
        processing_class=tokenizer,
    )
    peer.train()
    for mine, other in zip(trainer.state.log_history[:4], peer.state.log_history[:4], strict=True):
        for name in ("loss", "logps/chosen", "logps/rejected", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=2e-3, abs=1e-4), (name, mine["step"])
    assert trainer.state.log_history[3]["loss"] < trainer.state.log_history[0]["loss"]
