"""A run without its training: everything that could refuse it is asked, and what it would need is estimated.

Nothing is written that stays, no folder is claimed, no weights are loaded. What the run's own checks would refuse is
collected, not raised, so that one thing that is missing (a name on the hub that cannot be reached, say) does not hide
the rest.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from holdfast.data.check_summary import summary
from holdfast.data.examine import checker
from holdfast.errors import ConfigError, FolderInUse, HoldfastError, ModelError
from holdfast.experiments.arguments import StageArguments, stage_arguments
from holdfast.experiments.config import RunConfig
from holdfast.experiments.devices import get_device
from holdfast.experiments.disk import require_room
from holdfast.experiments.dry_run_findings import UTILISATION, DryRun, StagePlan
from holdfast.experiments.estimate_memory import (
    FLOAT32,
    STATES,
    checkpointed_share,
    memory_of,
    optimizer_name,
)
from holdfast.experiments.estimate_model import model_without_weights
from holdfast.experiments.estimate_shape import DecoderShape, decoder_shape
from holdfast.experiments.estimate_work import forward_operations, operations, steps_of, work_of
from holdfast.experiments.rows import (
    RunRows,
    prepare_stages,
    read_run_rows,
    require_held_out,
    shared_out,
    take_in_source,
)
from holdfast.experiments.run_folder import RunFolder
from holdfast.models.adapters import attach_adapter, lora_config, train_in_float32
from holdfast.training.config import PreferenceConfig
from holdfast.training.preparation import Prepared, prepare_model
from holdfast.training.run_lock import LOCK, Holder

DEFAULT_GPU = "h100"
MOST_GPUS = 4096
WITHOUT_ROWS = (
    "steps, tokens and time: not estimated without rows (fetch or make them, and name them as data.source)"
)
WITHOUT_MODEL = (
    "memory and time: not estimated without the model's configuration (fetch it where the hub can be reached, and give "
    "the folder as model.name)"
)


def dry_run(config: RunConfig, *, gpu: str = DEFAULT_GPU, gpus: int = 1, overwrite: bool = False) -> DryRun:
    """Everything of a run but its weights and its training.

    Args:
        gpu: a name of `DEVICES`, to hold the estimate against.
        gpus: that many of them; the global batch grows with them, as in a launched run.
        overwrite: as in a run: a folder that holds one is no reason against it.

    Raises:
        ConfigError: settings that no run could have; an unknown GPU; several processes.
    """
    device = get_device(gpu)
    if not 1 <= gpus <= MOST_GPUS:
        raise ConfigError(f"--gpus: must be from 1 to {MOST_GPUS}, not {gpus}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a dry run is one process: start it without a launcher, and say --gpus N")
    path = Path(config.output_dir).expanduser()
    args = stage_arguments(_for_gpu(config), path)
    found = DryRun(
        config,
        device,
        gpus,
        [
            StagePlan(stage, own, own.per_device_train_batch_size * own.gradient_accumulation_steps * gpus)
            for stage, own in args.stages().items()
        ],
    )
    found.asked(lambda: _require_folder(config, args, path, overwrite))
    with tempfile.TemporaryDirectory(prefix="holdfast-dry-run-") as scratch:
        for own in args.stages().values():
            own.cache_dir = scratch
        _Estimate(found, args, Path(scratch)).go()
    return found


class _Estimate:
    """Fills in a `DryRun`, from its rows to its time."""

    def __init__(self, found: DryRun, args: StageArguments, scratch: Path) -> None:
        self.found, self.args, self.scratch = found, args, scratch
        self.prepared: dict[str, Prepared] = {}
        self.tokenizer: PreTrainedTokenizerBase | None = None

    def go(self) -> None:
        """Rows, then the model, then both together."""
        found = self.found
        try:
            rows = read_run_rows(found.config, self.args.sft, self.args.align)
        except ModelError as error:
            found.refuse(error)
            self._texts_alone()
        except HoldfastError as error:
            found.refuse(error)
            found.gap(WITHOUT_ROWS)
        else:
            found.rows = rows.summary()
            found.asked(lambda: require_held_out(rows, self.args.stages()))
            found.asked(lambda: self._tokenize(rows))
        for plan in found.stages:
            self._count(plan)
        if found.config.model.trust_remote_code:
            found.gap("memory and time: not estimated for a model that brings its own code")
            return
        model = found.asked(self._build)
        if model is None:
            found.gap(WITHOUT_MODEL)
            return
        try:
            shape = decoder_shape(model)
        except ModelError as error:
            found.gap(f"memory and time: not estimated: {error}")
            shape = None
        trained = found.asked(lambda: self._as_trained(model))
        if trained is None or shape is None:
            return
        for plan in found.stages:
            self._measure(plan, shape, trained)

    # ---- rows

    def _tokenize(self, rows: RunRows) -> None:
        self.tokenizer = rows.tokenizer
        lines: list[str] = []
        self.prepared = prepare_stages(
            rows, self.args.sft, self.args.align, self.scratch / "quarantine.jsonl", lines.append
        )
        self.found.rows += lines

    def _texts_alone(self) -> None:
        """Without a tokenizer rows can still be read, checked and shared out."""
        found = self.found
        own = self.args.align or self.args.sft
        assert own is not None
        kind: Any = "sft" if self.args.align is None else "preference"

        def sides() -> dict[str, Any]:
            intake = take_in_source(found.config, own, checker(kind, seed=found.config.seed))
            intake.require(found.config.data.validation)
            found.rows = summary(intake.report)
            return shared_out(found.config, intake)

        shared = found.asked(sides)
        if shared is None:
            found.gap(WITHOUT_ROWS)
            return
        found.rows.append(
            "split by prompt: " + ", ".join(f"{len(side)} {name}" for name, side in shared.items())
        )
        found.gap(
            "tokens and time: not counted without the tokenizer; rows are as their texts have them, and some may be "
            "dropped or refused when they are tokenized"
        )
        for plan in found.stages:
            plan.rows = len(shared[plan.stage])

    def _count(self, plan: StagePlan) -> None:
        """Rows, steps and tokens."""
        own = self.prepared.get(plan.stage)
        if own is not None:
            shared = isinstance(plan.args, PreferenceConfig) and plan.args.shared_prefix
            plan.work = work_of(own.dataset, shared_prefix=shared)
            plan.rows = len(plan.work)
        if plan.rows is not None:
            plan.steps = steps_of(plan.rows, plan.args, self.found.gpus)
            plan.passes = (
                plan.steps * plan.rows_a_step / plan.rows
                if plan.args.max_steps > 0
                else plan.args.num_train_epochs
            )
        plan.largest, plan.assumed_largest = _largest(plan)

    # ---- the model

    def _dtype(self) -> str:
        """In which the weights are loaded: see `holdfast.training.preparation`."""
        own = self.found.stages[0].args
        config = self.found.config
        whole = config.adapter is None or own.mixed_precision == "no"
        return "float32" if config.model.dtype == "auto" and whole else config.model.dtype

    def _build(self) -> Any:
        vocabulary = None if self.tokenizer is None else len(self.tokenizer)
        return model_without_weights(self.found.config, self._dtype(), vocabulary)

    def _as_trained(self, model: Any) -> nn.Module:
        """The model with its adapter, trained weights in float32; what the trainer would refuse is refused.

        Of a stage's settings only those count that both stages have together.
        """
        config = self.found.config
        adapter = None if config.adapter is None else config.adapter.model_dump()
        if self.tokenizer is None:
            trained = model if adapter is None else attach_adapter(model, lora_config(model, **adapter))
            train_in_float32(trained)
            return trained
        args = copy.copy(self.found.stages[0].args)
        args.quantization = None  # these weights are not quantized, which is no reason against the real ones
        return prepare_model(model, args, adapter, list(self.prepared.values()), self.tokenizer)

    def _measure(self, plan: StagePlan, shape: DecoderShape, model: nn.Module) -> None:
        """Memory and time of a stage."""
        found, args = self.found, plan.args
        parameters = dict(model.named_parameters())
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        found.parameters = (
            sum(p.numel() for p in parameters.values()),
            sum(p.numel() for p in trained.values()),
        )
        rank = None if found.config.adapter is None else found.config.adapter.rank
        plan.memory = memory_of(model, shape, args, *plan.largest, rank)
        if plan.work is not None:
            plan.average = memory_of(
                model, shape, args, *plan.work.average(args.per_device_train_batch_size), rank
            )
        if found.gpus > 1:
            gathered = (max(layer.weights for layer in shape.layers) + shape.head) * FLOAT32
            plan.sharded = plan.memory.shared_out(found.gpus, gathered)
        if optimizer_name(args) not in STATES:
            found.gap(
                f"{plan.stage}.optim: what {optimizer_name(args)} keeps is not known here; counted as AdamW's"
            )
        if (getattr(found.config, plan.stage) or {}).get("use_cpu"):
            found.gap(
                f"{plan.stage}.use_cpu: the stage runs on the CPU; its figures are for the GPU all the same"
            )
        if not args.padding_free:
            found.gap(f"{plan.stage}.padding_free: padding is counted in memory, not in time")
        if plan.work is None or plan.passes is None:
            return
        plan.operations = plan.passes * operations(
            shape,
            plan.work,
            trains_body=rank is None,
            trains_head=rank is None or bool(found.config.adapter and found.config.adapter.train_head),
            adapter=sum(p.numel() for name, p in trained.items() if "lora_" in name),
            again=checkpointed_share(args),
        )
        if args.objective.needs_reference:
            plan.operations += forward_operations(shape, plan.work)
        peak = found.device.fp32 if args.mixed_precision == "no" else found.device.bf16
        plan.seconds = plan.operations / (found.gpus * peak * UTILISATION)


def _for_gpu(config: RunConfig) -> RunConfig:
    """The configuration as it is on the named GPU, which this machine need not have.

    Mixed precision is on unless the stage says otherwise, as on every GPU of `DEVICES`; and where there is no
    accelerator here, what asks for one is not held against this machine.
    """

    def settings(own: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if own is None:
            return None
        changed = dict(own)
        if not changed.get("use_cpu") and not changed.get("fp16"):
            changed["bf16"] = True if changed.get("bf16") is None else changed["bf16"]
        if not torch.accelerator.is_available():
            changed["use_cpu"] = True
        return changed

    return config.model_copy(update={"sft": settings(config.sft), "align": settings(config.align)})


def _require_folder(config: RunConfig, args: StageArguments, path: Path, overwrite: bool) -> None:
    """See that the run could have its folder, without taking it."""
    _require_idle(path)
    RunFolder(path, overwrite=overwrite).look()
    there = path
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"output_dir: '{path}' cannot be made: '{there}' is no folder that can be written to"
        )
    require_room(config, args.stages(), there.resolve())


def _require_idle(path: Path) -> None:
    """See that no other run is at work in the folder, as far as its lock file tells."""
    try:
        holder = Holder.read((path / LOCK).read_bytes())
    except OSError:
        return
    if holder is not None and holder.is_alive():
        raise FolderInUse(
            f"'{path}' is in use by {holder}: wait for its end, stop it, or choose another output folder"
        )


def _largest(plan: StagePlan) -> tuple[tuple[int, int], bool]:
    """((tokens computed, tokens scored) of the largest micro-batch, whether `max_length` alone says so)."""
    args = plan.args
    rows = args.per_device_train_batch_size
    if plan.work is not None:
        computed, scored = plan.work.largest(rows)
        if not args.padding_free:
            computed = max(computed, min(rows, len(plan.work)) * int(plan.work.computed.max()))
        return (computed, scored), False
    sides = 2 if isinstance(args, PreferenceConfig) else 1
    return (rows * args.max_length * sides, rows * args.max_length * sides), True
