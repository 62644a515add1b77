"""A name or a folder -> a causal LM and its tokenizer. Safetensors only, whole ones; no code but what is pinned."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from holdfast.errors import ConfigError, HoldfastError, ModelError
from holdfast.models.folder import (
    Shapes,
    differing_shapes,
    folder_of,
    pickles_in,
    require_no_adapter,
    require_no_pickle,
    require_sound_folder,
    shapes_of,
)
from holdfast.models.quantized import keep_trainable
from holdfast.models.remote_code import code_options, require_pinned_kernel

logger = logging.getLogger(__name__)

DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
    quantized: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Load a causal LM from a folder or a hub name.

    Args:
        name: a folder, or `owner/name` on the hub.
        revision: a hub revision (branch, tag, commit).
        dtype: "auto" (the checkpoint's), "float32", "bfloat16", "float16" or "float64".
        attention: a transformers attention backend; None lets transformers choose.
        trust_remote_code: run the Python files that the model brings, at the pinned `revision` (see `remote_code`).
        quantized: how to quantize the weights while they are read: `quantized.quantization_options(...)`.

    Raises:
        ModelError: no such folder or name, an adapter, no safetensors weights, weights that are not the
            configuration's (with their sizes) or not finite, a model that needs remote code.
        ConfigError: an unknown dtype; remote code, or attention code of the hub, that is not pinned.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is unknown (known: {', '.join(DTYPES)})")
    require_pinned_kernel(attention)
    require_weights(name)
    config = read_config(name, revision=revision, trust_remote_code=trust_remote_code)
    folder = folder_of(name)
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "use_safetensors": True, **(quantized or {})}
    if attention is not None:
        options["attn_implementation"] = attention
    with faults_named(f"cannot load the model '{name}'"):
        options |= code_options(name, revision, trust_remote_code)
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                str(folder or name), revision=revision, output_loading_info=True, **options
            )
        except RuntimeError as error:
            if folder and (words := differing_shapes(shapes_of(folder), _shapes_by(config))):
                raise ModelError(
                    f"the weights in '{name}' are not those of its configuration: {words}"
                ) from error
            raise
    _require_whole(name, model, found)
    keep_trainable(model)
    return model


def require_weights(name: str) -> None:
    """See that a model folder is one, from headers and small files alone; a hub name is looked at when it is loaded.

    Raises:
        ModelError: no such folder; an adapter, a pickle or an archive in it; no safetensors weights, or damaged ones.
    """
    _require_source(name)
    if folder := folder_of(name):
        require_sound_folder(folder)
        shapes_of(folder)


def read_config(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """A model's configuration; a folder is looked over first (see `folder`).

    Raises:
        ModelError: no such folder or name, one that holds no model, a configuration that cannot be read.
        ConfigError: as `load_model`.
    """
    _require_source(name)
    folder = folder_of(name)
    if folder:
        require_sound_folder(folder)
    with faults_named(f"cannot read the configuration of '{name}'"):
        if folder is None and find_adapter_config_file(name, revision=revision) is not None:
            raise ModelError(f"'{name}' is an adapter, not a model: merge it into its base first")
        return AutoConfig.from_pretrained(
            str(folder or name),
            revision=revision,
            **code_options(name, revision, trust_remote_code),
        )


def vocabulary_of(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> int | None:
    """Rows of the model's embedding, from its configuration alone; None where there is none (a tokenizer's folder).

    Raises:
        ModelError, ConfigError: as `read_config`.
    """
    folder = folder_of(name)
    if folder and not (folder / "config.json").is_file():
        require_no_adapter(folder)
        return None
    config = read_config(name, revision=revision, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "vocab_size", None)


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, and its chat template from elsewhere if asked to.

    Args:
        chat_template: a `.jinja` file, or the folder or hub name of another tokenizer whose template to take
            (a base model trained with its instruct variant's template, say).
        trust_remote_code: run the Python files that the tokenizer brings, at the pinned `revision`.

    Raises:
        ModelError: no tokenizer there, one that needs remote code, or the source of the template has none.
        ConfigError: remote code that is not pinned.
    """
    _require_source(name)
    folder, pickles = folder_of(name), ""
    if folder:
        require_no_pickle(folder)
        found = pickles_in(folder)
        pickles = f" (it holds pickles, which are never opened: {found})" if found else ""
    with faults_named(f"cannot load a tokenizer from '{name}'{pickles}"):
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder or name),
            revision=revision,
            **code_options(name, revision, trust_remote_code, of_tokenizer=True),
        )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ModelError(
                f"'{name}' has a {type(tokenizer).__name__}, which is no tokenizer of text alone"
            )
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)
    return with_padding(tokenizer)


def require_embedded(tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """See that a model has an embedding for every token of a tokenizer, padding too.

    Args:
        rows: of the model's embedding; None is not known, and passes.

    Raises:
        ModelError: it does not; says both sizes.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and largest >= rows:
        raise ModelError(
            f"the tokenizer '{tokenizer.name_or_path}' has tokens up to number {largest} "
            f"({tokenizer.convert_ids_to_tokens(largest)!r}), but the model's vocabulary has {rows} rows: take the "
            f"model's own tokenizer, or resize the model (`resize_token_embeddings({largest + 1})`) and save it"
        )


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
    path = Path(os.path.expanduser(source))
    if os.path.isfile(path):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"chat template '{source}' cannot be read as UTF-8 text: {error}") from error
    if path.suffix in (".jinja", ".jinja2"):
        raise ModelError(f"chat template '{source}': no such file")
    template = load_tokenizer(source).chat_template
    if template is None:
        raise ModelError(f"chat template: the tokenizer of '{source}' has none")
    return str(template)


def _shapes_by(config: PreTrainedConfig) -> Shapes:
    """The shapes of the weights that a configuration makes."""
    with torch.device("meta"):  # shapes without memory
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _require_whole(name: str, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """See that every weight of the model was there, and is a number.

    transformers fills in what is missing with random numbers, and says so in its log alone.
    """
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"'{name}' lacks weights of its model ({_some(missing)}); they would be random numbers. Its files are not "
            "complete, or of another model"
        )
    if surplus := sorted(found["unexpected_keys"]):
        logger.warning("'%s' holds weights that the model has no place for: %s", name, _some(surplus))
    broken = [own for own, tensor in model.named_parameters() if not _is_finite(tensor)]
    if broken:
        raise ModelError(
            f"'{name}' holds weights that are not finite ({_some(broken)}): what saved it had diverged, or it is "
            "damaged"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether it holds neither NaN nor infinity, asked without as much memory again."""
    if tensor.numel() == 0 or tensor.dtype not in DTYPES.values():
        return True
    return bool(torch.isfinite(torch.stack(tensor.detach().aminmax())).all())


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextmanager
def faults_named(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ModelError that begins with `what`.

    The files are somebody else's, and what they ask of transformers can fail in any way.
    """
    try:
        yield
    except HoldfastError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {_words(error)}") from error


def _require_source(name: str) -> None:
    path = Path(os.path.expanduser(name))
    if os.path.exists(path) or (name.count("/") <= 1 and not name.startswith((".", "/", "~"))):
        return
    parent = path.parent
    raise ModelError(
        f"no model folder '{name}'"
        + ("" if os.path.isdir(parent) else f" (its parent '{parent}' does not exist either)")
    )


def _words(error: Exception) -> str:
    """What went wrong, in one line; with its kind where the text alone says little."""
    text = " ".join(str(error).split())[:500]
    plain = isinstance(error, OSError | ValueError | ImportError) and text
    return text if plain else f"{type(error).__name__}: {text}".removesuffix(": ")
