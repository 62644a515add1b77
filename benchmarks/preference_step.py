"""Tokens a second and peak memory of one preference step, against plain transformers and TRL.

    make bench
    python benchmarks/preference_step.py --quick
    python benchmarks/preference_step.py --model small --shape chat --max-length 1536 --steps 3
    python benchmarks/preference_step.py --device cuda --model qwen3-0.6b --dtype bf16 --pairs 16

The same loss (SLIME), weights, rows, optimizer (AdamW) and loop (`Trainer.train`) for every form; one process a form
and round, forms in turn, round after round. Forms of one loss must agree in every step's loss and gradient norm, or
the script fails. Tokens are counted as the plain form would read them. Read the ratios: absolute figures belong to the
machine. docs/benchmarks.md says how everything is counted, and what was swapped into TRL.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from step_benchmark import StepBenchmark, main
from step_report import Form

OBJECTIVE = "slime"


# ---- plain transformers


def plain(
    case: dict[str, Any], rows: list[Any], tokens: list[Any], tokenizer: Any, reference: bool = False
) -> Any:
    """The Trainer with the textbook loss: every position's logits, whole log-softmax, labels gathered."""
    import torch
    from torch import Tensor
    from transformers import Trainer, TrainingArguments

    from holdfast import get_objective
    from stepping import trainer_settings
    from workload import build_model

    objective = get_objective(OBJECTIVE)
    model = build_model(case)
    # Frozen copy, as loaded; with LoRA the base model under the adapter serves, and takes no memory of its own.
    frozen = copy.deepcopy(model).requires_grad_(False).eval() if reference and not case["lora"] else None

    def logps(forward: Any, inputs: dict[str, Tensor]) -> Tensor:
        logits = forward(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).logits
        whole = logits[:, :-1].float().log_softmax(-1)
        return whole.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]

    class Plain(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Tensor:
            if reference:
                # What the SLIME paper's public code does: its result is not used by this loss.
                with torch.no_grad():
                    if frozen is not None:
                        logps(frozen, inputs)
                    else:
                        with self.accelerator.unwrap_model(model).disable_adapter():
                            logps(model, inputs)
            return pair_loss(objective, logps(model, inputs), inputs["completion_mask"][:, 1:])

    return Plain(
        model=model,
        args=TrainingArguments(**trainer_settings(case)),
        train_dataset=tokens,
        data_collator=lambda examples: padded(examples, tokenizer.pad_token_id),
    )


def plain_with_reference(case: dict[str, Any], rows: list[Any], tokens: list[Any], tokenizer: Any) -> Any:
    """`plain`, and a forward of the frozen model whose result nothing uses."""
    return plain(case, rows, tokens, tokenizer, reference=True)


def padded(examples: list[dict[str, list[int]]], pad: int) -> dict[str, Any]:
    """All chosen rows, then all rejected rows, padded on the right: (2 * pairs, time) each."""
    import torch

    rows = [(e["prompt_ids"], e[f"{side}_ids"]) for side in ("chosen", "rejected") for e in examples]
    time = max(len(prompt) + len(answer) for prompt, answer in rows)

    def fill(values: list[int], value: int) -> list[int]:
        return values + [value] * (time - len(values))

    return {
        "input_ids": torch.tensor([fill(p + a, pad) for p, a in rows]),
        "attention_mask": torch.tensor([fill([1] * len(p + a), 0) for p, a in rows]),
        "completion_mask": torch.tensor([fill([0] * len(p) + [1] * len(a), 0) for p, a in rows]),
    }


def pair_loss(objective: Any, logps: Any, mask: Any) -> Any:
    """Mean loss of a batch whose first half is chosen and whose second half rejected; both (2 * pairs, time)."""
    from holdfast.objectives import PairLogps

    chosen, rejected = logps.chunk(2)
    chosen_mask, rejected_mask = mask.bool().chunk(2)
    return objective(PairLogps(chosen, rejected, chosen_mask, rejected_mask)).loss.mean()


# ---- TRL


def trl_dpo(case: dict[str, Any], rows: list[Any], tokens: list[Any], tokenizer: Any) -> Any:
    """TRL's DPO trainer with the loss swapped: its collator, forward, fused LM head and metrics, SLIME at the end.

    Rows come tokenized. The list of DPO losses is empty and the reference is taken as computed before (zeros), so that
    its own code runs no reference forward.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from holdfast import get_objective
    from stepping import trainer_settings
    from workload import build_model

    objective = get_objective(OBJECTIVE)

    class SlimeInTrl(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            outputs: list[Any] = []
            hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
            try:
                super()._compute_loss(model, inputs, return_outputs=False)
            finally:
                hook.remove()
            (own,) = outputs  # the policy's forward, and no other
            return pair_loss(objective, own.log_probs, inputs["completion_mask"][:, 1:])

    model = build_model(case)
    # DPOTrainer wants a reference model to be there. It is never called: a toy takes its place.
    toy = build_model(
        case | {"model": case["model"] | {"hidden": 64, "layers": 1, "feed_forward": 64}, "lora": False}
    )
    columns = [row | {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0} for row in tokens]
    trainer = SlimeInTrl(
        model=model,
        ref_model=None if case["lora"] else toy,
        args=DPOConfig(**trainer_settings(case), max_length=None, use_liger_kernel=False),
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
    )
    trainer.precompute_ref_logps, trainer.loss_types, trainer.loss_weights = True, [], []
    return trainer


def trl_cpo(case: dict[str, Any], rows: list[Any], tokens: list[Any], tokenizer: Any) -> Any:
    """TRL's CPO trainer with its own SimPO loss: reference-free, whole logits. Rows come tokenized."""
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from stepping import trainer_settings
    from workload import build_model

    class TokenizedCpo(CPOTrainer):
        def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
            prompt = feature["prompt_ids"]
            batch = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
            for side in ("chosen", "rejected"):
                answer = feature[f"{side}_ids"]
                batch[f"{side}_input_ids"] = prompt + answer
                batch[f"{side}_attention_mask"] = [1] * len(prompt + answer)
                batch[f"{side}_labels"] = [-100] * len(prompt) + answer
            return batch

    columns = [row | {"prompt": "", "chosen": "", "rejected": ""} for row in tokens]
    return TokenizedCpo(
        model=build_model(case),
        args=CPOConfig(
            **trainer_settings(case), loss_type="simpo", cpo_alpha=0.0, max_length=case["max_length"]
        ),
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
    )


# ---- holdfast


def ours(
    options: dict[str, Any], case: dict[str, Any], rows: list[Any], tokens: list[Any], tokenizer: Any
) -> Any:
    """`PreferenceTrainer` as a user has it: raw rows in, its own preparation, collator and step."""
    from holdfast import PreferenceConfig, PreferenceTrainer
    from stepping import trainer_settings
    from workload import build_model, limits

    settings = trainer_settings(case) | {"objective": OBJECTIVE, **limits(case)} | options
    args = PreferenceConfig(**settings)
    return PreferenceTrainer(build_model(case), args, train_dataset=rows, processing_class=tokenizer)


# ---- the benchmark


def tokenize(rows: list[Any], tokenizer: Any, model: Any, case: dict[str, Any]) -> list[dict[str, list[int]]]:
    """The rows' token ids, as `PreferenceTrainer` prepares them."""
    from holdfast import PreferenceConfig, PreferenceTrainer
    from stepping import trainer_settings
    from workload import limits

    settings = trainer_settings(case) | {"bf16": False, "use_cpu": True}
    args = PreferenceConfig(**settings, objective=OBJECTIVE, **limits(case))
    prepared = PreferenceTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train_dataset
    return [{key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in prepared]


def work(trainer: Any, tokens: list[Any], case: dict[str, Any]) -> list[Any]:
    """What each step's pairs ask for; a completion's last token is a target but no input."""
    from stepping import Work

    steps = []
    for start in range(0, len(tokens), case["pairs"]):
        lengths = [[len(ids) for ids in row.values()] for row in tokens[start : start + case["pairs"]]]
        steps.append(
            Work(
                plain=sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in lengths),
                body=sum(prompt + chosen + rejected - 2 for prompt, chosen, rejected in lengths),
                head=sum(chosen + rejected for _, chosen, rejected in lengths),
            )
        )
    return steps


def missing() -> dict[str, str]:
    """The forms that this holdfast, or what is installed, does not have."""
    from importlib.util import find_spec

    from holdfast import PreferenceConfig

    why = "TRL is not installed (pip install 'holdfast[bench]')"
    absent = {} if find_spec("trl") else {"trl-dpo": why, "trl-cpo": why}
    if not hasattr(PreferenceConfig, "padding_free"):
        absent["ours-padded"] = "PreferenceConfig has no field padding_free"
    return absent


BENCHMARK = StepBenchmark(
    name="preference_step",
    script=Path(__file__),
    description=__doc__ or "",
    forms={
        "plain": Form("plain logits", OBJECTIVE, "plain", plain),
        "reference": Form("plain logits, reference pass", OBJECTIVE, "plain", plain_with_reference),
        "trl-dpo": Form("TRL DPO trainer, loss swapped", OBJECTIVE, "plain", trl_dpo),
        "trl-cpo": Form("TRL CPO trainer, SimPO, its own loss", None, "plain", trl_cpo),
        "ours": Form("holdfast", OBJECTIVE, "plain", partial(ours, {})),
        **{
            f"ours-{name}": Form(label, OBJECTIVE, "plain", partial(ours, {option: False}), default=False)
            for name, label, option in (
                ("prompt-twice", "holdfast, prompt twice", "shared_prefix"),
                ("padded", "holdfast, padded rows", "padding_free"),
            )
        },
    },
    tokenize=tokenize,
    work=work,
    missing=missing,
)

if __name__ == "__main__":
    main(BENCHMARK)
