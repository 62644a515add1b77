"""A check's report in a few lines: what a run says before its first step."""

from __future__ import annotations

from holdfast.data.check_report import CheckReport


def summary(report: CheckReport) -> list[str]:
    """Rows, lengths, template and balance, a line each; then what is worth knowing."""
    rows = f"{report.rows} rows of layout '{report.layout}' from {report.source}"
    if report.refused:
        counts = ", ".join(f"{reason} {count}" for reason, count in report.refused.items())
        rows += f"; {sum(report.refused.values())} set aside: {counts}"
    lines = [rows]
    if report.lengths:
        sides = (
            f"{side} {found.mean:.0f} (largest {found.largest})" for side, found in report.lengths.items()
        )
        lines.append(f"mean length in {report.unit}: {', '.join(sides)}")
    if report.length_bias is not None:
        bias = report.length_bias
        lines.append(
            f"length bias: chosen minus rejected {bias.mean_difference:+.1f} {report.unit} on average, "
            f"d = {bias.effect_size:+.2f} [{bias.low:+.2f}, {bias.high:+.2f}]"
        )
    if report.label_agreement is not None:
        lines.append(f"label agreement: {report.label_agreement:.1%} of scored pairs")
    if report.template:
        lines.append("chat template: " + "; ".join(_template(report)))
    return lines + [f"note: {warning}" for warning in report.warnings]


def _template(report: CheckReport) -> list[str]:
    failed = [f"FAILS: {check.name} ({check.detail})" for check in report.template if not check.passed]
    return failed or [f"{len(report.template)} checks hold on {report.good} rows"]
