"""Text that is no text, or that tools trip over: in prompts, answers, keys and file names. It is located, or it goes
through unchanged, to the saved model, the record, the metrics and the report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast import PreferenceConfig, PreferenceTrainer
from holdfast.models.tiny import tiny_model
from tests.faults.commands import QUICK, Ended, holdfast, lines_named, losses_of, record_of, stage
from tests.training.conftest import rows

PLAIN = {"prompt": "the tide?", "chosen": "in", "rejected": "out"}
# Characters that are valid text, and that line readers, terminals, browsers or C strings trip over.
ODD = {
    "NUL": "a\0b",
    "line separators": "a\u2028b\u2029c\x85d\x0b\x0c\x1ce",
    "noncharacters": "a\uffff\ufffe\U0010ffffb",
    "bidi marks": "a\u202eb\u2066c",
    "a byte order mark": "a\ufeffb",
    "controls": "a\x1b[31mb\x07\x7f",
    "markup": "</script><script>alert(1)</script>&lt;![CDATA[",
    "combining marks": "a" + "\u0301" * 500,
}


def written(folder: Path, *lines: bytes, name: str = "rows.jsonl") -> Path:
    """A file of good rows, and these below them."""
    file = folder / name
    good = [json.dumps(row).encode() for row in rows(12)]
    file.write_bytes(b"\n".join([*good, *lines]) + b"\n")
    return file


def as_line(row: dict[str, Any]) -> bytes:
    """As JSON that is not escaped."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")


# Each is the fault of its row.
INVALID = [
    as_line(PLAIN).replace(b"tide", b"t\xffde"),
    as_line(PLAIN).replace(b'"in"', b'"\xc0\x80"'),  # NUL, too long
    as_line(PLAIN).replace(b'"out"', b'"\xed\xa0\x80"'),  # a surrogate, as UTF-8
    as_line(PLAIN).replace(b"prompt", b"pr\xffmpt"),
    *(json.dumps(PLAIN | {key: "half \ud83d"}).encode() for key in PLAIN),
    json.dumps(PLAIN | {"system": "\udc80"}).encode(),
    json.dumps(PLAIN | {"chat_template_kwargs": {"\ud800": 1}}).encode(),
    json.dumps(PLAIN | {"tools": [{"name": "\udfff"}]}).encode(),
    json.dumps(PLAIN | {"prompt": [{"role": "user", "content": "a", "na\ud800me": "b"}]}).encode(),
]


def test_invalid_text_is_located(start: Path, tmp_path: Path) -> None:
    source = written(tmp_path, *INVALID)
    ended = stage("align", start, source, tmp_path / "run")
    assert ended.code == 2
    assert list(lines_named(ended.error, source)) == list(range(13, 13 + len(INVALID)))
    assert f"of {12 + len(INVALID)} rows cannot be used: invalid_text {len(INVALID)}\n" in ended.error + "\n"
    assert all(line.isprintable() for line in ended.error.splitlines())


def readable(run: Path) -> dict[str, Any]:
    """A run's record, once its files have been read as any other program would read them."""
    for name in ("metrics.jsonl", "quarantine.jsonl"):
        for line in (run / name).read_bytes().split(b"\n")[:-1]:
            json.loads(line.decode("utf-8"))
    page = (run / "report.html").read_bytes().decode("utf-8")
    assert "\0" not in page
    assert "<script>alert" not in page
    AutoModelForCausalLM.from_pretrained(run / "final")
    AutoTokenizer.from_pretrained(run / "final")
    return record_of(run)


def test_odd_and_invalid_text_runs_to_the_report(start: Path, tmp_path: Path) -> None:
    odd = [
        as_line(
            {"prompt": f"{name} {text}?", "chosen": text, "rejected": f"no {text}", f"key {text}": [text]}
        )
        for name, text in ODD.items()
    ]
    surplus = json.dumps(PLAIN | {"note": "\ud800", "\udc80": 1}).encode()  # in keys that nobody reads
    source = written(tmp_path, *odd, surplus, *INVALID)
    ended = stage("align", start, source, tmp_path / "run", "data.validation=lenient", "data.max_length=2048")
    assert ended.code == 0, ended.error
    data = readable(tmp_path / "run")["data"]
    assert data["rows"] == 12 + len(odd) + 1 + len(INVALID)
    assert data["refused"] == {"invalid_text": len(INVALID)}
    assert data["splits"]["align"]["rows"] == 12 + len(odd) + 1
    assert holdfast("report", tmp_path / "run").code == 0


