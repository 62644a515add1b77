"""What whole runs begin with: a tiny model, and rows to train it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.runs import little_to_collect
from tests.faults.whole_runs import make_place, rows_file, start_folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 320 tokens and 32 features, its head tied, with its tokenizer; who changes it, changes a copy."""
    return start_folder(tmp_path_factory.mktemp("models") / "start")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of eight preference rows."""
    return rows_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", 8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a start model and rows, where the runs of one file of tests go."""
    return make_place(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def little_garbage() -> Iterator[None]:
    """For a file of many trainings."""
    with little_to_collect():
        yield
