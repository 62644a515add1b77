"""Questions of mathematics with one right answer: the four benchmarks, or any file of such rows.

A row has the question under `problem` or `question` and the reference under `answer`: a formula, a number, or a worked
solution that ends in `#### 18` (GSM8K's). The files are other people's data: read from a folder or the hub, and known
by a hash of questions and references.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.data.faults import Unreadable
from holdfast.data.sources import read_rows
from holdfast.errors import ConfigError, DataError, did_you_mean
from holdfast.evaluation.judged.assets import content_hash, require_file

WORKED = "####"  # what stands before the answer of a worked solution


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's questions are found, and what they are known by.

    Attributes:
        title: as people write it.
        files: names of its file, in a folder of such files.
        hub, subset, split: of the hub's data set.
        questions: how many.
        sha256: of all questions and references, as the Qwen2.5-Math evaluation has them.
        category: the row's key that says what a question is about; None where nothing does.
    """

    title: str
    files: tuple[str, ...]
    hub: str
    subset: str | None
    split: str
    questions: int
    sha256: str
    category: str | None = None


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        "GSM8K",
        ("gsm8k.jsonl",),
        "openai/gsm8k",
        "main",
        "test",
        1319,
        "f2e20d7531ea649b0ea7214fa7150d2a1c94a94af18f4e0c0318bd8994e23d54",
    ),
    "math_500": Benchmark(
        "MATH-500",
        ("math_500.jsonl", "math500.jsonl", "math_oai.jsonl"),
        "HuggingFaceH4/MATH-500",
        None,
        "test",
        500,
        "05dc313e1fe683fe66e29b1192355d1825aa3a4287b4a9623d59db203ed41974",
        category="subject",
    ),
    "aime24": Benchmark(
        "AIME24",
        ("aime24.jsonl",),
        "HuggingFaceH4/aime_2024",
        None,
        "train",
        30,
        "6ab97b40f4f940849c8476d35b2b4aecd00f5ff94898ab34e567cb880afd1957",
    ),
    "amc23": Benchmark(
        "AMC23",
        ("amc23.jsonl",),
        "math-ai/amc23",
        None,
        "test",
        40,
        "a7f03ad3008857076f334892cfb17a0e22e5c0e62da3b1b7681dc1793e7ff554",
    ),
}


@dataclass(frozen=True)
class MathsQuestion:
    """A question, its reference in LaTeX, and what it is about (empty where nobody says)."""

    id: str
    text: str
    reference: str
    category: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """Questions with distinct ids.

    Attributes:
        name: `gsm8k`, or of the file.
        title: as people write it.
        sha256: of questions and references, in their order.
        known: whether they are the benchmark's, all of them; False for other files.
    """

    name: str
    title: str
    questions: tuple[MathsQuestion, ...]
    sha256: str
    known: bool


def read_questions(name: str, assets: str | Path | None = None) -> QuestionSet:
    """The questions of a benchmark, or of a file.

    Args:
        name: one of `BENCHMARKS`, or a file or hub name of rows as above.
        assets: the folder that has the benchmarks' files; None takes them from the hub.

    Raises:
        ConfigError: neither a benchmark nor a file's or hub name.
        DataError: the file is not there or cannot be read, or a row of it has no question or no answer.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        if not Path(name).expanduser().exists() and "/" not in name:
            raise ConfigError(f"'{name}' is no maths benchmark and no file{did_you_mean(name, BENCHMARKS)}")
        return _question_set(Path(name).stem, name, read_rows(name), None)
    if assets is None:
        return _question_set(name, benchmark.title, read_rows(_of_the_hub(benchmark)), benchmark)
    folder = Path(assets).expanduser()
    if not folder.is_dir():
        raise DataError(f"'{folder}': no such folder; --assets is one with the benchmarks' files")
    path = require_file(folder, benchmark.files, f"file of {benchmark.title}")
    return _question_set(name, benchmark.title, read_rows(path), benchmark)


def reference_of(place: str, row: Mapping[str, Any]) -> str:
    """The reference of a row, in LaTeX.

    Raises:
        DataError: it is not there, empty, or neither text nor number.
    """
    answer = row.get("answer")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError(f"{place}: 'answer' must be a text or a number, the reference to compare with")
    _, mark, last = str(answer).rpartition(WORKED)
    reference = last.strip().replace(",", "") if mark else str(answer).strip()
    if not reference:
        raise DataError(f"{place}: 'answer' holds no reference")
    return reference


def _of_the_hub(benchmark: Benchmark) -> Any:
    import datasets

    try:
        return datasets.load_dataset(benchmark.hub, benchmark.subset, split=benchmark.split)
    except Exception as error:  # whatever the network, the hub or its cache come to
        raise DataError(
            f"the hub does not give {benchmark.title} ('{benchmark.hub}', {type(error).__name__}: {error}); name a "
            f"folder that holds {benchmark.files[0]} with --assets"
        ) from error


def _question_set(
    name: str, title: str, rows: Iterable[tuple[str, Any]], benchmark: Benchmark | None
) -> QuestionSet:
    questions: list[MathsQuestion] = []
    for number, (place, row) in enumerate(rows):
        if isinstance(row, Unreadable):
            raise DataError(f"{place}: {row.detail}; mend or remove the line")
        if not isinstance(row, Mapping):
            raise DataError(f"{place}: a question is an object; mend or remove the line")
        text = next(
            (row[key] for key in ("problem", "question") if isinstance(row.get(key), str)), ""
        ).strip()
        if not text:
            raise DataError(f"{place}: has no text under 'problem' or 'question'")
        category = row.get(benchmark.category) if benchmark and benchmark.category else None
        questions.append(
            # Numbered by place: a file's own ids may repeat, and the same content has the same order.
            MathsQuestion(f"{name}/{number}", text, reference_of(place, row), str(category or ""))
        )
    if not questions:
        raise DataError(f"{title}: there is no question in it")
    digest = content_hash([[question.text, question.reference] for question in questions])
    return QuestionSet(
        name, title, tuple(questions), digest, benchmark is not None and digest == benchmark.sha256
    )
