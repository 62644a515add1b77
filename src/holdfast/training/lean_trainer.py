"""What both trainers share: transformers' Trainer, with the loss as one mean over the global batch.

A subclass says how rows are tokenized, and how a micro-batch is counted and measured. Everything else (data loading,
optimizer, scheduler, launchers, checkpoints) is the Trainer's.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput

from holdfast.data.collate import Batch
from holdfast.errors import ConfigError
from holdfast.models.token_logprobs import (
    causal_lm_of,
    check_logprob_forward,
    head_form,
    install_logprob_forward,
)
from holdfast.ops.linear import onednn_is_faster
from holdfast.ops.prefix_attention import widens
from holdfast.training.backends import SayBackends
from holdfast.training.config import LeanConfig
from holdfast.training.distributed import DistributedTrainer
from holdfast.training.guarded_trainer import GuardedTrainer
from holdfast.training.guards import require_finite_parameters
from holdfast.training.halving import Halving, KeepExamples, does_not_fit, out_of_memory
from holdfast.training.metrics import Measured, MetricSums, means
from holdfast.training.preparation import Prepared, prepare_model, prepare_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch, measured.

    Attributes:
        loss: () the sum over the micro-batch's examples, not yet divided by anything.
        kept: () how many of its examples or tokens the objective counted.
        metrics: sums and counts for the log.
    """

    loss: Tensor
    kept: Tensor
    metrics: Measured


class LogLastStep(TrainerCallback):
    """Log after the last step too: the Trainer forgets a span that `logging_steps` does not fill."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a log when training is over."""
        control.should_log = control.should_log or state.global_step >= state.max_steps


