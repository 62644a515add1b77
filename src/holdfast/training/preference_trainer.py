"""Preference alignment: pairs of completions, any registered pair objective."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from pyarrow import compute
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from holdfast.data.collate import Batch, PairCollator
from holdfast.models.token_logprobs import token_logprobs
from holdfast.objectives.pairs import ObjectiveTerms, PairLogps, PairObjective, mean_logp, sum_logp
from holdfast.training.config import PreferenceConfig
from holdfast.training.lean_trainer import LeanTrainer, MicroBatch
from holdfast.training.metrics import wide
from holdfast.training.preparation import Prepared, prepare_pairs
from holdfast.training.reference import add_reference_logps
from holdfast.training.scoring import COLLAPSED, take

logger = logging.getLogger(__name__)


class PreferenceTrainer(LeanTrainer):
    """Align a model on pairs of chosen and rejected completions.

    Args:
        model: a name or folder, or a loaded causal LM (PEFT models too).
        args: `PreferenceConfig`.
        train_dataset, eval_dataset: rows of any preference layout (see docs/data.md): a `datasets.Dataset`,
            a list of dicts, a path, or what `prepare_pairs` made of one.
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
    objective: PairObjective
    config_class = PreferenceConfig
    default_output_dir = "preference"

    def _ready(self) -> None:
        args, check = self.args, self.forward_check
        self.shared_prefix = args.shared_prefix and (self.padding_free or check.shared_prefix)
        self.data_collator = PairCollator(
            self.processing_class.pad_token_id, self.shared_prefix, self.padding_free
        )
        self._report_rows()
        if self.objective.needs_reference:
            datasets = {name: prepared.dataset for name, prepared in self.prepared.items()}
            scored = add_reference_logps(self, datasets, args.reference_batch_size)
            for name, dataset in scored.items():
                setattr(self, f"{name}_dataset", dataset)

    def _report_rows(self) -> None:
        """Say once which form of rows is used, and why where it is not the one asked for."""
        prefix = "shared prefix" if self.shared_prefix else "plain"
        self.backends["rows"] = f"{prefix}, {'without padding' if self.padding_free else 'padded'}"
        if not self.is_world_process_zero():
            return
        if self.args.shared_prefix and not self.shared_prefix:
            refusal = self.forward_check.shared_prefix_refusal
            logger.warning("shared-prefix rows are off, plain rows are used: %s", refusal)
        logger.info("rows: %s", self.backends["rows"])

    def prepare(self, rows: Any, tokenizer: PreTrainedTokenizerBase, args: Any) -> Prepared:
        """Preference rows -> token lists of prompt, chosen and rejected."""
        return prepare_pairs(rows, tokenizer, args)

    def collator(self, pad_token_id: int) -> PairCollator:
        """Plain padded rows, until the model has shown that it takes leaner ones."""
        return PairCollator(pad_token_id, shared_prefix=False)

    def count(self, batch: Batch) -> Tensor:
        """(pairs, rejected tokens) of a micro-batch."""
        rejected = batch["rejected_slots"]
        pairs = torch.tensor(rejected.shape[0], device=rejected.device)
        return wide(torch.stack([pairs, (rejected >= 0).sum()]))

    def dataset_counts(self, dataset: Any) -> Tensor:
        """(pairs, rejected tokens) of a whole data set."""
        column = dataset.select_columns(["rejected_ids"]).with_format("arrow")[:]["rejected_ids"]
        tokens = compute.sum(compute.list_value_length(column)).as_py()
        return torch.tensor([len(dataset), tokens]).double()

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
        reference_chosen=_like(logps, batch.get("reference_chosen")),
        reference_rejected=_like(logps, batch.get("reference_rejected")),
        rejected_tokens_per_pair=rejected_tokens_per_pair,
    )


def _like(logps: Tensor, reference: Tensor | None) -> Tensor | None:
    return None if reference is None else reference.to(logps.dtype)


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
