"""What each logged metric is called, its unit, and which panel it is drawn in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.reports.run_files import Row, is_measurement

NOT_MEASURED = "not measured"
HELD_OUT = "eval_"  # the prefix of a metric measured on held-out rows


@dataclass(frozen=True)
class Metric:
    """How a logged key reads on a page."""

    label: str
    unit: str = ""

    @property
    def title(self) -> str:
        """The label as a heading."""
        return self.label[:1].upper() + self.label[1:]


METRICS = {
    "loss": Metric("loss"),
    "mean_logps/target": Metric("target log-prob", "nats/token"),
    "mean_logps/chosen": Metric("chosen log-prob", "nats/token"),
    "mean_logps/rejected": Metric("rejected log-prob", "nats/token"),
    "logps/chosen": Metric("chosen log-prob, summed", "nats/completion"),
    "logps/rejected": Metric("rejected log-prob, summed", "nats/completion"),
    "rewards/chosen": Metric("chosen reward"),
    "rewards/rejected": Metric("rejected reward"),
    "rewards/margins": Metric("reward margin"),
    "rewards/accuracies": Metric("pairs ranked right", "share"),
    "margin/satisfied": Metric("pairs past the margin", "share"),
    "rejected/collapsed": Metric("rejected tokens with p < 1e-4", "share"),
    "probability/target": Metric("mean target probability", "probability"),
    "tokens/kept": Metric("target tokens kept", "share"),
    "capability": Metric("capability: p of the tokens that carry information", "probability"),
    "alpha": Metric("α of the adaptive objective"),
    "grad_norm": Metric("gradient norm", "L2"),
    "learning_rate": Metric("learning rate"),
    "skipped_steps": Metric("steps left out so far", "steps"),
    "spikes": Metric("spikes so far", "steps"),
    "num_tokens": Metric("tokens so far", "tokens"),
    "tokens_per_second": Metric("throughput", "tokens/s"),
}
# Rows of every stage's table, measured or not; preference stages have the pair metrics too.
EXPECTED = ("loss", "eval_loss", "grad_norm", "num_tokens", "tokens_per_second")
EXPECTED_OF_PAIRS = ("mean_logps/chosen", "mean_logps/rejected", "rewards/margins", "rewards/accuracies")
SUPERVISED_STAGE = "sft"
# Where in the run a row was written, and the Trainer's own summary of what the rows say in detail.
BOOKKEEPING = {
    *("step", "epoch", "stage", "total_flos", "train_loss"),
    *(
        f"{phase}_{key}"
        for phase in ("train", "eval")
        for key in ("runtime", "samples_per_second", "steps_per_second")
    ),
}


def describe(key: str) -> Metric:
    """The label and unit of a key; a key not listed above is its own label."""
    if key.startswith(HELD_OUT):
        metric = describe(key.removeprefix(HELD_OUT))
        return Metric(f"{metric.label}, held out", metric.unit)
    if key in METRICS:
        return METRICS[key]
    if key.startswith("loss/"):
        return Metric(f"loss: {key.removeprefix('loss/')}")
    return Metric(key)


def measured_keys(rows: Sequence[Row]) -> list[str]:
    """Keys that some row measured: the listed ones first, in their order, then the rest by name."""
    found = {key for row in rows for key, value in row.items() if is_measurement(value)} - BOOKKEEPING
    listed = list(METRICS)

    def order(key: str) -> tuple[int, str, bool]:
        base = key.removeprefix(HELD_OUT)
        return listed.index(base) if base in listed else len(listed), base, key.startswith(HELD_OUT)

    return sorted(found, key=order)


def table_keys(stage: str, rows: Sequence[Row]) -> list[str]:
    """What a stage's table lists: what was measured, and what should have been."""
    expected = EXPECTED if stage == SUPERVISED_STAGE else EXPECTED + EXPECTED_OF_PAIRS
    return measured_keys([*rows, dict.fromkeys(expected, 0)])


def format_number(value: float) -> str:
    """Four significant digits, thousands set apart, a true minus sign; NaN and infinities by name."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    text = f"{size:,.0f}" if size >= 1000 else f"{size:.4g}"
    return ("−" if value < 0 else "") + text