class LeanTrainer(DistributedTrainer, GuardedTrainer):
    """Trainer whose gradient does not depend on how a global batch is cut into micro-batches or ranks."""

    args: LeanConfig
    objective: Any
    data_collator: Any
    padding_free: bool  # as far as the model takes it
    model_name: str | None  # as it was given, if it was given by name
    head: str  # how log-probs come from hidden states, in words
    backends: dict[str, str]  # that, and what else was chosen
    config_class: ClassVar[type[LeanConfig]]
    default_output_dir: ClassVar[str]

    def __init__(
        self,
        model: str | Path | nn.Module,
        args: LeanConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | str | None = None,
        peft_config: PeftConfig | Mapping[str, Any] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
    ) -> None:
        args = args if args is not None else self.config_class(output_dir=self.default_output_dir)
        if args.push_to_hub:
            raise ConfigError(
                "push_to_hub: training writes to disk alone; upload the finished folder afterwards (`hf upload`)"
            )
        self.objective = args.objective  # resolved by the config
        # Rows are read before the model is: a bad row is named before it costs anything.
        tokenizer = prepare_tokenizer(processing_class, model, args)
        if isinstance(eval_dataset, Mapping):
            raise ConfigError(
                f"eval_dataset is a mapping ({', '.join(map(str, eval_dataset))}); give one data set: rows that are "
                "to be told apart belong in trainers of their own"
            )
        given = {"train": train_dataset, "eval": eval_dataset}
        self.prepared: dict[str, Prepared] = {
            name: rows if isinstance(rows, Prepared) else self.prepare(rows, tokenizer, args)
            for name, rows in given.items()
            if rows is not None
        }
        self.model_name = str(model) if isinstance(model, str | Path) else None
        set_seed(args.seed)  # an adapter draws its start: the same in every run, and in every process
        model = prepare_model(model, args, peft_config, list(self.prepared.values()), tokenizer)
        install_logprob_forward(model, args.head_implementation)
        if args.n_gpu > 1:
            # DataParallel would cut our flat tensors along their first dimension.
            args._n_gpu = 1
        datasets = {name: prepared.dataset for name, prepared in self.prepared.items()}
        super().__init__(
            model=model,
            args=args,
            data_collator=self.collator(tokenizer.pad_token_id),
            train_dataset=datasets.get("train"),
            eval_dataset=datasets.get("eval"),
            processing_class=tokenizer,
            callbacks=list(callbacks) if callbacks else None,
        )
        self.add_callback(LogLastStep())
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the global batch already
        self.can_return_loss = True
        self.label_names: list[str] = []
        self._train_sums, self._eval_sums = MetricSums(), MetricSums()
        self._num_tokens = 0.0
        self._span_started = time.perf_counter()
        self._step_kept: list[Tensor] = []
        self._step_loss: list[Tensor] = []
        self._halving = self._halve_what_does_not_fit()
        if self.divides_by_kept and self.is_deepspeed_enabled:
            raise ConfigError(
                "DeepSpeed owns the gradients, so they cannot be divided by the kept tokens of the global batch: "
                "set `normalize: all` on the objective, or use FSDP"
            )
        require_finite_parameters(self.model)
        self.forward_check = check_logprob_forward(self.model, tokenizer.pad_token_id)
        self.padding_free = args.padding_free and self.forward_check.padding_free
        if args.padding_free and not self.padding_free and self.is_world_process_zero():
            logger.warning("rows are padded: %s", self.forward_check.padding_free_refusal)
        half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self.head = head_form(self.model, args.device, half, sums_losses=self.objective.kind == "token")
        if self.is_world_process_zero():
            logger.info("LM head: %s", self.head)
        attention = causal_lm_of(self.model).get_decoder().config._attn_implementation
        self.backends = {"LM head": self.head, "attention": attention}
        if args.device.type == "cpu":
            if half is None and onednn_is_faster():
                self.backends["float32 projections"] = "oneDNN"
            if half is not None and attention == "sdpa" and self.padding_free and widens(half):
                self.backends["attention"] += ", in float32"
        self.add_callback(SayBackends(self.backends))
        self._ready()

    def _ready(self) -> None:
        """What a subclass does once the model is in place."""

    @property
    def divides_by_kept(self) -> bool:
        """True when the divisor is known only after the last forward of the global batch (thresholded tokens).

        Gradients are then rescaled once, before clipping.
        """
        return False

    @abstractmethod
    def prepare(self, rows: Any, tokenizer: PreTrainedTokenizerBase, args: Any) -> Prepared:
        """Rows of any accepted source -> tokenized rows, checked."""

    @abstractmethod
    def collator(self, pad_token_id: int) -> Callable[[Sequence[Mapping[str, Any]]], Batch]:
        """What makes a batch of tokenized rows."""

    @abstractmethod
    def count(self, batch: Batch) -> Tensor:
        """What a micro-batch adds to the global batch's counts; the first entry divides the loss."""

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch, counts: Tensor) -> MicroBatch:
        """Forward a micro-batch; `counts` are those of the global batch it belongs to."""

    # ---- one mean over the global batch

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        """Counts of the global batch: all its micro-batches, on all processes."""
        if not batch_samples:
            return None
        self._step_kept, self._step_loss = [], []
        self.begin_step([batch["row_index"] for batch in batch_samples])
        self._sums_before = self._train_sums.copy()
        if self._halving is not None:
            self._halving.begin()
        counts = torch.stack([self.count(batch) for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(counts, reduction="sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The micro-batch's share of the global mean, times the processes that average their gradients."""
        assert num_items_in_batch is not None
        micro = self.measure(model, inputs, num_items_in_batch)
        self._train_sums.add(micro.metrics)
        if self.divides_by_kept:
            self._step_kept.append(micro.kept)
            self._step_loss.append(micro.loss.detach())
        loss = micro.loss / num_items_in_batch[0].to(micro.loss.dtype) * self.accelerator.num_processes
        if self._steps_in_backward:
            self._guard.require_finite_loss(self, loss)
        return (loss, None) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """As the Trainer's; after the last micro-batch, divide by the kept tokens where that is the divisor."""

        def step(batch: Batch) -> Tensor:
            return super(LeanTrainer, self).training_step(model, batch, num_items_in_batch)

        if self._halving is None:
            try:
                share = step(inputs)
            except RuntimeError as error:
                if not does_not_fit(error):
                    raise
                # Without its traceback, which would keep the memory.
                raise out_of_memory(inputs, self.state.global_step + 1) from None
        else:
            share = self._halving.run(inputs, step, partial(self._start_step_again, model))
        loss = self._divided_by_kept(model, share, num_items_in_batch) if self.divides_by_kept else share
        self._guard.add(share, loss)
        return loss

    def _divided_by_kept(self, model: nn.Module, share: Tensor, num_items_in_batch: Tensor | None) -> Tensor:
        """The whole loss and rescaled gradients with the last micro-batch, 0 before."""
        assert num_items_in_batch is not None
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(share)
        kept = self.accelerator.reduce(torch.stack(self._step_kept).sum(), reduction="sum").clamp(min=1)
        factor = num_items_in_batch[0] / kept
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.dtype))
        return torch.stack(self._step_loss).sum() / kept * self.accelerator.num_processes

    def leave_out_step(self, model: nn.Module) -> None:
        """With the metrics as they were before the step."""
        super().leave_out_step(model)
        self._train_sums = self._sums_before

    # ---- micro-batches that do not fit

    def _halve_what_does_not_fit(self) -> Halving | None:
        if not self.args.auto_find_batch_size:
            return None
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                "auto_find_batch_size: one process cannot cut its micro-batches while others wait for its gradients; "
                "set per_device_train_batch_size, and gradient_accumulation_steps for the global batch"
            )
        return Halving(lambda examples: self.data_collator(examples))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As the Trainer's; batches carry their rows where they may have to be cut."""
        if self._halving is None:
            return super().get_train_dataloader()
        own = self.data_collator
        self.data_collator = KeepExamples(own)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = own

    def _start_step_again(self, model: nn.Module) -> None:
        """Forget what the global batch's first micro-batches left."""
        model.zero_grad()
        self._train_sums = self._sums_before.copy()
        self._step_kept, self._step_loss = [], []

    # ---- what a checkpoint holds besides

    def run_state(self) -> dict[str, Any]:
        """With the tokens so far, and how micro-batches are cut."""
        return super().run_state() | {
            "num_tokens": self._num_tokens,
            "parts": None if self._halving is None else self._halving.parts,
        }

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """As `run_state` took it."""
        super().load_run_state(state)
        self._num_tokens = state["num_tokens"]
        if self._halving is not None and state["parts"] is not None:
            self._halving.parts = state["parts"]

    def process_state(self) -> dict[str, Any]:
        """With the metrics since the last log."""
        return super().process_state() | {"sums": self._train_sums.state_dict()}

    def load_process_state(self, states: list[dict[str, Any]]) -> None:
        """As `process_state` took it; where the number of processes is another, the first has all the sums."""
        super().load_process_state(states)
        sums = [state["sums"] for state in states]
        own = self.args.process_index
        if len(states) == self.args.world_size:
            sums = [sums[own]]
        elif own > 0:
            sums = []
        self._train_sums = MetricSums.of(sums, self.args.device)

    def begin_sums(self) -> None:
        """Throughput is measured from here."""
        super().begin_sums()
        self._span_started = time.perf_counter()

    # ---- metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the span's means to a training log, and hand it on."""
        if "loss" in logs:
            now = time.perf_counter()
            sums = self._train_sums.flush(self.accelerator)
            if not sums:  # every step of the span was left out
                del logs["loss"]
            tokens, _ = sums.pop("num_tokens", (0.0, 0.0))
            self._num_tokens += tokens
            logs |= means(sums) | self._guard.counts()
            logs["num_tokens"] = self._num_tokens
            logs["tokens_per_second"] = tokens / max(now - self._span_started, 1e-9)
            self._span_started = now
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Measure one evaluation batch; the sums are read once, at the end of the loop."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            micro = self.measure(model, inputs, self._eval_counts)
        self._eval_sums.add(micro.metrics)
        return micro.loss / micro.kept.clamp(min=1), None, None

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As the Trainer's, with every metric the mean over the whole data set, not over its batches."""
        started = time.perf_counter()
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._eval_counts = self.dataset_counts(dataloader.dataset)
        self._eval_sums = MetricSums()
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        sums = self._eval_sums.flush(self.accelerator)
        sums.pop("num_tokens")
        output.metrics.update({f"{prefix}_{name}": value for name, value in means(sums).items()})
        self._span_started += time.perf_counter() - started  # throughput is training's alone
        return output

    @abstractmethod
    def dataset_counts(self, dataset: Any) -> Tensor:
        """`count` over a whole data set, from its lengths."""

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not estimated: the Trainer's formula assumes one plain row per example."""
        return 0
