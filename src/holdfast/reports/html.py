"""The report of one run: its `run.json` and `metrics.jsonl` as one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.reports.curves import Panel, stage_panels
from holdfast.reports.page import render, write_page
from holdfast.reports.run_files import read_metrics, read_record, section, sentences, stages
from holdfast.reports.tables import ChangeRow, MetricRow, change_table, metric_table

# Keys of `run.json` that have a section of their own; every other key but LEFT_OUT is listed under "Provenance".
SECTIONS = ("name", "verdicts", "config", "data", "stages")
# All settings of a stage, defaults too: some hundred lines that nobody reads here.
LEFT_OUT = ("settings",)
# What a stage of `run.json` says that its tables show already.
TABULATED = ("held_out", "last")


class StageSection(NamedTuple):
    """Everything the page says of one stage."""

    name: str
    changes: list[ChangeRow]
    table: list[MetricRow]
    panels: list[Panel]


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Reads `run.json` (`name`, `verdicts`: a list of sentences, `config`, `data`, `stages` with what each
    measured on held-out rows, and whatever else describes the run) and `metrics.jsonl` (see `read_metrics`).
    What is absent is said to be "not recorded" or "not measured". The same files give the same bytes.

    Raises DataError naming the file when one of the two is missing, cannot be parsed or has another layout.
    """
    folder = Path(run_dir)
    path = folder / "run.json"
    record = read_record(path)
    rows = stages(read_metrics(folder / "metrics.jsonl"))
    recorded = {
        name: section(stage, f"{path}: stage '{name}'")
        for name, stage in section(record.get("stages"), f"{path}: 'stages'").items()
    }
    data = section(record.get("data"), f"{path}: 'data'")
    page = render(
        "report.html.j2",
        title=str(record.get("name", folder.resolve().name)),
        verdicts=sentences(record.get("verdicts"), f"{path}: 'verdicts'"),
        stages=[
            StageSection(
                name,
                change_table(recorded.get(name, {}), f"{path}: stage '{name}'"),
                metric_table(name, rows.get(name, [])),
                stage_panels(rows.get(name, [])),
            )
            for name in {**recorded, **rows}
        ],
        summary=sentences(data.get("summary"), f"{path}: 'data.summary'"),
        data=list(flatten({key: value for key, value in data.items() if key != "summary"})),
        config=list(flatten(record.get("config"))),
        stage_records=list(flatten({name: _untabulated(stage) for name, stage in recorded.items()})),
        provenance=list(
            flatten({key: value for key, value in record.items() if key not in SECTIONS + LEFT_OUT})
        ),
    )
    return write_page(folder / "report.html", page)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as (dotted key, text) pairs: the form in which the command line overrides settings."""
    if isinstance(value, Mapping) and (value or not prefix):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _untabulated(stage: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stage.items() if key not in TABULATED}
