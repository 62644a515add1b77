"""Shared fixtures. Nothing here reaches the network."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# tests run side by side: one thread each, in the processes they start too
os.environ.setdefault("OMP_NUM_THREADS", "1")

# what tests compute goes where it is thrown away
os.environ["HOLDFAST_CACHE"] = tempfile.mkdtemp(prefix="holdfast-tests-")

import pytest
import torch

atexit.register(shutil.rmtree, os.environ["HOLDFAST_CACHE"], ignore_errors=True)
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data files kept beside the checkout; tests that need them skip where they are absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public data folder ../shared/data is not beside this checkout")
    return folder
