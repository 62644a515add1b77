"""Tokens a second and peak memory of one supervised step, against plain transformers and TRL.

    python benchmarks/sft_step.py
    python benchmarks/sft_step.py --quick
    python benchmarks/sft_step.py --model 41m --shape short --forms plain-nll ours-nll ours-packed-nll

The demonstrations are the chosen side of the preference rows; the loss is on the completion. Three objectives: NLL, −p,
and NLL on the tokens above a probability. As in preference_step.py, forms of one objective must agree in every step's
loss and gradient norm, and figures are ratios within one interleaved run. TRL's packing puts other rows in a batch, so
it is compared in speed and memory alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from step_benchmark import StepBenchmark, main
from step_report import Form


def objective_spec(name: str, vocab: int) -> Any:
    """What `get_objective` is asked for.

    A model of random weights gives a token 1 / vocab: the band begins there, so that about half of the tokens count.
    """
    specs: dict[str, Any] = {
        "nll": ("nll", {}),
        "p": ("p", {}),
        "threshold": ("threshold", {"base": "nll", "low": 1 / vocab}),
    }
    return specs[name]


def plain(objective: str, case: dict[str, Any], rows: list[Any], tokens: list[Any], tokenizer: Any) -> Any:
    """The Trainer with the textbook loss: every position's logits, whole log-softmax, labels gathered."""
    import torch
    from torch import Tensor
    from transformers import Trainer, TrainingArguments

    from holdfast import get_objective
    from stepping import trainer_settings
    from workload import build_model

    name, settings = objective_spec(objective, case["model"]["vocab"])
    loss_of = get_objective(name, **settings)

    class Plain(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Tensor:
            ids, mask = inputs["input_ids"], inputs["completion_mask"][:, 1:].bool()
            logits = model(input_ids=ids, attention_mask=inputs["attention_mask"], use_cache=False).logits
            logps = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            kept = mask & loss_of.kept(logps)
            divisor = (kept if loss_of.normalization == "kept" else mask).sum().clamp(min=1)
            return torch.where(kept, loss_of(logps), 0.0).sum() / divisor

    def padded(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        time = max(len(e["input_ids"]) for e in examples)

        def fill(values: list[int], value: int) -> list[int]:
            return [*values, *[value] * (time - len(values))]

        return {
            "input_ids": torch.tensor([fill(e["input_ids"], tokenizer.pad_token_id) for e in examples]),
            "attention_mask": torch.tensor([fill([1] * len(e["input_ids"]), 0) for e in examples]),
            "completion_mask": torch.tensor(
                [fill(list(map(int, e["completion_mask"])), 0) for e in examples]
            ),
        }

    return Plain(
        model=build_model(case),
        args=TrainingArguments(**trainer_settings(case)),
        train_dataset=tokens,
        data_collator=padded,
    )


def trl(
    padding_free: bool,
    packing: bool,
    case: dict[str, Any],
    rows: list[Any],
    tokens: list[Any],
    tokenizer: Any,
) -> Any:
    """TRL's SFT trainer, unchanged; rows come tokenized, with the mask of the completion."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from stepping import trainer_settings
    from workload import build_model

    settings = trainer_settings(case)
    if packing:
        # As many tokens a batch as the other forms have, in rows filled to the brim.
        mean = sum(len(row["input_ids"]) for row in tokens) / len(tokens)
        settings["per_device_train_batch_size"] = max(1, round(case["pairs"] * mean / case["max_length"]))
    args = SFTConfig(
        **settings,
        max_length=case["max_length"] if packing else None,
        packing=packing,
        padding_free=padding_free,
        completion_only_loss=True,
    )
    columns = [{k: list(map(int, ids)) for k, ids in row.items()} for row in tokens]
    return SFTTrainer(
        model=build_model(case),
        args=args,
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
    )


def ours(
    objective: str,
    padding_free: bool,
    case: dict[str, Any],
    rows: list[Any],
    tokens: list[Any],
    tokenizer: Any,
) -> Any:
    """`SFTTrainer` as a user has it: raw rows in, its own preparation, collator and step."""
    from holdfast import SFTConfig, SFTTrainer
    from stepping import trainer_settings
    from workload import build_model, limits

    name, settings = objective_spec(objective, case["model"]["vocab"])
    args = SFTConfig(
        **trainer_settings(case),
        objective={"name": name, **settings},
        **limits(case),
        padding_free=padding_free,
    )
    return SFTTrainer(build_model(case), args, train_dataset=demonstrations(rows), processing_class=tokenizer)


def demonstrations(rows: list[Any]) -> list[dict[str, Any]]:
    """The chosen side of preference rows, as conversations."""
    return [{"messages": [*row["prompt"], {"role": "assistant", "content": row["chosen"]}]} for row in rows]


def tokenize(rows: list[Any], tokenizer: Any, model: Any, case: dict[str, Any]) -> list[dict[str, list[int]]]:
    """Token ids and completion masks, as `SFTTrainer` prepares them."""
    from holdfast import SFTConfig, SFTTrainer
    from stepping import trainer_settings
    from workload import limits

    settings = trainer_settings(case) | {"bf16": False, "use_cpu": True}
    args = SFTConfig(**settings, **limits(case))
    prepared = SFTTrainer(
        model, args, train_dataset=demonstrations(rows), processing_class=tokenizer
    ).train_dataset
    return [{key: row[key] for key in ("input_ids", "completion_mask")} for row in prepared]


def work(trainer: Any, tokens: list[Any], case: dict[str, Any]) -> list[Any]:
    """What each step's rows ask for: the rows in their order, or as TRL packed them."""
    from itertools import cycle, islice

    from stepping import Work

    size, steps = trainer.args.per_device_train_batch_size, case["warmup"] + case["steps"]
    rows = tokens
    if getattr(trainer.args, "packing", False):
        rows = [
            {"input_ids": row["input_ids"], "completion_mask": [label != -100 for label in row["labels"]]}
            for row in trainer.train_dataset
        ]
    batches = islice(cycle([rows[n : n + size] for n in range(0, len(rows), size)]), steps)
    lengths = [[(len(row["input_ids"]), sum(row["completion_mask"])) for row in batch] for batch in batches]
    return [
        Work(sum(n for n, _ in batch), sum(n - 1 for n, _ in batch), sum(scored for _, scored in batch))
        for batch in lengths
    ]


def missing() -> dict[str, str]:
    """The forms of what is not installed, and why."""
    from importlib.util import find_spec

    if find_spec("trl"):
        return {}
    why = "TRL is not installed (pip install 'holdfast[bench]')"
    return {name: why for name in FORMS if name.startswith("trl")}


OBJECTIVES = {"nll": "NLL", "p": "−p", "threshold": "thresholded NLL"}
SLACK = {"threshold": {"bfloat16": 10.0}}  # see `step_report.TOLERANCE`


def forms() -> dict[str, Form]:
    """Plain, ours with padded rows and ours as it is for every objective; TRL for its own, NLL."""
    found = {}
    for objective, shown in OBJECTIVES.items():
        base = f"plain-{objective}"
        slack = SLACK.get(objective, {})
        found[base] = Form(f"plain logits, {shown}", objective, base, partial(plain, objective), slack=slack)
        for name, label, packed in (("ours", "holdfast, padded", False), ("ours-packed", "holdfast", True)):
            build = partial(ours, objective, packed)
            found[f"{name}-{objective}"] = Form(f"{label}, {shown}", objective, base, build, packed, slack)

    def of_trl(label: str, group: str | None, *way: bool, default: bool = True) -> Form:
        return Form(f"TRL SFT trainer, {label}NLL", group, "plain-nll", partial(trl, *way), default)

    return found | {
        "trl": of_trl("", "nll", False, False),
        "trl-padding-free": of_trl("padding_free, ", "nll", True, False, default=False),
        "trl-packing": of_trl("packing, ", None, False, True),
    }


FORMS = forms()
BENCHMARK = StepBenchmark(
    name="sft_step",
    script=Path(__file__),
    description=__doc__ or "",
    forms=FORMS,
    tokenize=tokenize,
    work=work,
    missing=missing,
    defaults={"model": "small", "shape": ["chat"]},
)

if __name__ == "__main__":
    main(BENCHMARK)
