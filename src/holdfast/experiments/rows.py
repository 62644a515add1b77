"""The rows of a run: checked and tokenized before any model is loaded, and shared out by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from holdfast.data.check_summary import summary
from holdfast.data.examine import Checker, checker
from holdfast.data.intake import Intake, fingerprint, take_in
from holdfast.data.records import PreferenceRecord, Record
from holdfast.data.stored import StoredRows
from holdfast.errors import ConfigError, DataError
from holdfast.experiments.config import RunConfig
from holdfast.models.loading import load_tokenizer, require_embedded, require_weights, vocabulary_of
from holdfast.models.tiny import tiny_bpe_tokenizer
from holdfast.ranks import once
from holdfast.training.config import LeanConfig, PreferenceConfig, SFTConfig
from holdfast.training.preparation import Prepared, checker_of, prepare_sft, prepared, processes_of


@dataclass(frozen=True)
class RunRows:
    """The rows of every side, and how they were made tokens.

    Attributes:
        intake: the whole source.
        sides: the good rows of each side (`sft`, `align`, `held_out`), disjoint by prompt.
        tokenizer: the named model's, with the configured template; for a model from scratch, one trained on the
            rows that train.
    """

    intake: Intake
    sides: dict[str, StoredRows]
    tokenizer: PreTrainedTokenizerBase

    def record(self) -> dict[str, Any]:
        """For `run.json`: what the check found, and each side's size and digest."""
        report = self.intake.report
        found = report.as_dict()
        for own in ("problems", "examples"):  # in quarantine.jsonl; and for people, from `holdfast check`
            del found[own]
        return {
            "source": report.source,
            "layout": report.layout,
            "rows": report.rows,
            "refused": dict(report.refused),
            "splits": {
                name: {"rows": len(side), "digest": side.digest(), "order": _order(side)}
                for name, side in self.sides.items()
            },
            "tokenizer": fingerprint(self.tokenizer),
            "check": found,
        }

    def summary(self) -> list[str]:
        """What people read before the first step."""
        sides = ", ".join(f"{len(side)} {name}" for name, side in self.sides.items())
        return [*summary(self.intake.report), f"split by prompt: {sides}"]


def read_run_rows(
    config: RunConfig, sft_args: SFTConfig | None, align_args: PreferenceConfig | None
) -> RunRows:
    """Check and tokenize every row of the source, then share the good ones out.

    Raises:
        InvalidRows: bad rows under strict validation; or no good one.
        DataError: a source that cannot be read; a side that no row falls on.
        ModelError: no tokenizer.
    """
    args = align_args or sft_args
    assert args is not None
    kind: Any = "sft" if align_args is None else "preference"
    take = partial(take_in_source, config, args)
    if config.model.from_scratch is None:
        assert config.model.name is not None
        require_weights(config.model.name)
        trust = config.model.trust_remote_code
        tokenizer = load_tokenizer(
            config.model.tokenizer or config.model.name,
            revision=None if config.model.tokenizer else config.model.revision,
            chat_template=config.model.chat_template,
            trust_remote_code=trust and config.model.tokenizer is None,
        )
        vocabulary = vocabulary_of(config.model.name, revision=config.model.revision, trust_remote_code=trust)
        require_embedded(tokenizer, vocabulary)
    else:
        texts = take(checker(kind, seed=config.seed))
        # The tokenizer needs good rows alone; the bad ones are reported with the others below.
        texts.require("lenient")
        sides = shared_out(config, texts)
        training = [record for name in ("sft", "align") for record in sides.get(name, [])]
        scratch = config.model.from_scratch
        tokenizer = once(
            lambda: tiny_bpe_tokenizer(
                [text for record in training for text in _texts(record)],
                scratch.vocab_size,
                max_length=config.data.max_length,
            )
        )
        vocabulary = len(tokenizer)
    intake = take(checker_of(kind, tokenizer, args, vocabulary))
    intake.require(config.data.validation)
    return RunRows(intake, shared_out(config, intake), tokenizer)


