"""From a step benchmark's raw figures to its table: medians, ratios, agreement; as text, Markdown and chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import publish

# Relative difference within a group, of every step: four digits; three under bfloat16, which keeps eight bits, so that
# forms which round in another order differ in the fourth digit of the gradient's norm. There a loss with a threshold
# may differ ten times as much: rounding moves tokens across it.
TOLERANCE = {
    "float32": {"loss": 1e-4, "gradient_norm": 1e-4},
    "bfloat16": {"loss": 1e-3, "gradient_norm": 2e-3},
}


@dataclass(frozen=True)
class Form:
    """One way to train.

    Attributes:
        label: its row in the table; what is holdfast's begins with that name.
        group: forms of one group must agree, loss and gradient norm; None: a loss, or batches, of its own.
        baseline: the form its ratios are to.
        build: `(case, rows, tokens, tokenizer)` -> the Trainer, inside the measuring process.
        default: whether it runs unless it is asked for.
        slack: dtype -> how many times the tolerance its loss may use up, for a loss that jumps.
    """

    label: str
    group: str | None
    baseline: str
    build: Callable[[dict[str, Any], list[Any], list[Any], Any], Any]
    default: bool = True
    slack: Mapping[str, float] = field(default_factory=dict)


def disagreements(forms: dict[str, Form], raw: Sequence[dict[str, Any]], dtype: str) -> list[str]:
    """One line for every form and figure that leaves its group; the group's first form in the table leads it."""
    lines: list[str] = []
    leaders: dict[str, dict[str, Any]] = {}
    for name, form in forms.items():
        runs = [run for run in raw if run["form"] == name and "failed" not in run]
        if form.group is None or not runs:
            continue
        leader = leaders.setdefault(form.group, runs[0])
        for figure, tolerance in TOLERANCE[dtype].items():
            allowed = tolerance * form.slack.get(dtype, 1)
            key = "losses" if figure == "loss" else "gradient_norms"
            differences = [
                abs(value - reference) / max(abs(reference), 1e-12)
                for run in runs
                for value, reference in zip(run[key], leader[key], strict=True)
            ]
            if beyond := [off for off in differences if not off <= allowed]:  # a NaN too
                lines.append(
                    f"{form.label}: {figure} is {beyond[0]:.1e} from {leader['form']}'s, over {allowed}"
                )
    return lines


def table_row(name: str, form: Form, raw: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A form's line in the table: medians over rounds, and ratios to the baseline of the same round."""
    row: dict[str, Any] = {"form": name, "label": form.label, "group": form.group, "baseline": form.baseline}
    runs = {run["round"]: run for run in raw if run["form"] == name}
    if failed := [run["failed"] for run in runs.values() if "failed" in run]:
        return row | {"failed": failed[0]}
    bases = {run["round"]: run for run in raw if run["form"] == form.baseline and "failed" not in run}

    def rate(run: dict[str, Any]) -> float:
        return run["tokens"] / run["seconds"]

    def share(run: dict[str, Any]) -> float:
        # what else runs on the machine can only slow a product down: the fastest one is the machine's rate
        machine = max(run["matmul_rates"]["before"] + run["matmul_rates"]["after"])
        return run["useful_operations"] / run["seconds"] / machine

    def against(figure: Callable[[dict[str, Any]], float]) -> dict[str, float] | None:
        ratios = [figure(run) / figure(bases[turn]) for turn, run in runs.items() if turn in bases]
        return harness.spread(ratios) if ratios else None

    figures = {
        "tokens_per_second": rate,
        "peak_bytes": lambda run: run["peak_bytes"],
        "grown_bytes": lambda run: run["grown_bytes"],
        "share_of_matmul": share,
    }
    for key, figure in figures.items():
        row[key] = harness.spread([figure(run) for run in runs.values()])
        if key != "share_of_matmul":
            row[f"{key}_ratio"] = against(figure)
    first = runs[min(runs)]
    return row | {"loss": first["losses"][0], "gradient_norm": first["gradient_norms"][0]}


# ---- showing

COLUMNS = [
    "form",
    "tokens/s (range)",
    "×",
    "peak GB",
    "×",
    "grown GB",
    "×",
    "of mm rate",
    "loss",
    "grad norm",
]


def cells(row: dict[str, Any]) -> list[str]:
    """A form's line, in words; a figure that stands alone is marked as its own."""
    if "failed" in row:
        return [row["label"], "failed", *["–"] * (len(COLUMNS) - 2)]
    speed = row["tokens_per_second"]

    def ratio(key: str) -> str:
        return "–" if row[f"{key}_ratio"] is None else f"{row[f'{key}_ratio']['median']:.2f}"

    own = "" if row["group"] else " (own)"
    return [
        row["label"],
        f"{speed['median']:,.0f} ({speed['min']:,.0f}–{speed['max']:,.0f})",
        ratio("tokens_per_second"),
        f"{row['peak_bytes']['median'] / 1e9:.2f}",
        ratio("peak_bytes"),
        f"{row['grown_bytes']['median'] / 1e9:.2f}",
        ratio("grown_bytes"),
        f"{100 * row['share_of_matmul']['median']:.0f} %",
        f"{row['loss']:.5g}{own}",
        f"{row['gradient_norm']:.5g}{own}",
    ]


def heading(part: dict[str, Any]) -> str:
    """A setting: rows, model, precision, sizes."""
    setting, data = part["setting"], part["data"]
    tuned = "LoRA" if setting["lora"] else "all weights"
    means = ", ".join(f"{key.removesuffix('_ids')} {mean:.0f}" for key, mean in data["mean_tokens"].items())
    counted = next((run for run in part["raw"] if "failed" not in run), None)
    size = f"{counted['parameters'] / 1e6:.1f} M parameters, " if counted else ""
    return (
        f"{setting['shape']} rows from {data['source']}, at most {setting['max_length']} tokens (means: {means}); "
        f"{setting['model_name']} ({setting['model']['family']}), {size}{tuned}, {setting['dtype']}, "
        f"{setting['pairs']} a batch, {setting['steps']} measured steps a process, {setting['device']}"
    )


def markdown(report: dict[str, Any]) -> str:
    """The report's settings and tables."""
    parts = [publish.machine_line(report)]
    for part in report["settings"]:
        parts += [
            f"**{heading(part)}**",
            publish.markdown_table(COLUMNS, [cells(row) for row in part["table"]]),
        ]
        parts += part["notes"]
    return "\n\n".join(parts)


def draw(report: dict[str, Any], path: Path) -> None:
    """Speed and peak memory of every form that ran, two panels a setting."""
    panels = []
    for part in report["settings"]:
        rows = [row for row in part["table"] if "failed" not in row]
        labels = [row["label"] for row in rows]
        title = f"{part['setting']['shape']}, {part['setting']['dtype']}"
        for key, unit, scale in (("tokens_per_second", "tokens/s", 1.0), ("peak_bytes", "peak GB", 1e9)):
            ends = {end: [row[key][end] / scale for row in rows] for end in ("median", "min", "max")}
            panels.append(
                {
                    "title": f"{title}: {unit}",
                    "labels": labels,
                    "values": ends["median"],
                    "low": ends["min"],
                    "high": ends["max"],
                }
            )
    publish.bar_chart(path, f"{report['benchmark']}, {report['date']}", panels)