def test_odd_text_is_trained_as_it_stands(start: Path, tmp_path: Path) -> None:
    source = written(
        tmp_path, *(as_line({"prompt": text, "chosen": text, "rejected": "b"}) for text in ODD.values())
    )
    trainer = PreferenceTrainer(
        model=tiny_model("qwen3", 320, hidden_size=16, layers=1),
        args=PreferenceConfig(
            output_dir=str(tmp_path / "run"),
            max_length=2048,
            dataset_num_proc=1,
            use_cpu=True,
            cache_dir=str(tmp_path / "cache"),
        ),
        train_dataset=str(source),
        processing_class=str(start),
    )
    decode = trainer.processing_class.decode
    trained = trainer.prepared["train"].dataset[12:]
    for text, prompt, chosen in zip(ODD.values(), trained["prompt_ids"], trained["chosen_ids"], strict=True):
        assert decode(chosen) == text + "<|im_end|>"
        assert decode(prompt) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_a_row_of_odd_text_stands_on_one_line(start: Path, tmp_path: Path, text: str) -> None:
    odd = as_line({"prompt": text, "chosen": text, "rejected": "b"})
    source = written(tmp_path, odd, b"{not json", odd)
    ended = stage("align", start, source, tmp_path / "run", "data.max_length=2048")
    assert ended.code == 2
    assert list(lines_named(ended.error, source)) == [14]


NAMES = {
    "not UTF-8": b"a\xff.jsonl",
    "a line break": b"a\n:7.jsonl",
    "U+2028": "a\u2028.jsonl".encode(),
    "an escape": b"a\x1b[31m.jsonl",
    "markup": b"<img src=x>.jsonl",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_file_names_are_shown_harmlessly(start: Path, tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    source = written(folder, b"{not json", name=os.fsdecode(name))
    refused = stage("align", start, folder, tmp_path / "run")
    assert refused.code == 2
    assert ".jsonl:13: unparsable_json" in refused.error
    assert all(line.isprintable() for line in refused.error.splitlines())
    ended = stage("align", start, folder, tmp_path / "run", "data.validation=lenient")
    assert ended.code == 0, ended.error
    data = readable(tmp_path / "run")["data"]
    assert (data["rows"], data["refused"]) == (13, {"unparsable_json": 1})
    (shown,) = data["check"]["formats"]
    assert shown.isprintable()
    if source.name.isprintable():
        assert shown == str(source)


def test_a_terminal_that_knows_ascii_alone_ends_no_run(start: Path, tmp_path: Path) -> None:
    """In a process of its own: what it writes to goes through the terminal's encoding."""
    folder = tmp_path / "rows"
    folder.mkdir()
    written(
        folder,
        INVALID[0],
        as_line({"prompt": "ü \ud7ff", "chosen": "ß", "rejected": "b"}),
        name="ä\udcff.jsonl",
    )
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "holdfast",
            "align",
            str(start),
            "rows",
            *QUICK,
            "data.validation=lenient",
            "-o",
            "run",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONIOENCODING": "ascii",
        },
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert readable(tmp_path / "run")["data"]["refused"] == {"invalid_text": 1}


def test_bytes_in_a_saved_data_set_that_are_not_utf8_cost_their_row_alone(
    start: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(rows(12)).save_to_disk(folder)
    (arrow,) = folder.glob("*.arrow")
    content = arrow.read_bytes()
    at = content.index(b"7?")  # in the prompt of the eighth row
    arrow.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    ended = stage("align", start, folder, tmp_path / "run")
    assert ended.code == 2
    assert f"{folder}: 1 of 12 rows cannot be used: invalid_text 1\n  {folder} row 8: " in ended.error


def test_numbers_that_are_none(start: Path, tmp_path: Path) -> None:
    """JSON as others write it: NaN, infinities, integers without end, nesting without end."""
    source = written(
        tmp_path,
        b'{"prompt": "a?", "chosen": "b", "rejected": "c", "score_chosen": NaN}',  # missing
        b'{"prompt": "a?", "chosen": "b", "rejected": "c", "score_chosen": Infinity}',
        b'{"prompt": "a?", "chosen": "b", "rejected": "c", "margin": -1e999}',
        b'{"prompt": "a?", "chosen": "b", "rejected": "c", "margin": %s}' % (b"9" * 400),
        b'{"prompt": "a?", "chosen": "b", "rejected": "c", "margin": -%s}' % (b"9" * 5000),
        b'{"prompt": "a?", "chosen": "b", "rejected": "c", "id": %s}' % (b"9" * 400),  # nobody reads it
        b"[" * 1_000_000,
        b'{"a": ' * 1_000_000 + b"1" + b"}" * 1_000_000,
        b"x" * 10_000_000,
        as_line(PLAIN | {f"key {n}": n for n in range(100_000)}),
    )
    ended = stage("align", start, source, tmp_path / "run")
    assert list(lines_named(ended.error, source)) == [14, 15, 16, 17, 19, 20, 21]
    lenient = stage("align", start, source, tmp_path / "run", "data.validation=lenient")
    assert lenient.code == 0, lenient.error
    assert readable(tmp_path / "run")["data"]["refused"] == {"unparsable_json": 4, "wrong_type": 3}
    assert all(loss > 0 for loss in losses_of(tmp_path / "run"))


def test_every_message_of_a_refusal_is_short(start: Path, tmp_path: Path) -> None:
    source = written(tmp_path, b"x" * 10_000_000, json.dumps({"k" * 1_000_000: 1}).encode())
    ended: Ended = stage("align", start, source, tmp_path / "run")
    assert ended.code == 2
    assert len(ended.error) < 5000
