"""Where holdfast keeps what it need not compute twice: tokenized rows and reference log-probs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(configured: str | None) -> Path:
    """The configured folder, or `HOLDFAST_CACHE`, or the user's cache."""
    return Path(configured or os.environ.get("HOLDFAST_CACHE") or "~/.cache/holdfast").expanduser()
