"""Supervised fine-tuning: any registered token objective on the completion's tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from pyarrow import compute
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput

from holdfast.data.collate import Batch, SFTCollator
from holdfast.data.information import InformativeTokens
from holdfast.errors import ConfigError
from holdfast.models.token_logprobs import token_losses
from holdfast.objectives.registry import objective_spec
from holdfast.objectives.token import TokenObjective
from holdfast.training.capability_tracker import CapabilityTracker
from holdfast.training.config import SFTConfig
from holdfast.training.lean_trainer import LeanTrainer, MicroBatch
from holdfast.training.metrics import wide
from holdfast.training.percentiles import Percentiles
from holdfast.training.preparation import Prepared, prepare_sft
from holdfast.training.scoring import measure_percentiles

logger = logging.getLogger(__name__)


class SFTTrainer(LeanTrainer):
    """Fine-tune a model on demonstrations.

    Args: as `PreferenceTrainer`'s; rows may have any supervised layout, or a preference layout whose chosen side
    is the demonstration.

    Metrics a logging step: `loss` (per counted token); `mean_logps/target` (nats a token) and
    `probability/target` (mean probability of the target tokens: the capability proxy of arXiv 2510.00526, eq. 5);
    `tokens/kept` (share of target tokens the objective counts); `num_tokens`, `tokens_per_second`; `capability` and
    `alpha` where the objective follows the model's capability (see `CapabilityTracker`).

    Attributes:
        objective: as it was given.
        measured: with the probabilities at the quantiles that it names; the objective itself where it names none, None
            where they have not been measured yet (that is done before the first step).
        percentiles: of the base model, for such an objective.
    """

    args: SFTConfig
    objective: TokenObjective
    config_class = SFTConfig
    default_output_dir = "sft"
    percentiles: Percentiles | None = None
    measured: TokenObjective | None = None

    def _ready(self) -> None:
        self.data_collator = SFTCollator(self.processing_class.pad_token_id, self.padding_free)
        self.backends["rows"] = f"plain, {'without padding' if self.padding_free else 'padded'}"
        if self.is_world_process_zero():
            logger.info("rows: %s", self.backends["rows"])
        half_life = self.objective.half_life
        self._tracker: CapabilityTracker | None = None
        if half_life is not None and self.train_dataset is not None:
            information = InformativeTokens.of(self.train_dataset)
            start = float(self.objective.state()["capability"])
            self._tracker = CapabilityTracker(information, half_life, start, self.args.device)
        if not self.objective.needs_percentiles:
            self._take_measured(self.objective)
        elif self.args.percentiles is not None:
            self._take_percentiles(Percentiles.of_probe(self.args.percentiles, self.model_name))

    def _take_percentiles(self, percentiles: Percentiles) -> None:
        """Have the objective's quantiles be probabilities, from here on.

        Raises:
            ConfigError: its bounds contradict each other then.
        """
        self.percentiles = percentiles
        try:
            measured = self.objective.with_percentiles(percentiles.at)
        except ValueError as error:
            raise ConfigError(f"objective: with the base model's percentiles, {error}") from error
        if self.is_world_process_zero():
            logger.info("objective with the base model's percentiles: %s", objective_spec(measured))
        self._take_measured(measured)

    def _take_measured(self, objective: TokenObjective) -> None:
        self.measured = objective
        self._follow()

    def _follow(self) -> None:
        """Take the objective at the capability measured so far: it stays for a whole global batch."""
        assert self.measured is not None
        capability = None if self._tracker is None else self._tracker.capability
        self._followed = self.measured if capability is None else self.measured.at(capability)
        self._logged = {} if capability is None else self._followed.state()

    def begin_sums(self) -> None:
        """As the `LeanTrainer`'s; then the base model's percentiles are measured, where the objective needs them."""
        super().begin_sums()
        if self.measured is None:
            self._take_percentiles(measure_percentiles(self, self.train_dataset))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As the `LeanTrainer`'s.

        Raises:
            ConfigError: the objective needs percentiles of the base model, and nothing was trained.
        """
        if self.measured is None:
            raise ConfigError(
                "objective: its bounds are quantiles of the base model's probabilities, which are measured when "
                "training begins: train first, or give `percentiles: probe.json`"
            )
        return super().evaluation_loop(*args, **kwargs)

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
        if self._tracker is not None and model.training:
            self._tracker.add(batch, logps)
        targets, kept_count = logps.shape[0], self._followed.kept(logps).sum()
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
            }
            | {name: (targets * value, targets) for name, value in self._logged.items()},
        )

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """As the `LeanTrainer`'s; a complete global batch is taken into the capability that the next one sees."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._tracker is not None and self.accelerator.sync_gradients:
            self._tracker.close(self.accelerator)
            self._follow()
        return loss

    def _start_step_again(self, model: nn.Module) -> None:
        """With what the tracker heard of the step forgotten."""
        super()._start_step_again(model)
        if self._tracker is not None:
            self._tracker.forget()

    def run_state(self) -> dict[str, Any]:
        """With the capability measured so far, and the base model's percentiles."""
        tracker = None if self._tracker is None else self._tracker.state_dict()
        percentiles = None if self.percentiles is None else list(self.percentiles.values)
        return super().run_state() | {"capability": tracker, "percentiles": percentiles}

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """As `run_state` took it."""
        super().load_run_state(state)
        if self._tracker is not None:
            self._tracker.load_state_dict(state["capability"])
        if state["percentiles"] is not None:
            self._take_percentiles(Percentiles(tuple(state["percentiles"])))
        elif self.measured is not None:
            self._follow()

    def _losses(self, logps: Tensor) -> Tensor:
        """Each token's loss, 0 where the objective leaves it out."""
        return torch.where(self._followed.kept(logps), self._followed(logps), 0.0)
