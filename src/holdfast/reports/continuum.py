"""The continuum's cells as a table with the paper's signs beside ours, and as a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from holdfast.errors import DataError
from holdfast.files import replacing
from holdfast.reports.objective_shapes import COLOURS, STYLE

DECODINGS = {"greedy": "greedy", "sampled": "temperature 1"}
# Less than a point is not called a difference, whatever the seeds say.
LEAST_DIFFERENCE = 0.01


@dataclass(frozen=True)
class Row:
    """One objective in one setting, over the seeds that finished.

    Attributes:
        exact: decoding -> the share of exact answers, one a seed.
        against: decoding -> differences from NLL's share, one a seed that has both; empty for NLL itself.
    """

    setting: str
    objective: str
    exact: Mapping[str, Sequence[float]]
    against: Mapping[str, Sequence[float]]

    def sign(self, decoding: str) -> str:
        """`+` or `-` where every seed differs from NLL in that direction, by a point in the mean; else `0`."""
        found = self.against[decoding]
        if not found:
            return ""
        if abs(_mean(found)) < LEAST_DIFFERENCE or min(found) <= 0 <= max(found):
            return "0"
        return "+" if _mean(found) > 0 else "-"


def write_continuum(results: Path, paper: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    """Write `table.md` and `figure.svg` into `folder` from a sweep's `results.jsonl`.

    Args:
        paper: setting -> objective -> the paper's sign against NLL.

    Raises:
        DataError: a line that is no cell; names it.
    """
    cells = read_cells(results)
    rows = summarize(cells)
    with replacing(folder / "table.md") as beside:
        beside.write_text(table(rows, starts(cells), paper), encoding="utf-8")
    with replacing(folder / "figure.svg") as beside:
        _draw(rows, beside)


def read_cells(results: Path) -> list[dict[str, Any]]:
    """The cells of a sweep, one a line."""
    cells = []
    for number, line in enumerate(results.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            cell = json.loads(line)
            _ = cell["setting"], cell["objective"], cell["seed"], *(cell[d]["exact"] for d in DECODINGS)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{results}, line {number}: no cell of a sweep ({error})") from error
        cells.append(cell)
    return cells


def summarize(cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Cells by setting and objective, in the order in which they stand."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        found.setdefault((cell["setting"], cell["objective"]), {})[cell["seed"]] = cell
    nll = {
        (cell["setting"], cell["seed"]): cell for cell in cells if cell.get("spec", {}).get("name") == "nll"
    }
    return [
        Row(
            setting,
            objective,
            {d: [cell[d]["exact"] for cell in seeds.values()] for d in DECODINGS},
            {
                d: [
                    cell[d]["exact"] - nll[setting, seed][d]["exact"]
                    for seed, cell in seeds.items()
                    if (setting, seed) in nll and cell is not nll[setting, seed]
                ]
                for d in DECODINGS
            },
        )
        for (setting, objective), seeds in found.items()
    ]


def starts(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Setting -> what the starting models made of its rows, mean over seeds."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for cell in cells:
        if "start" in cell:
            found.setdefault(cell["setting"], []).append(cell["start"])
    return {
        setting: {key: _mean([one[key] for one in measured]) for key in measured[0]}
        for setting, measured in found.items()
    }


def table(
    rows: Sequence[Row], measured: Mapping[str, Mapping[str, float]], paper: Mapping[str, Mapping[str, str]]
) -> str:
    """Markdown, one table a setting: mean over seeds and their range, signs against NLL."""
    parts = []
    for setting in dict.fromkeys(row.setting for row in rows):
        parts.append(f"### {setting}\n")
        if setting in measured:
            start = measured[setting]
            parts.append(
                f"Before training, p of the target tokens: mean {start['mean_probability']:.3f}; of those that carry "
                f"information ({100 * start['informative_share']:.0f} %) {start['informative_mean_probability']:.3f}; "
                f"share above 0.55 {start['share_above_0.55']:.3f}.\n"
            )
        parts.append("| objective | greedy, % exact | temperature 1, % exact | greedy | temp. 1 | paper |")
        parts.append("|---|---|---|---|---|---|")
        for row in rows:
            if row.setting == setting:
                shown = [_range(row.exact[d]) for d in DECODINGS]
                signs = [row.sign(d) for d in DECODINGS] + [paper.get(setting, {}).get(row.objective, "")]
                signs = [sign.replace("-", "−") for sign in signs]
                parts.append("| " + " | ".join([row.objective, *shown, *signs]) + " |")
        parts.append("")
    return "\n".join(parts)


def _range(values: Sequence[float]) -> str:
    mean = f"{100 * _mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} [{100 * min(values):.1f}, {100 * max(values):.1f}]"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _draw(rows: Sequence[Row], path: Path) -> None:
    """A panel a setting, a line an objective; a mark a decoding, with the seeds' range."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    objectives = list(dict.fromkeys(row.objective for row in rows))
    with style.context(["default", STYLE | {"svg.hashsalt": "continuum"}]):
        figure = Figure(
            figsize=(2.2 + 2.1 * len(settings), 1.2 + 0.24 * len(objectives)), layout="constrained"
        )
        for axes, setting in zip(
            figure.subplots(1, len(settings), sharey=True, squeeze=False)[0], settings, strict=True
        ):
            for row in rows:
                if row.setting != setting:
                    continue
                height = objectives.index(row.objective)
                for slot, decoding in enumerate(DECODINGS):
                    found, place = row.exact[decoding], height + (slot - 0.5) * 0.3
                    axes.plot(
                        [100 * min(found), 100 * max(found)], [place, place], color=COLOURS[slot], linewidth=1
                    )
                    axes.plot(
                        100 * _mean(found),
                        place,
                        "os"[slot],
                        color=COLOURS[slot],
                        markersize=4,
                        clip_on=False,
                    )
            axes.set_title(setting, loc="left", fontsize=9, wrap=True)
            axes.set_xlim(0, 100)
            axes.set_xlabel("% exact")
            axes.set_yticks(range(len(objectives)), objectives)
            axes.set_ylim(len(objectives) - 0.4, -0.6)
        marks = [
            figure.axes[0].plot([], [], "os"[slot], color=COLOURS[slot], label=label)[0]
            for slot, label in enumerate(DECODINGS.values())
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
