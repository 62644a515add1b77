"""A source checked, tokenized and kept on disk, once: `take_in`. A second start reads what the first one made.

A folder `<cache>/rows/<key>/` holds `rows.arrow` (see `stored`), `quarantine.jsonl` (every bad row) and `report.json`
(the check's report). The key is a hash of all that they depend on: the source's bytes, the tokenizer, the settings,
and the code. The folder is written beside and renamed, so that it is whole or absent. In a run of several processes
the first of each node does all this, and the others open what it made.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.data.check import name_of, report_on
from holdfast.data.check_report import CheckReport
from holdfast.data.encoders import Encoder
from holdfast.data.examine import Checker, Row
from holdfast.data.faults import Problem, as_json
from holdfast.data.formats import Kind
from holdfast.data.records import PreferenceRecord, Record, as_row
from holdfast.data.sources import path_of, read_rows
from holdfast.data.stored import StoredRows, writing
from holdfast.data.validation import LISTED, InvalidRows, Mode, lay_out, refusal, require_mode
from holdfast.files import cache_folder, digest_of, making
from holdfast.ranks import is_main, once_a_node

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# An edit of this floor's code, or another version of these packages, is a new key.
CODE = sorted(Path(__file__).parent.glob("*.py"))
PACKAGES = ("transformers", "tokenizers", "jinja2", "pyarrow", "datasets")

ROWS, REPORT, QUARANTINE = "rows.arrow", "report.json", "quarantine.jsonl"


@dataclass(frozen=True)
class Intake:
    """A source as training takes it.

    Attributes:
        rows: the good rows; with tokens where the checker has an encoder.
        report: what the check found.
        quarantine: file with every bad row, one JSON object a line.
    """

    rows: StoredRows
    report: CheckReport
    quarantine: Path

    def problems(self) -> Iterator[Problem]:
        """Every bad row, in their order."""
        with self.quarantine.open(encoding="ascii") as file:
            for line in file:
                yield Problem(**json.loads(line))

    def require(self, mode: Mode, quarantine: Path | None = None) -> None:
        """Refuse bad rows, or set them aside.

        Args:
            mode: `strict` refuses any bad row; `lenient` sets bad rows aside.
            quarantine: where `lenient` writes them, behind what is there; of several processes, the first does.

        Raises:
            InvalidRows: `strict` and there is a bad row; or no good row is left.
        """
        require_mode(mode)
        report = self.report
        if report.good and (mode == "lenient" or not report.refused):
            if report.refused and quarantine is not None and is_main():
                quarantine.parent.mkdir(parents=True, exist_ok=True)
                with self.quarantine.open("rb") as bad, quarantine.open("ab") as file:
                    shutil.copyfileobj(bad, file)
            return
        problems = list(islice(self.problems(), LISTED))
        raise InvalidRows(
            refusal(report.source, problems, report.refused, report.rows, report.good, report.left_out()),
            problems,
        )


def take_in(
    source: Any,
    checker: Checker,
    *,
    format: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
) -> Intake:
    """Check every row of a source, tokenize it, and keep the result; or open what was kept.

    Memory does not grow with the rows' texts. All processes of a run call it, and get the same.

    Args:
        source, split, revision: see `read_rows`.
        format: the name of the rows' layout; by default found out for each file.
        num_proc: processes to share the work, by default one a core; the result does not depend on it.
        cache_dir: see `cache_folder`.

    Raises:
        DataError, ConfigError: as `check_source`. Bad rows are no error until `Intake.require`.
        PeerError: the process that did the work has failed.
    """
    if isinstance(source, Iterator):
        source = list(source)  # it is read twice: for its content, and for its rows

    def rows() -> Iterable[Row]:
        return lay_out(read_rows(source, split, revision), checker.kind, format, seed=checker.seed)

    def content() -> dict[str, Any]:
        return {"source": _content(source, split, revision), "format": format, "name": name_of(source)}

    return _kept(content, rows, checker, name_of(source), num_proc, cache_dir)


def take_in_records(
    records: Iterable[Record],
    checker: Checker,
    *,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
) -> Intake:
    """As `take_in`, of records. A supervised checker takes pairs by their chosen side."""
    if isinstance(records, Iterator):
        records = list(records)

    def content() -> dict[str, Any]:
        return {"records": blake2b("\n".join(_names(records)).encode(), digest_size=16).hexdigest()}

    return _kept(content, lambda: map(RecordRow, records), checker, "the rows", num_proc, cache_dir)


def _names(records: Iterable[Record]) -> Iterator[str]:
    return (f"{record.id} {record.where}" for record in records)


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A record in the place of a row to check."""

    own: Record

    @property
    def row(self) -> Any:
        """The record as a plain row."""
        return as_row(self.own)

    def record(self, kind: Kind) -> Record | Problem:
        """The record, or its chosen side."""
        if kind == "sft" and isinstance(self.own, PreferenceRecord):
            return self.own.chosen_as_sft()
        return self.own


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hexadecimal digits of all that a tokenizer does to text: vocabulary, rules, special tokens, template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # Padding and truncation are of the last call, not of the tokenizer.
        state |= {"padding": None, "truncation": None}
    else:
        state = {
            "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
            "vocabulary": tokenizer.get_vocab(),
            "settings": tokenizer.init_kwargs,
        }
    return _hash([state, tokenizer.chat_template, tokenizer.special_tokens_map])


