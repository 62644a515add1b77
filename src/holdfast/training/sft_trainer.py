"""Supervised fine-tuning: any registered token objective on the completion's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from holdfast.data.collate import Batch, SFTCollator
from holdfast.models.token_logprobs import check_logprob_forward, install_logprob_forward, token_logprobs
from holdfast.objectives.token import TokenObjective
from holdfast.training.config import SFTConfig
from holdfast.training.lean_trainer import LeanTrainer, MicroBatch
from holdfast.training.metrics import wide
from holdfast.training.preparation import Prepared, prepare_model, prepare_sft, prepare_tokenizer


class SFTTrainer(LeanTrainer):
    """Fine-tune a model on demonstrations.

    Args: as `PreferenceTrainer`'s; rows may have any supervised layout, or a preference layout whose chosen side
    is the demonstration.

    Metrics a logging step: `loss` (per counted token); `mean_logps/target` (nats a token) and
    `probability/target` (mean probability of the target tokens: the capability proxy of arXiv 2510.00526, eq. 5);
    `tokens/kept` (share of target tokens the objective counts); `num_tokens`, `tokens_per_second`.
    """

    args: SFTConfig

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: SFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | str | None = None,
        peft_config: PeftConfig | Mapping[str, Any] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> None:
        args = args if args is not None else SFTConfig(output_dir="sft")
        assert isinstance(args.objective, TokenObjective)  # resolved by the config
        self.objective = args.objective
        self.divides_by_kept = self.objective.normalization == "kept"
        tokenizer = prepare_tokenizer(processing_class, model, args)
        self.prepared: dict[str, Prepared] = {
            name: prepare_sft(dataset, tokenizer, args)
            for name, dataset in (("train", train_dataset), ("eval", eval_dataset))
            if dataset is not None
        }
        model = prepare_model(model, args, peft_config, list(self.prepared.values()))
        install_logprob_forward(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=SFTCollator(tokenizer.pad_token_id),
            train_dataset=self.prepared["train"].dataset if "train" in self.prepared else None,
            eval_dataset=self.prepared["eval"].dataset if "eval" in self.prepared else None,
            processing_class=tokenizer,
            callbacks=list(callbacks) if callbacks else None,
        )
        with self.accelerator.autocast():
            self.forward_check = check_logprob_forward(self.model, tokenizer.pad_token_id)

    def count(self, batch: Batch) -> Tensor:
        """(target tokens,) of a micro-batch."""
        targets = batch["target_ids"]
        return wide(torch.tensor([targets.shape[0]], device=targets.device))

    def dataset_counts(self, dataset: Any) -> Tensor:
        """(target tokens,) of a whole data set."""
        return torch.tensor([sum(map(sum, dataset["completion_mask"]))]).double()

    def measure(self, model: nn.Module, batch: Batch, counts: Tensor) -> MicroBatch:
        """Log-probs, objective and metrics of a micro-batch of demonstrations."""
        logps = token_logprobs(model, batch)
        kept = self.objective.kept(logps)
        loss = torch.where(kept, self.objective(logps), 0.0).sum()
        targets, kept_count = logps.shape[0], kept.sum()
        divisor = kept_count if self.divides_by_kept else targets
        return MicroBatch(
            loss,
            kept_count,
            {
                "loss": (loss, divisor),
                "mean_logps/target": (logps.sum(), targets),
                "probability/target": (logps.exp().sum(), targets),
                "tokens/kept": (kept_count, targets),
                "num_tokens": (batch["num_tokens"].sum(), 1),
            },
        )
