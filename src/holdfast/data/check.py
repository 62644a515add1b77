"""Every row of a source checked as training would check it, and what was found: `check_source`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from holdfast.data.check_report import CheckReport, Example, TemplateCheck
from holdfast.data.check_warnings import warnings_of
from holdfast.data.encoders import Assembled, EncodedPair, EncodedSFT, Encoder, PairEncoder, SFTEncoder
from holdfast.data.faults import Problem, TemplateProperty
from holdfast.data.findings import Findings, as_hash, histogram, pick, repeats
from holdfast.data.formats import Kind
from holdfast.data.lengths import LengthRule
from holdfast.data.processes import map_chunks
from holdfast.data.records import Message, PreferenceRecord, Record, SFTRecord, canonical_json
from holdfast.data.rendering import ChatRenderer
from holdfast.data.sources import file_of, read_rows
from holdfast.data.validation import SHOWN, LaidOutRow, lay_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256  # rows checked in one go

TEMPLATE_CHECKS: dict[TemplateProperty, str] = {
    "prompt_is_prefix": "the prompt's tokens are how prompt and completion begin",
    "one_bos": "exactly one BOS",
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
    append_eos: bool = False,
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
        rule, append_eos: how long rows may be (by default, any length), and see `ChatRenderer`.
        num_proc: processes to share the work, by default one a core; the report does not depend on it.
        quarantine: file that every bad row is written to (replaced if it exists).
        seed: chooses the examples, and the pairs of layouts that draw them.
        examples: rows to show as the model will read them.

    Raises:
        DataError: a source that cannot be read, rows of no known layout, a tokenizer without chat template.
        ConfigError: no layout is called `format`, or it does not hold what `kind` needs; `num_proc` below 1.
    """
    start = time.monotonic()
    checker = Checker(kind, _encoder(kind, tokenizer, rule, append_eos), seed, examples)
    formats: dict[str, str] = {}
    rules: dict[str, str] = {}
    shown: list[dict[str, str]] = []
    total = Findings()
    rows = _noting_layouts(
        lay_out(read_rows(source, split, revision), kind, format, seed=seed), formats, rules
    )
    with _opened(quarantine) as file:
        for part in map_chunks(check_chunk, checker, rows, chunk=CHUNK, num_proc=num_proc):
            for problem in part.problems[: SHOWN - len(shown)]:
                shown.append(_as_shown(problem))
            if file is not None:
                file.writelines(problem.as_json() + "\n" for problem in part.problems)
            total.merge(part, examples)
    return CheckReport(
        source=str(source) if isinstance(source, (str, Path)) else type(source).__name__,
        kind=kind,
        formats=formats,
        rows=total.rows,
        good=total.good,
        refused=dict(sorted(total.refused.items(), key=lambda item: (-item[1], item[0]))),
        problems=list(shown),
        unit="characters" if tokenizer is None else "tokens",
        lengths={side: histogram(counts) for side, counts in total.lengths.items()},
        truncation=None if tokenizer is None else total.report.as_dict(),
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


@dataclass(frozen=True)
class Checker:
    """What checking a chunk of rows needs, in any process."""

    kind: Kind
    encoder: Encoder[Any, Any] | None
    seed: int
    examples: int


def check_chunk(checker: Checker, rows: list[LaidOutRow]) -> Findings:
    """The findings of some consecutive rows."""
    found = Findings(rows=len(rows))
    good: list[tuple[LaidOutRow, Record, Any]] = []
    for row, record, outcome in _outcomes(checker, rows):
        if isinstance(outcome, Problem):
            found.refuse(outcome)
            continue
        if isinstance(outcome, Assembled):
            outcome.count_in(found.report)
            if outcome.row is None:
                continue
            found.measure({side: before for side, (before, _) in outcome.lengths.items()})
        else:
            found.measure(_characters(record))
        good.append((row, record, outcome))
    found.good = len(good)
    control = _control_tokens(checker.encoder)
    for row, record, _ in good:
        _note(found, row, record, control)
    picked = nsmallest(checker.examples, good, key=lambda item: pick(checker.seed, item[1].id))
    for _, record, outcome in reversed(picked):  # of equal rows, the first
        found.examples[pick(checker.seed, record.id)] = _example(checker.encoder, record, outcome)
    return found


def _outcomes(checker: Checker, rows: list[LaidOutRow]) -> Iterator[tuple[LaidOutRow, Any, Any]]:
    """Each row with its record, and its tokens (None without an encoder) or why it cannot be used."""
    records = [row.record(checker.kind) for row in rows]
    usable = [record for record in records if not isinstance(record, Problem)]
    encoded = iter(checker.encoder.encode(usable) if checker.encoder is not None else [None] * len(usable))
    for row, record in zip(rows, records, strict=True):
        if isinstance(record, Problem):
            yield row, None, record
            continue
        outcome = next(encoded)
        if isinstance(outcome, Problem):  # the quarantine keeps the row as it was read
            outcome = Problem(outcome.where, outcome.reason, outcome.detail, row.row, outcome.check)
        yield row, record, outcome


def _note(found: Findings, row: LaidOutRow, record: Record, control: re.Pattern[str] | None) -> None:
    """What is no fault of a good row, yet worth counting."""
    text = isinstance(record, SFTRecord) and record.text is not None
    found.prompts.append(as_hash(record.text if text else canonical_json(record.prompt)))  # type: ignore[union-attr]
    found.ids.append(int(record.id, 16))
    if isinstance(record, PreferenceRecord):
        if record.score_chosen is not None and record.score_rejected is not None:
            found.scored += 1
            found.agreeing += record.score_chosen > record.score_rejected
    elif row.row.get("label") is False:
        found.unwanted.add(record.where)
    if control is not None and not text:
        spelled = next(filter(None, map(control.search, _contents(record))), None)
        if spelled is not None:
            found.spelled.add(f"{record.where}: {spelled.group()}")


def _encoder(
    kind: Kind, tokenizer: PreTrainedTokenizerBase | None, rule: LengthRule | None, append_eos: bool
) -> Encoder[Any, Any] | None:
    if tokenizer is None:
        return None
    chat = ChatRenderer(tokenizer, append_eos=append_eos)
    encoder: type[PairEncoder] | type[SFTEncoder] = PairEncoder if kind == "preference" else SFTEncoder
    return encoder(chat, rule or LengthRule(None))


def _control_tokens(encoder: Encoder[Any, Any] | None) -> re.Pattern[str] | None:
    """Finds the tokenizer's special tokens, spelled out in a text."""
    if encoder is None:
        return None
    tokenizer = encoder.chat.tokenizer
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted({*added, *tokenizer.all_special_tokens}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, names))) if names else None


