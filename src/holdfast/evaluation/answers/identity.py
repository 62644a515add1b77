"""Which model answered: by its files, so that one trained anew under its old name is another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from holdfast.models.folder import folder_digest, folder_of
from holdfast.models.loading import read_chat_template


def model_identity(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """32 hexadecimal digits of all that a local model's answers depend on, besides what it is asked.

    A folder is the bytes of its weights, configuration, tokenizer and template, wherever it lies; a hub name is itself
    at a revision. No weight is loaded.

    Raises:
        ModelError: a chat template that is not there.
    """
    folder = folder_of(name)
    known = [
        folder_digest(folder) if folder else [name, revision],
        dtype,
        None if chat_template is None else read_chat_template(chat_template),
        dict(chat_template_kwargs or {}),
    ]
    return blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16).hexdigest()
