"""Files made to exhaust a reader: lines and values without end, gzip that unpacks without end, YAML whose aliases do.
Memory stays bounded, and the message names the place.
"""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from holdfast.data import file_bytes, json_text, tables
from holdfast.data.sources import read_rows
from holdfast.errors import DataError
from tests.faults.commands import holdfast, lines_named, stage
from tests.faults.whole_runs import rows_file

ROW = json.dumps({"prompt": "a?", "chosen": "b", "rejected": "c"})
LIMIT = 1 << 20  # in the place of 64 MiB
WAYS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a line without end": ("jsonl", lambda: b"x" * (2 * LIMIT)),
    "a row without end": (
        "jsonl",
        lambda: b'{"prompt": "' + b"x" * (2 * LIMIT) + b'", "chosen": "b", "rejected": "c"}',
    ),
    "NULs": ("jsonl", lambda: bytes(2 * LIMIT)),
    "an array of one value": ("json", lambda: b'["' + b"x" * (4 * LIMIT)),
    "brackets": ("json", lambda: b"[" + b" " * LIMIT + b'{"a": "' + b"x" * (4 * LIMIT)),
    "a cell without end": ("csv", lambda: b'prompt,chosen,rejected\na,b,"' + b"x\n" * (2 * LIMIT)),
    "a header without end": ("csv", lambda: b"prompt," * LIMIT),
}


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (file_bytes, json_text, tables):
        monkeypatch.setattr(module, "LARGEST_ROW", LIMIT)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("way", WAYS)
def test_a_row_without_end_ends_the_file(tmp_path: Path, way: str, packed: bool) -> None:
    suffix, content = WAYS[way]
    file = tmp_path / f"rows.{suffix}{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(content()) if packed else content())
    with pytest.raises(DataError) as raised:
        for _ in read_rows(file):
            pass
    assert str(raised.value).startswith(f"{file}:")
    assert "MiB, which is no row" in str(raised.value) or "field larger than field limit" in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_the_rows_before_it_are_given(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows.{suffix}"
    rows = f"{ROW}\n{ROW}\n" if suffix == "jsonl" else f"[{ROW},\n{ROW},\n"
    file.write_text(rows + json.dumps({"prompt": "x" * 4 * LIMIT}))
    rows_given = read_rows(file)
    assert [next(rows_given)[0], next(rows_given)[0]] == [f"{file}:1", f"{file}:2"]
    with pytest.raises(DataError, match=f"{file}:3: .* of more than 1 MiB, which is no row"):
        next(rows_given)


def test_a_gzip_bomb_takes_no_memory(tmp_path: Path) -> None:
    """Four GiB of nothing in four MB, read by a process that may have one."""
    file = tmp_path / "rows.jsonl.gz"
    block = gzip.compress(bytes(1 << 26), 9)
    with file.open("wb") as bomb:
        for _ in range(64):  # members of one file, one behind the other
            bomb.write(block)
    code = (
        "from holdfast.data.sources import read_rows\n"
        "from holdfast.errors import DataError\n"
        "try:\n"
        f"    list(read_rows({str(file)!r}))\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )
    assert result.stdout == f"{file}:1: a line of more than 64 MiB, which is no row\n", result.stderr


def test_a_long_row_is_a_row(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the limit, length alone is judged in tokens."""
    file = tmp_path / "rows.jsonl"
    file.write_text(
        f"{ROW}\n" + json.dumps({"prompt": "x " * 100_000, "chosen": "b", "rejected": "c"}) + "\n"
    )
    ended = stage("align", start, file, tmp_path / "run")
    assert list(lines_named(ended.error, file)) == [2]
    assert "too_long" in ended.error


# ---- the run's own file

LAUGHS = ", ".join(
    f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else ', '.join(['ha'] * 10)}]" for n in range(10)
)
MERGES = "\n".join(
    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}" if n else "m0: &m0 {a: 1}" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"x: {{{LAUGHS}}}", "with its aliases written out the file has more than"),
        (f"output_dir: {{{LAUGHS}}}", "with its aliases written out the file has more than"),
        (MERGES, "with its aliases written out the file has more than"),
        ("x: &x [*x]", "an alias stands within what it stands for"),
        ("x: &x {y: {z: *x}}", "an alias stands within what it stands for"),
        ("x: &x {<<: *x}", "an alias stands within what it stands for"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 100_000, "nested too deeply"),
        ("x: !!python/object/apply:os.system ['touch mark']", "could not determine a constructor"),
        ("x: !!python/name:os.system", "could not determine a constructor"),
        ("seed: " + "9" * 5000, "4300 digits"),
        ("x: \0", "special characters are not allowed"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    ended = holdfast("run", tmp_path / "run.yaml")
    assert ended.code == 2
    assert ended.error.startswith(f"{tmp_path / 'run.yaml'} is not valid YAML")
    assert words in ended.error
    assert len(ended.error) < 1000
    assert not (tmp_path / "mark").exists()


def test_aliases_that_come_to_an_end_are_yaml(start: Path, tmp_path: Path) -> None:
    stage_settings = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True}
    data = {"source": str(rows_file(tmp_path / "rows.jsonl", 12)), "max_length": 64, "eval_fraction": 0}
    text = yaml.safe_dump(
        {"model": str(start), "data": data, "adapter": None, "output_dir": str(tmp_path / "run")}
    )
    text += f"sft: &stage {json.dumps(stage_settings)}\nalign: {{<<: *stage, learning_rate: 1e-6}}\n"
    (tmp_path / "run.yaml").write_text(text)
    ended = holdfast("run", tmp_path / "run.yaml")
    assert ended.code == 0, ended.error
