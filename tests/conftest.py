"""Shared fixtures. Nothing here reaches the network."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
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
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background, where the tests of Ctrl-C, and the processes they start, would pass it over.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests marked `soak` to `make soak`: with them, two cores take more than a quarter of an hour."""
    if not os.environ.get("HOLDFAST_SOAK"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="HOLDFAST_SOAK=1, or make soak, runs it"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data files kept beside the checkout; tests that need them skip where they are absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public data folder ../shared/data is not beside this checkout")
    return folder
