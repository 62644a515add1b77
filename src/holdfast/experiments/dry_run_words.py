"""A dry run in words, for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from holdfast.experiments.devices import GB, TERA
from holdfast.experiments.dry_run_findings import UTILISATION, DryRun, StagePlan
from holdfast.experiments.estimate_memory import Memory
from holdfast.experiments.record import without_keys

SHORT_STEP = 0.05  # seconds: below this, launching a step's kernels is no small part of it


def words(found: DryRun) -> list[str]:
    """The whole report, a line an entry."""
    config: Any = without_keys(found.config.model_dump(mode="json"))
    lines = ["configuration:"]
    lines += _indented(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110).splitlines())
    if found.rows:
        lines += ["rows:", *_indented(line for entry in found.rows for line in entry.splitlines())]
    if found.parameters is not None:
        whole, trained = found.parameters
        lines.append(f"model: {whole:,} parameters, {trained:,} of them trained")
    for plan in found.stages:
        lines += [f"{plan.stage}:", *_indented(_stage(plan, found))]
    if found.gaps:
        lines += ["not told:", *_indented(f"- {gap}" for gap in found.gaps)]
    if found.refusals:
        lines += ["a real run would not start:", *_indented(_points(found.refusals))]
    else:
        lines.append("a real run would start; nothing was written")
    return lines


def _stage(plan: StagePlan, found: DryRun) -> Iterator[str]:
    args = plan.args
    gpus = f"{found.gpus} GPUs" if found.gpus > 1 else "1 GPU"
    parts = f"{args.per_device_train_batch_size} × {args.gradient_accumulation_steps} accumulated × {gpus}"
    if plan.rows is None or plan.steps is None or plan.passes is None:
        yield f"steps of {plan.rows_a_step} rows ({parts})"
    else:
        yield (
            f"{plan.steps:,} steps of {plan.rows_a_step} rows ({parts}): {plan.rows:,} rows, {plan.passes:.3g} epochs"
        )
    if plan.work is not None:
        work = plan.work
        yield (
            f"{int(work.plain.sum()):,} tokens an epoch; {int(work.computed.sum()):,} go through the layers, "
            f"{int(work.scored.sum()):,} through the LM head"
        )
    if plan.memory is not None:
        yield from _memory(plan, plan.memory, plan.sharded, found)
    if plan.seconds is not None and plan.operations is not None:
        rate = found.device.fp32 if args.mixed_precision == "no" else found.device.bf16
        yield (
            f"time: {duration(plan.seconds)} on {found.gpus} × {found.device.label} at {UTILISATION:.0%} of "
            f"{rate / TERA:,.3g} TFLOP/s each (assumed); {plan.operations:.2g} operations; without loading, evaluating "
            "and saving"
        )
        if plan.steps is not None and plan.seconds < SHORT_STEP * plan.steps:
            yield "its steps are so short that starting them takes longer than their operations: expect more time"


def _memory(plan: StagePlan, memory: Memory, sharded: Memory | None, found: DryRun) -> Iterator[str]:
    computed, scored = plan.largest
    basis = "as many as max_length allows" if plan.assumed_largest else "its longest rows"
    yield f"largest micro-batch: {computed:,} tokens, {scored:,} of them scored ({basis})"
    name = "memory" if sharded is None else "memory on each GPU, the model whole (DDP)"
    yield f"{name}: {_held(memory, found)}"
    if plan.average is not None:
        yield f"  with a micro-batch of average rows: {amount(plan.average.peak)}"
    if sharded is not None:
        yield f"memory on each GPU, the model in pieces (FSDP): {_held(sharded, found)}"


def _held(memory: Memory, found: DryRun) -> str:
    """The peak against the GPU's memory, and what it is made of."""
    fits = "fits" if memory.peak <= found.device.memory else "DOES NOT FIT"
    parts = ", ".join(
        f"{name} {amount(size)}"
        for name, size in (
            ("weights", memory.weights),
            ("half-precision copies", memory.casts),
            ("gradients", memory.gradients),
            ("optimizer", memory.optimizer),
            ("activations", memory.activations),
            ("LM head", memory.head),
        )
        if size
    )
    return f"{amount(memory.peak)} of {amount(found.device.memory)}, {fits}: {parts}"


def amount(size: float) -> str:
    """Bytes in GB (10^9), small ones in MB."""
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size * 1000 / GB:.3g} MB"


def duration(seconds: float) -> str:
    """Seconds in two units at most: `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"


def _points(entries: list[str]) -> Iterator[str]:
    """Each entry behind a dash, its further lines below it."""
    for entry in entries:
        first, *others = entry.splitlines()
        yield f"- {first}"
        yield from (f"  {line}" for line in others)


def _indented(lines: Any) -> Iterator[str]:
    return (f"  {line}" for line in lines)
