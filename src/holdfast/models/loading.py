"""A name or a folder -> a causal LM and its tokenizer. Safetensors only, and no code from a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from holdfast.errors import ConfigError, ModelError

DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load_model(
    name: str, *, revision: str | None = None, dtype: str = "auto", attention: str | None = None
) -> PreTrainedModel:
    """Load a causal LM from a folder or a hub name.

    Args:
        name: a folder, or `owner/name` on the hub.
        revision: a hub revision (branch, tag, commit).
        dtype: "auto" (the checkpoint's), "float32", "bfloat16", "float16" or "float64".
        attention: a transformers attention backend; None lets transformers choose.

    Raises:
        ModelError: no such folder or name, no safetensors weights, a model that needs remote code.
        ConfigError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is unknown (known: {', '.join(DTYPES)})")
    _require_source(name)
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "use_safetensors": True, "trust_remote_code": False}
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        return AutoModelForCausalLM.from_pretrained(name, revision=revision, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"cannot load the model '{name}': {_first_line(error)}") from error


def vocabulary_of(name: str, *, revision: str | None = None) -> int | None:
    """Rows of the model's embedding, from its configuration alone; None where there is none (a tokenizer's folder).

    Raises:
        ModelError: a configuration that cannot be read.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the configuration of '{name}': {_first_line(error)}") from error
    return getattr(config.get_text_config(), "vocab_size", None)


def load_tokenizer(
    name: str, *, revision: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, and its chat template from elsewhere if asked to.

    Args:
        chat_template: a `.jinja` file, or the folder or hub name of another tokenizer whose template to take
            (a base model trained with its instruct variant's template, say).

    Raises:
        ModelError: no tokenizer there, or the source of the template has none.
    """
    _require_source(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"cannot load a tokenizer from '{name}': {_first_line(error)}") from error
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)
    return with_padding(tokenizer)


def with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, padding with its end token where it has no padding token.

    Padding never reaches the loss (masks come from positions, not from ids), so any token serves.

    Raises:
        ModelError: it has neither.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has neither a padding nor an end token: set `tokenizer.eos_token`"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_chat_template(source: str) -> str:
    """The text of a `.jinja` file, or the chat template of the tokenizer named `source`."""
    path = Path(source)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if path.suffix in (".jinja", ".jinja2"):
        raise ModelError(f"chat template '{source}': no such file")
    template = load_tokenizer(source).chat_template
    if template is None:
        raise ModelError(f"chat template: the tokenizer of '{source}' has none")
    return str(template)


def _require_source(name: str) -> None:
    path = Path(name).expanduser()
    if path.exists() or (name.count("/") <= 1 and not name.startswith((".", "/", "~"))):
        return
    parent = path.parent
    raise ModelError(
        f"no model folder '{name}'"
        + ("" if parent.is_dir() else f" (its parent '{parent}' does not exist either)")
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
