"""Supervised fine-tuning: any registered token objective on the completion's tokens."""

from __future__ import annotations

import logging
from typing import Any

import torch
from pyarrow import compute
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from holdfast.data.collate import Batch, SFTCollator
from holdfast.models.token_logprobs import token_losses
from holdfast.objectives.token import TokenObjective
from holdfast.training.config import SFTConfig
from holdfast.training.lean_trainer import LeanTrainer, MicroBatch
from holdfast.training.metrics import wide
from holdfast.training.preparation import Prepared, prepare_sft

logger = logging.getLogger(__name__)


class SFTTrainer(LeanTrainer):
    """Fine-tune a model on demonstrations.

    Args: as `PreferenceTrainer`'s; rows may have any supervised layout, or a preference layout whose chosen side
    is the demonstration.

    Metrics a logging step: `loss` (per counted token); `mean_logps/target` (nats a token) and
    `probability/target` (mean probability of the target tokens: the capability proxy of arXiv 2510.00526, eq. 5);
    `tokens/kept` (share of target tokens the objective counts); `num_tokens`, `tokens_per_second`.
    """

    args: SFTConfig
    objective: TokenObjective
    config_class = SFTConfig
    default_output_dir = "sft"

    def _ready(self) -> None:
        self.padding_free = self.args.padding_free and self.forward_check.padding_free
        self.data_collator = SFTCollator(self.processing_class.pad_token_id, self.padding_free)
        if self.is_world_process_zero():
            if self.args.padding_free and not self.padding_free:
                logger.warning("rows are padded: %s", self.forward_check.padding_free_refusal)
            logger.info("rows: plain, %s", "without padding" if self.padding_free else "padded")

    @property
    def divides_by_kept(self) -> bool:
        """Where the objective's divisor is the tokens it keeps."""
        return self.objective.normalization == "kept"

    def prepare(self, rows: Any, tokenizer: PreTrainedTokenizerBase, args: Any) -> Prepared:
        """Supervised rows, or the chosen side of preference rows -> tokens and the mask of trained ones."""
        return prepare_sft(rows, tokenizer, args)

    def collator(self, pad_token_id: int) -> SFTCollator:
        """Padded rows, until the model has shown that it takes flattened ones."""
        return SFTCollator(pad_token_id)

    def count(self, batch: Batch) -> Tensor:
        """(target tokens,) of a micro-batch."""
        targets = batch["target_ids"]
        return wide(torch.tensor([targets.shape[0]], device=targets.device))

    def dataset_counts(self, dataset: Any) -> Tensor:
        """(target tokens,) of a whole data set."""
        column = dataset.select_columns(["completion_mask"]).with_format("arrow")[:]["completion_mask"]
        return torch.tensor([compute.sum(compute.list_flatten(column)).as_py()]).double()

    def measure(self, model: nn.Module, batch: Batch, counts: Tensor) -> MicroBatch:
        """Log-probs, objective and metrics of a micro-batch of demonstrations."""
        loss, logps = token_losses(model, batch, self._losses)
        logps = logps.detach()
        targets, kept_count = logps.shape[0], self.objective.kept(logps).sum()
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

    def _losses(self, logps: Tensor) -> Tensor:
        """Each token's loss, 0 where the objective leaves it out."""
        return torch.where(self.objective.kept(logps), self.objective(logps), 0.0)
