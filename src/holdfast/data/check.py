"""Every row of a source checked as training would check it, and what was found: `check_source`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from holdfast.data.check_report import CheckReport, TemplateCheck
from holdfast.data.check_warnings import warnings_of
from holdfast.data.encoders import TrainOn
from holdfast.data.examine import Checker, Row, checker, examine
from holdfast.data.faults import Problem, TemplateProperty, shown
from holdfast.data.findings import Findings, histograms, repeats
from holdfast.data.formats import Kind
from holdfast.data.lengths import LengthRule
from holdfast.data.processes import map_chunks
from holdfast.data.rendering import ChatRenderer
from holdfast.data.sources import file_of, read_rows
from holdfast.data.validation import LISTED, LaidOutRow, lay_out
from holdfast.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256  # rows checked in one go

TEMPLATE_CHECKS: dict[TemplateProperty, str] = {
    "prompt_is_prefix": "the prompt's tokens are how prompt and completion begin",
    "one_bos": "one BOS, at the head; others only where a text spells them or right behind an end token",
    "prompt_is_rendered": "the prompt's text is all there",
    "completion_is_rendered": "the answer's text is all there",
    "end_is_trained": "the token that ends the turn is trained",
    "completion_has_tokens": "at least one token is trained",
}


def check_source(
    source: Any,
    kind: Kind = "preference",
    *,
    format: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    rule: LengthRule | None = None,
    train_on: TrainOn = "last",
    append_eos: bool = False,
    vocab_size: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    quarantine: str | Path | None = None,
    seed: int = 0,
    examples: int = 3,
) -> CheckReport:
    """Check every row of `source`, in memory that does not grow with the rows.

    Args:
        source, split, revision: see `read_rows`.
        kind, format: what the rows are to serve as, and the name of their layout; see `check_rows`.
        tokenizer: also render and tokenize every row, with the checks of training; lengths are then in tokens,
            without it in characters.
        rule, train_on, append_eos, vocab_size, chat_template_kwargs: see `checker`.
        num_proc: processes to share the work, by default one a core; the report does not depend on it.
        quarantine: file that every bad row is written to (replaced if it exists).
        seed: chooses the examples, and the pairs of layouts that draw them.
        examples: rows to show as the model will read them.

    Raises:
        DataError: a source that cannot be read, rows of no known layout, a tokenizer without chat template, a
            quarantine file that cannot be written.
        ConfigError: no layout is called `format`, or it does not hold what `kind` needs; `num_proc` below 1.
    """
    work = checker(
        kind,
        tokenizer,
        rule,
        train_on=train_on,
        append_eos=append_eos,
        vocab_size=vocab_size,
        chat_template_kwargs=chat_template_kwargs,
        seed=seed,
        examples=examples,
    )
    rows = lay_out(read_rows(source, split, revision), kind, format, seed=seed)
    return report_on(rows, work, name_of(source), num_proc=num_proc, quarantine=quarantine)


def report_on(
    rows: Iterable[Row],
    checker: Checker,
    source: str,
    *,
    num_proc: int | None = None,
    quarantine: str | Path | None = None,
    keep: Callable[[Any], None] | None = None,
) -> CheckReport:
    """Check rows as they come; `keep` receives each part's good rows (`stored.table_of`), in their order."""
    start = time.monotonic()
    formats: dict[str, str] = {}
    rules: dict[str, str] = {}
    shown: list[dict[str, str]] = []
    total = Findings()
    with _opened(quarantine) as file:
        checker = replace(checker, keep=keep is not None)
        noted = _noting_layouts(rows, formats, rules)
        for part in map_chunks(examine, checker, noted, chunk=CHUNK, num_proc=num_proc):
            for problem in part.problems[: LISTED - len(shown)]:
                shown.append(_as_shown(problem))
            if file is not None:
                file.writelines(problem.as_json() + "\n" for problem in part.problems)
            if keep is not None and part.kept is not None:
                keep(part.kept)
            total.merge(part, checker.examples)
    return CheckReport(
        source=source,
        kind=checker.kind,
        formats=formats,
        rows=total.rows,
        good=total.good,
        refused=dict(sorted(total.refused.items(), key=lambda item: (-item[1], item[0]))),
        problems=list(shown),
        unit="characters" if checker.encoder is None else "tokens",
        lengths=histograms(total.lengths),
        truncation=None
        if checker.encoder is None
        else {**total.report.as_dict(), **asdict(checker.encoder.rule)},
        length_bias=total.differences.bias(),
        duplicate_prompts=repeats(total.prompts),
        duplicate_rows=repeats(total.ids),
        label_agreement=total.agreeing / total.scored if total.scored else None,
        template=[] if checker.encoder is None else _template_checks(total, checker.encoder.chat),
        examples=[total.examples[key] for key in sorted(total.examples)],
        warnings=warnings_of(total, rules),
        digest=total.digest(),
        seconds=time.monotonic() - start,
    )


def name_of(source: Any) -> str:
    """A source's name for people."""
    return shown(source) if isinstance(source, (str, Path)) else type(source).__name__


def _template_checks(total: Findings, chat: ChatRenderer) -> list[TemplateCheck]:
    """Each property of the chat template, held against every row that could be rendered."""
    checks = []
    for name, words in TEMPLATE_CHECKS.items():
        failed = total.failed.get(name)
        if failed is not None:
            detail = f"{failed.rows} rows fail, the first: {failed.first}"
        elif name == "one_bos" and not chat.adds_bos:
            detail = "the tokenizer begins texts with none"
        else:
            detail = f"holds on {total.good} rows"
        checks.append(TemplateCheck(words, failed is None, detail))
    return checks


def _as_shown(problem: Problem) -> dict[str, str]:
    return {
        "where": problem.where,
        "reason": problem.reason,
        "detail": problem.detail,
        "row": problem.row_excerpt,
    }


def _noting_layouts(rows: Iterable[Row], formats: dict[str, str], rules: dict[str, str]) -> Iterator[Row]:
    """The rows as they come; each file's layout goes into `formats`, how its pairs are drawn into `rules`."""
    for row in rows:
        if isinstance(row, LaidOutRow) and row.form is not None:
            formats[file_of(row.where)] = row.form.name
            if row.form.rule:
                rules[row.form.name] = row.form.rule
        yield row


@contextmanager
def _opened(quarantine: str | Path | None) -> Iterator[IO[str] | None]:
    if quarantine is None:
        yield None
        return
    path = Path(quarantine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="ascii")
    except OSError as error:
        raise DataError(f"bad rows cannot be written to '{path}': {error.strerror}") from error
    with file:
        yield file
