"""Preference alignment: pairs of completions, any registered pair objective."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from holdfast.data.collate import Batch, PairCollator
from holdfast.models.token_logprobs import check_logprob_forward, install_logprob_forward, token_logprobs
from holdfast.objectives.pairs import ObjectiveTerms, PairLogps, PairObjective, mean_logp, sum_logp
from holdfast.training.config import PreferenceConfig
from holdfast.training.lean_trainer import LeanTrainer, MicroBatch
from holdfast.training.metrics import wide
from holdfast.training.preparation import Prepared, prepare_model, prepare_pairs, prepare_tokenizer
from holdfast.training.reference import add_reference_logps
from holdfast.training.scoring import COLLAPSED, take

logger = logging.getLogger(__name__)


class PreferenceTrainer(LeanTrainer):
    """Align a model on pairs of chosen and rejected completions.

    Args:
        model: a name or folder, or a loaded causal LM (PEFT models too).
        args: `PreferenceConfig`.
        train_dataset, eval_dataset: rows of any preference layout (see docs/data.md): a `datasets.Dataset`,
            a list of dicts, or a path.
        processing_class: the tokenizer; by default the model's own.
        peft_config: a `LoraConfig`, or a mapping of `lora_config`'s settings (`{}`: the SLIME paper's adapter);
            None trains every weight.
        callbacks: transformers callbacks.

    Metrics a logging step (pairs' means): `loss` and its parts (`loss/anchor`, ...); `logps/chosen`,
    `logps/rejected` (summed over tokens, nats) and `mean_logps/...` (per token); `rewards/chosen`,
    `rewards/rejected`, `rewards/margins`, `rewards/accuracies` (of the objective's own implicit reward);
    `margin/satisfied` (share of pairs past the objective's margin); `rejected/collapsed` (share of rejected
    tokens with p < 1e-4); `num_tokens` (so far, as plain rows would count them), `tokens_per_second`.
    """

    args: PreferenceConfig

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: PreferenceConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | str | None = None,
        peft_config: PeftConfig | Mapping[str, Any] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> None:
        args = args if args is not None else PreferenceConfig(output_dir="preference")
        assert isinstance(args.objective, PairObjective)  # resolved by the config
        self.objective = args.objective
        # Rows are read before the model is: a bad row is named before it costs anything.
        tokenizer = prepare_tokenizer(processing_class, model, args)
        self.prepared: dict[str, Prepared] = {
            name: prepare_pairs(dataset, tokenizer, args)
            for name, dataset in (("train", train_dataset), ("eval", eval_dataset))
            if dataset is not None
        }
        model = prepare_model(model, args, peft_config, list(self.prepared.values()))
        install_logprob_forward(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=PairCollator(tokenizer.pad_token_id, shared_prefix=False),
            train_dataset=self.prepared["train"].dataset if "train" in self.prepared else None,
            eval_dataset=self.prepared["eval"].dataset if "eval" in self.prepared else None,
            processing_class=tokenizer,
            callbacks=list(callbacks) if callbacks else None,
        )
        with self.accelerator.autocast():
            self.forward_check = check_logprob_forward(self.model, tokenizer.pad_token_id)
        if args.shared_prefix and not self.forward_check.shared_prefix and self.is_world_process_zero():
            logger.warning("shared-prefix rows are off, plain rows are used: %s", self.forward_check.reason)
        self.shared_prefix = args.shared_prefix and self.forward_check.shared_prefix
        self.data_collator = PairCollator(tokenizer.pad_token_id, shared_prefix=self.shared_prefix)
        if self.objective.needs_reference:
            for name, prepared in self.prepared.items():
                dataset = add_reference_logps(self, prepared.dataset, args.reference_batch_size)
                setattr(self, f"{name}_dataset", dataset)

    def count(self, batch: Batch) -> Tensor:
        """(pairs, rejected tokens) of a micro-batch."""
        rejected = batch["rejected_slots"]
        pairs = torch.tensor(rejected.shape[0], device=rejected.device)
        return wide(torch.stack([pairs, (rejected >= 0).sum()]))

    def dataset_counts(self, dataset: Any) -> Tensor:
        """(pairs, rejected tokens) of a whole data set."""
        return torch.tensor([len(dataset), sum(map(len, dataset["rejected_ids"]))]).double()

    def measure(self, model: nn.Module, batch: Batch, counts: Tensor) -> MicroBatch:
        """Log-probs, objective and metrics of a micro-batch of pairs."""
        pairs = pair_logps(token_logprobs(model, batch), batch, counts[1] / counts[0])
        terms: ObjectiveTerms = self.objective(pairs)
        count = torch.tensor(terms.loss.shape[0], device=terms.loss.device)
        return MicroBatch(terms.loss.sum(), count, pair_metrics(pairs, terms, batch["num_tokens"]))


def pair_logps(
    logps: Tensor, batch: Batch, rejected_tokens_per_pair: Tensor | float | None = None
) -> PairLogps:
    """Sort a batch's scored tokens (tokens,) into (pairs, time), chosen and rejected."""
    chosen, chosen_mask = take(logps, batch["chosen_slots"])
    rejected, rejected_mask = take(logps, batch["rejected_slots"])
    return PairLogps(
        chosen=chosen,
        rejected=rejected,
        chosen_mask=chosen_mask,
        rejected_mask=rejected_mask,
        reference_chosen=batch.get("reference_chosen"),
        reference_rejected=batch.get("reference_rejected"),
        rejected_tokens_per_pair=rejected_tokens_per_pair,
    )


@torch.no_grad()
def pair_metrics(
    pairs: PairLogps, terms: ObjectiveTerms, num_tokens: Tensor
) -> dict[str, tuple[Tensor, Any]]:
    """Sums and counts of everything logged for pairs; names as in `PreferenceTrainer`'s docstring."""
    count = terms.loss.shape[0]
    margins = terms.rewards_chosen - terms.rewards_rejected
    collapsed = (pairs.rejected < math.log(COLLAPSED)) & pairs.rejected_mask
    values: dict[str, Tensor] = {
        "loss": terms.loss,
        **{f"loss/{name}": part for name, part in terms.parts.items()},
        "logps/chosen": sum_logp(pairs.chosen, pairs.chosen_mask),
        "logps/rejected": sum_logp(pairs.rejected, pairs.rejected_mask),
        "mean_logps/chosen": mean_logp(pairs.chosen, pairs.chosen_mask),
        "mean_logps/rejected": mean_logp(pairs.rejected, pairs.rejected_mask),
        "rewards/chosen": terms.rewards_chosen,
        "rewards/rejected": terms.rewards_rejected,
        "rewards/margins": margins,
        "rewards/accuracies": margins > 0,
        "margin/satisfied": terms.satisfied,
    }
    return {
        **{name: (value.sum(), count) for name, value in values.items()},
        "rejected/collapsed": (collapsed.sum(), pairs.rejected_mask.sum()),
        "num_tokens": (num_tokens.sum(), 1),
    }