def _contents(record: Record) -> list[str]:
    messages = record.messages if isinstance(record, SFTRecord) else _all_messages(record)
    return [message["content"] for message in messages]


def _all_messages(record: PreferenceRecord) -> list[Message]:
    return [*record.prompt, *record.chosen, *record.rejected]


def _sides(record: Record) -> dict[str, list[Message]]:
    """The completions by name."""
    if isinstance(record, PreferenceRecord):
        return {"chosen": record.chosen, "rejected": record.rejected}
    return {"completion": record.messages[record.completion_start :]}


def _characters(record: Record) -> dict[str, int]:
    """Lengths by side; of raw text all is completion."""
    if isinstance(record, SFTRecord) and record.text is not None:
        return {"prompt": 0, "completion": len(record.text)}
    sides = {"prompt": record.prompt, **_sides(record)}
    return {side: sum(len(message["content"]) for message in turns) for side, turns in sides.items()}


def _example(encoder: Encoder[Any, Any] | None, record: Record, outcome: Any) -> Example:
    """The row as the model will read it; without a tokenizer, its texts."""
    if encoder is not None:
        decode = encoder.chat.tokenizer.decode
        return Example(
            record.where,
            {
                side: [(str(decode(ids)), trained) for ids, trained in pieces if ids]
                for side, pieces in _pieces(outcome.row).items()
            },
        )
    if isinstance(record, SFTRecord) and record.text is not None:
        return Example(record.where, {"completion": [(record.text, True)]})
    prompt = "".join(f"{message['role']}: {message['content']}\n" for message in record.prompt)
    return Example(
        record.where,
        {
            side: [
                (prompt, False),
                *((message["content"], message["role"] == "assistant") for message in turns),
            ]
            for side, turns in _sides(record).items()
        },
    )


def _pieces(row: EncodedPair | EncodedSFT) -> dict[str, list[tuple[list[int], bool]]]:
    """By side, stretches of tokens and whether they are trained."""
    if isinstance(row, EncodedPair):
        sides = {"chosen": row.chosen_ids, "rejected": row.rejected_ids}
        return {side: [(row.prompt_ids, False), (ids, True)] for side, ids in sides.items()}
    stretches = groupby(zip(row.input_ids, row.completion_mask, strict=True), key=lambda item: item[1])
    return {"completion": [([token for token, _ in own], trained) for trained, own in stretches]}


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


def _noting_layouts(
    rows: Iterator[LaidOutRow], formats: dict[str, str], rules: dict[str, str]
) -> Iterator[LaidOutRow]:
    """The rows as they come; each file's layout goes into `formats`, how its pairs are drawn into `rules`."""
    for row in rows:
        if row.form is not None:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as file:
        yield file