def _content(source: Any, split: str | None, revision: str | None) -> str:
    """A digest of the rows a source holds: of its files' bytes, or of the rows themselves."""
    path = path_of(source) if isinstance(source, (str, Path)) else None
    digest = blake2b(f"{split}\n{revision}".encode(errors="backslashreplace"), digest_size=16)
    if path is not None and os.path.exists(path):
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            # as bytes: a name need not be UTF-8
            digest.update(b"\n" + os.fsencode(file.relative_to(path)) + b" " + digest_of(file).encode())
    else:
        for _, row in read_rows(source, split, revision):
            digest.update(as_json(row).encode() + b"\n")
    return digest.hexdigest()


def _kept(
    content: Callable[[], Mapping[str, Any]],
    rows: Callable[[], Iterable[Row]],
    checker: Checker,
    name: str,
    num_proc: int | None,
    cache_dir: str | Path | None,
) -> Intake:
    def keep() -> Path:
        folder = cache_folder(cache_dir) / "rows" / _key(content(), checker)
        if folder.is_dir() and not _is_whole(folder):
            logger.warning("the rows kept in '%s' are damaged; they are made again", folder)
            shutil.rmtree(folder)
        if not folder.is_dir():
            _make(folder, rows(), checker, name, num_proc)
        return folder

    folder = once_a_node(keep)
    report = CheckReport.from_dict(_report(folder)["report"])
    return Intake(StoredRows.open(folder / ROWS), report, folder / QUARANTINE)


def _make(folder: Path, rows: Iterable[Row], checker: Checker, name: str, num_proc: int | None) -> None:
    """Check the rows, and write what they became into `folder`."""
    with making(folder) as beside:
        with writing(beside / ROWS) as keep:
            report = report_on(
                rows, checker, name, num_proc=num_proc, quarantine=beside / QUARANTINE, keep=keep
            )
        text = json.dumps({"report": report.as_dict(), "digests": _digests(beside)})
        (beside / REPORT).write_text(text, encoding="ascii")


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="ascii"))
    return found


def _digests(folder: Path) -> dict[str, str]:
    return {name: digest_of(folder / name) for name in (ROWS, QUARANTINE)}


def _is_whole(folder: Path) -> bool:
    try:
        return bool(_report(folder)["digests"] == _digests(folder))
    except (OSError, ValueError, KeyError):
        return False


def _key(content: Mapping[str, Any], checker: Checker) -> str:
    encoder: Encoder[Any, Any] | None = checker.encoder
    inputs: dict[str, Any] = {
        **content,
        "kind": checker.kind,
        "seed": checker.seed,
        "examples": checker.examples,
        "code": [digest_of(path) for path in CODE],
        "packages": {package: version(package) for package in PACKAGES},
    }
    if encoder is not None:
        inputs |= {
            "tokenizer": fingerprint(encoder.chat.tokenizer),
            "rule": asdict(encoder.rule),
            "train_on": getattr(encoder, "train_on", None),
            "append_eos": encoder.chat.append_eos,
            "vocab_size": encoder.chat.vocab_size,
            "chat_template_kwargs": encoder.chat.chat_template_kwargs,
        }
    return _hash(inputs)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()
