"""Measured figures -> the marked part of a Markdown page, and charts. Reads reports only, never measures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine_line(report: Mapping[str, Any]) -> str:
    """Where and when the figures were taken, in one paragraph."""
    machine, versions = report["machine"], report["versions"]
    accelerators = {raw["device"]["accelerator"] for raw in _raw(report) if raw.get("device")} - {None}
    threads = sorted({raw["device"]["threads"] for raw in _raw(report) if raw.get("device")})
    where = ", ".join(sorted(accelerators)) or f"{machine['cpu']}, {machine['usable_cores']} cores"
    software = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    load = machine["load"][0]
    return (
        f"{report['date']}, commit `{report['commit']}`: {where} (threads: {', '.join(map(str, threads))}; load "
        f"at the start {load:.1f}); {software}."
    )


def _raw(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*report.get("raw", []), *(raw for part in report.get("settings", []) for raw in part["raw"])]


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between the page's marks `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the page has no such marks, or more than one pair.
    """
    before = page.read_text(encoding="utf-8")
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"({re.escape(marks[0])}\n).*?({re.escape(marks[1])})", re.DOTALL)
    after, found = pattern.subn(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", before)
    if found != 1:
        raise ValueError(f"{page} must have the marks {marks[0]} and {marks[1]} once, each on its own line")
    page.write_text(after, encoding="utf-8")


def bar_chart(path: Path, title: str, panels: Sequence[Mapping[str, Any]]) -> None:
    """Horizontal bars, a panel a measure, two panels of the same labels side by side.

    A panel is `{"title": ..., "labels": [...], "values": [...], "low": [...], "high": [...]}`; `low` and `high` are the
    ends of the whiskers.
    """
    figure, axes = _figure(len(panels), height=1.0 + 0.3 * max(len(panel["labels"]) for panel in panels))
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        values = panel["values"]
        whiskers = [
            [value - low for value, low in zip(values, panel["low"], strict=True)],
            [high - value for value, high in zip(values, panel["high"], strict=True)],
        ]
        ours = ["#1f6f8b" if label.startswith("holdfast") else "#b0b7bd" for label in panel["labels"]]
        axis.barh(panel["labels"], values, xerr=whiskers, color=ours, ecolor="#444444", capsize=2)
        axis.invert_yaxis()
        axis.tick_params(labelleft=number % 2 == 0)
        axis.set_xlabel(panel["title"])
    _save(figure, title, path)


def line_chart(path: Path, title: str, x_label: str, panels: Sequence[Mapping[str, Any]]) -> None:
    """Lines on logarithmic axes; a panel is `{"title": ..., "lines": {label: ([x, ...], [y, ...])}}`."""
    figure, axes = _figure(len(panels), height=3.6)
    for axis, panel in zip(axes, panels, strict=True):
        for label, (x, y) in panel["lines"].items():
            axis.loglog(x, y, marker="o", markersize=3, label=label)
        axis.set_xlabel(x_label)
        axis.set_title(panel["title"], fontsize=9)
    axes[-1].legend(fontsize=7)
    _save(figure, title, path)


def _figure(panels: int, height: float) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "holdfast"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(panels // 2, 2, figsize=(9.2, height * (panels // 2)), squeeze=False)
    return figure, list(axes.flat)


def _save(figure: Any, title: str, path: Path) -> None:
    from matplotlib import pyplot

    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