def take_in_source(config: RunConfig, args: LeanConfig, work: Checker) -> Intake:
    """Every row of the source, checked (and tokenized) by `work`; arguments and errors as `take_in`'s."""
    data = config.data
    return take_in(
        data.source,
        work,
        format=data.format,
        split=data.split,
        revision=data.revision,
        num_proc=processes_of(args),
        cache_dir=args.cache_dir,
    )


def prepare_stages(
    rows: RunRows,
    sft_args: SFTConfig | None,
    align_args: PreferenceConfig | None,
    quarantine: Path,
    say: Callable[[str], None],
) -> dict[str, Prepared]:
    """The tokens of each stage, and of its held-out rows; `quarantine` takes demonstrations that fail."""
    stages: dict[str, Prepared] = {}
    sides = rows.sides
    for stage, args in (("sft", sft_args), ("align", align_args)):
        for name, side in ((stage, sides.get(stage)), (f"{stage}, held out", sides.get("held_out"))):
            if args is None or not side:
                continue
            # Of pairs, the chosen sides are tokenized as demonstrations.
            if stage == "sft" and align_args is not None:
                stages[name] = prepare_sft(side, rows.tokenizer, args, quarantine=quarantine)
            else:
                stages[name] = prepared(rows.intake, side)
            say(f"{name}: {stages[name].report['examples']} rows tokenized; {_cuts(stages[name])}")
    return stages


def shared_out(config: RunConfig, intake: Intake) -> dict[str, StoredRows]:
    """The good rows of each side, by prompt.

    Raises:
        DataError: a side that trains has none.
    """
    rows, limit = intake.rows, config.data.limit
    if limit is not None and limit < len(rows):
        rows = rows.select(range(limit))
    shares = _shares(config)
    sides = rows.split(shares)
    for name, share in shares.items():
        if share and not sides[name] and name != "held_out":
            raise DataError(
                f"{config.data.source}: no row falls on the {name} side (a share of {share:g} of {len(rows)} rows)"
            )
    return sides


def require_held_out(rows: RunRows, stages: Mapping[str, LeanConfig]) -> None:
    """Raise a ConfigError where a stage evaluates as it trains, and no row is held out."""
    for stage, own in stages.items():
        if (own.eval_strategy != "no" or own.eval_on_start) and not rows.sides.get("held_out"):
            raise ConfigError(
                f"{stage}.eval_strategy: no row is held out to evaluate on ({sum(map(len, rows.sides.values()))} rows, "
                "shared out by prompt): raise data.eval_fraction, or leave eval_strategy out"
            )


def _shares(config: RunConfig) -> dict[str, float]:
    held_out = config.data.eval_fraction
    if config.sft is None:
        return {"held_out": held_out, "align": 1 - held_out}
    if config.align is None:
        return {"held_out": held_out, "sft": 1 - held_out}
    sft = config.data.sft_fraction
    return {"held_out": held_out, "sft": sft, "align": 1 - held_out - sft}


def _order(side: StoredRows) -> str:
    """32 hexadecimal digits of the rows in their order, which training follows."""
    return blake2b("\n".join(side.ids).encode(), digest_size=16).hexdigest()


def _texts(record: Record) -> list[str]:
    if isinstance(record, PreferenceRecord):
        messages = [*record.prompt, *record.chosen, *record.rejected]
    elif record.text is not None:
        return [record.text]
    else:
        messages = record.messages
    return [str(message["content"]) for message in messages]


def _cuts(prepared: Prepared) -> str:
    """What the length rule cut, for people: share of rows and tokens of each side."""
    lengths = prepared.report["lengths"]
    cut = [
        f"{side} cut in {counts['rows_cut']} ({counts['tokens_cut'] / counts['tokens']:.0%} of its tokens)"
        for side, counts in lengths["sides"].items()
        if counts["rows_cut"]
    ]
    return "; ".join(cut) or "none cut"
