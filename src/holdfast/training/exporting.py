"""An adapter, a checkpoint or a model's folder -> a whole model's folder: merged, saved, loaded again and compared.

What is merged is what was trained: every file of a checkpoint is held against its manifest, every weight of an adapter
must reach the model, and the base must be the one whose digest the checkpoint's fingerprint has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from holdfast.errors import ConfigError, ModelError, did_you_mean
from holdfast.models.adapters import is_tied, require_mergeable, train_in_float32
from holdfast.models.export import PARTIAL, Exported, save_final
from holdfast.models.folder import ADAPTER, INDEX, WEIGHTS, folder_of, pickles_in, read_object
from holdfast.models.loading import (
    DTYPES,
    faults_named,
    load_model,
    load_tokenizer,
    read_config,
    require_embedded,
    require_weights,
)
from holdfast.models.token_logprobs import causal_lm_of
from holdfast.training.checkpoint import CheckpointStore
from holdfast.training.fingerprint import FINGERPRINT, weights_digest
from holdfast.training.manifest import MANIFEST
from holdfast.training.run_folder import require_verified
from holdfast.training.weights_file import ADAPTER as ADAPTER_WEIGHTS
from holdfast.training.weights_file import own_weights

WANTED = "SOURCE is the folder of an adapter, of a checkpoint (.../checkpoint-200) or of a model"
SAVED = ("bfloat16", "float16", "float32")  # dtypes of weights that are saved
# Files that a tokenizer cannot be without, one or the other.
OF_A_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True)
class Export:
    """What was exported, and from what.

    Attributes:
        saved: the folder, its dtype, and what saving changed.
        source: what was read, in words.
        stops: the tokens that generation from the saved model stops at.
        notes: what nothing in the source could make sure.
    """

    saved: Exported
    source: str
    stops: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    source: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    stop_tokens: Sequence[str] = (),
) -> Export:
    """Merge the adapter, if there is one, and save the whole model with its tokenizer (see `save_final`).

    Args:
        source: the folder of an adapter, a checkpoint or a model.
        output: the folder to make; nothing is overwritten.
        base: the model that the adapter belongs to, a folder or hub name; None: as the adapter's configuration says.
        revision: of the base on the hub; None: likewise.
        dtype: of the saved weights: "float32", "bfloat16" or "float16"; None keeps what most of the model has.
        stop_tokens: tokens that end a turn besides those that the model stops at already.

    Raises:
        ModelError: the source is none of the three, or cannot be exported; the message says what to give instead.
        CheckpointError: a checkpoint that is not as it was written.
        ConfigError: `base` or `revision` for a source without an adapter, an unknown dtype or token.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    if dtype is not None and dtype not in SAVED:
        raise ConfigError(f"dtype '{dtype}' is none to save in{did_you_mean(dtype, SAVED)}")
    _require_free(output, source)
    settings = _adapter_settings(source) if _has_adapter(source) else None
    if settings is not None:
        base, revision = _base_of(source, settings, base, revision)
        try:
            _require_plain(base, revision)
        except ModelError as error:
            raise ModelError(f"the base of '{source}': {error}; another is named with --base") from error
    elif base is not None or revision is not None:
        raise ConfigError(f"--base and --revision belong to an adapter; '{source}' holds a whole model")
    else:
        require_weights(str(source))
        _require_plain(str(source), None)
    tokenizer = _tokenizer(source, base, revision)
    ids = [_token_id(tokenizer, token) for token in stop_tokens]
    notes: tuple[str, ...] = ()
    if settings is None or base is None:
        model, words = load_model(str(source), dtype=_loaded_as(dtype)), "whole model"
    else:
        model, known = _with_adapter(source, base, revision, _loaded_as(dtype))
        words = f"adapter of rank {settings.get('r')} on '{base}'"
        if known:
            words += ", whose weights are those it was trained on"
        else:
            notes = (
                f"'{source}' does not say which weights of '{base}' it was trained on: names and sizes fit, and "
                "no more is known",
            )
    if (source / MANIFEST).is_file():
        words += f"; checkpoint '{source.name}', every file as it was written"
    require_embedded(tokenizer, causal_lm_of(model).get_input_embeddings().weight.shape[0])
    saved = save_final(
        model,
        tokenizer,
        output,
        dtype=None if dtype is None else DTYPES[dtype],
        stop_token_ids=ids,
        keep_adapter=False,  # SOURCE has it
    )
    return Export(saved, words, _stops(output, tokenizer), notes)


# ---- what is there


def _require_free(output: Path, source: Path) -> None:
    """See that nothing stands where the model goes, nor where it is made."""
    if os.path.lexists(output):
        raise ModelError(
            f"'{output}' is there already, and nothing is overwritten: name a folder that is not"
        )
    partial = output.with_name(output.name + PARTIAL)
    if os.path.lexists(partial):
        raise ModelError(
            f"'{partial}' is there, where '{output}' would be made: name another folder, or move it aside"
        )
    above = next(path for path in output.absolute().parents if os.path.lexists(path))
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
        raise ModelError(f"'{output}' cannot be made: '{above}' is no folder, or not yours to write to")
    if source.resolve() in output.resolve().parents:
        raise ModelError(f"'{output}' lies in SOURCE, which stays as it is: name a folder outside of it")


def _has_adapter(source: Path) -> bool:
    """Whether a folder holds an adapter; if not, it holds a model.

    Raises:
        ModelError: it holds neither, or both, or parts of weights, or pickles in their place.
        CheckpointError: it is a checkpoint, and not as it was written.
    """
    if not source.is_dir():
        found = "is a file" if source.exists() else "is not there"
        raise ModelError(f"'{source}' {found}: {WANTED}")
    model = next((name for name in (WEIGHTS, INDEX) if (source / name).is_file()), None)
    has_weights = (source / ADAPTER_WEIGHTS).is_file()
    if model is None and not has_weights and (parts := _parts_of_weights(source)):
        raise ModelError(
            f"'{source}' holds weights in parts, as processes shared them out ('{parts.name}'): gather them first, "
            "with the tool that wrote them (FSDP: `accelerate merge-weights`), and give the whole model's folder. "
            "holdfast's own checkpoints are whole"
        )
    if (source / MANIFEST).is_file() or (source / FINGERPRINT).is_file():
        require_verified(source)
    if not (source / ADAPTER).is_file():
        if model is None and not (source / "config.json").is_file():
            raise ModelError(f"'{source}' holds neither an adapter nor a model: {_instead(source)}")
        return False
    if model is not None:
        raise ModelError(
            f"'{source}' holds an adapter ({ADAPTER}) and a model ({model}): move the one that you do not mean "
            "to a folder of its own"
        )
    if not has_weights:
        pickles = pickles_in(source)
        raise ModelError(
            f"'{source}' has no {ADAPTER_WEIGHTS} beside {ADAPTER}"
            + (f" (it holds pickles, which are never opened: {pickles})" if pickles else "")
            + ": give the adapter as safetensors"
        )
    return True


def _parts_of_weights(source: Path) -> Path | None:
    """A file or folder by whose name FSDP's or DeepSpeed's shared-out weights are known."""
    patterns = ("*.distcp", "pytorch_model_fsdp_*", "zero_pp_rank_*", "global_step*")
    return next((path for pattern in patterns for path in sorted(source.glob(pattern))), None)


def _instead(source: Path) -> str:
    """What to give in the place of a run's folder, or a stage's; else what there is to give."""
    found: list[Path] = [path for path in (source / "final",) if (path / "config.json").is_file()]
    for folder in (source, source / "sft", source / "align"):
        if folder.is_dir():
            found += CheckpointStore(folder).checkpoints()[-1:]
    return f"give {' or '.join(repr(str(path)) for path in found)}" if found else WANTED


def _adapter_settings(source: Path) -> dict[str, Any]:
    """An adapter's configuration, of a kind that can be merged.

    Raises:
        ModelError: it is of another.
    """
    settings = read_object(source / ADAPTER)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"'{source / ADAPTER}' is of peft_type {settings.get('peft_type')!r}; what is merged here is LoRA"
        )
    if settings.get("megatron_config"):  # PEFT would import the module that it names
        raise ModelError(f"'{source / ADAPTER}' has a megatron_config: such adapters are not merged here")
    return settings


# ---- the base and the adapter on it


def _base_of(
    source: Path, settings: dict[str, Any], base: str | None, revision: str | None
) -> tuple[str, str | None]:
    """The base's name and revision: as given, or as the adapter says."""
    if base is not None:
        return base, revision
    named = settings.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ModelError(f"'{source / ADAPTER}' does not name a base: give it with --base")
    own = settings.get("revision")
    return named, revision or (own if isinstance(own, str) else None)


def _require_plain(name: str, revision: str | None) -> None:
    """See that a model is there, and that its weights are the numbers themselves.

    Raises:
        ModelError: they are quantized; no such model.
    """
    quantized = getattr(read_config(name, revision=revision), "quantization_config", None)
    if quantized is not None:
        method = dict(quantized if isinstance(quantized, dict) else vars(quantized)).get("quant_method")
        raise ModelError(
            f"the weights of '{name}' are quantized ({getattr(method, 'value', method)}): export takes plain ones; "
            "give the model as it was before"
        )


def _loaded_as(dtype: str | None) -> str:
    """The dtype to load in. A configuration may name a narrower one than the file has: float32 loses nothing."""
    return "float32" if dtype == "float32" else "auto"


def _with_adapter(source: Path, base: str, revision: str | None, otherwise: str) -> tuple[PeftModel, bool]:
    """The base under its adapter, and whether its weights are known to be those that were trained on.

    A run may have loaded them in another dtype than they are stored in; the digest tells which.

    Args:
        otherwise: the dtype to load the base in where there is no digest.

    Raises:
        ModelError: the adapter does not fit, or the digest is of other weights.
    """
    fields = read_object(source / FINGERPRINT) if (source / FINGERPRINT).is_file() else None
    if fields is None:
        return _attached(source, base, revision, otherwise), False
    for dtype in _dtypes(fields):
        model = _attached(source, base, revision, dtype)
        if weights_digest(model) == fields.get("base_weights"):
            return model, True
        del model  # two do not have to fit in memory
    raise ModelError(
        f"'{base}' does not have the weights that '{source}' was trained on ({FINGERPRINT} has another SHA-256): name "
        "the right one with --base and --revision. If the run quantized them (model.quantization), go on with it to "
        "its end (--resume), which saves them as the numbers that they stood for"
    )


def _dtypes(fields: dict[str, Any]) -> Iterator[str]:
    """What a run may have loaded its base in, the likeliest first."""
    first = "float32" if fields.get("precision") == "no" else "auto"
    yield first
    yield from (name for name in ("auto", "float32", "bfloat16", "float16") if name != first)


def _attached(source: Path, base: str, revision: str | None, dtype: str) -> PeftModel:
    """The base with the adapter on it, as in training: what was trained is in float32.

    Raises:
        ModelError: they do not fit, or a weight of the file has no place, or a place no weight.
    """
    model = load_model(base, revision=revision, dtype=dtype)
    tied = is_tied(model)
    with faults_named(f"the adapter '{source}' does not fit on '{base}'"):
        adapted: Any = PeftModel.from_pretrained(model, str(source), is_trainable=True)
        require_mergeable(adapted, tied)
        train_in_float32(adapted)
        _give_weights(adapted, source / ADAPTER_WEIGHTS)
    adapted.eval()
    return adapted


@torch.no_grad()
def _give_weights(model: PeftModel, path: Path) -> None:
    """Give the adapter the weights of its file, each of them; PEFT would warn of one that is missing, and go on."""
    live = own_weights(model)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if missing := sorted(live.keys() - names):
            raise ModelError(f"'{path}' lacks '{missing[0]}' (and {len(missing) - 1} more of the adapter's)")
        for name in sorted(names & live.keys()):
            live[name].copy_(file.get_tensor(name))
        # of an adapter whose tokens were added to the base's, PEFT has saved, and loaded, the embeddings too
        others = {**model.state_dict(), **own_weights(model)}
        for name in sorted(names):
            if name not in others:
                raise ModelError(f"'{path}' holds '{name}', which the model has no place for")
            found = file.get_tensor(name).to(others[name].dtype)
            if not torch.equal(others[name].cpu(), found):
                raise ModelError(f"'{name}' of '{path}' did not reach the model")


# ---- the tokenizer


def _tokenizer(source: Path, base: str | None, revision: str | None) -> PreTrainedTokenizerBase:
    """The source's own, or the base's where the source has none."""
    if base is None or any((source / name).is_file() for name in OF_A_TOKENIZER):
        return load_tokenizer(str(source))
    return load_tokenizer(base, revision=None if folder_of(base) else revision)


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token, as it is written."""
    found: int | None = tokenizer.get_vocab().get(token)
    if found is None:
        raise ConfigError(
            f"--stop-token: the tokenizer has no token '{token}'"
            f"{did_you_mean(token, tokenizer.get_added_vocab())}"
        )
    return found


def _stops(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Where generation from a saved model stops."""
    path = folder / "generation_config.json"
    ids = read_object(path).get("eos_token_id") if path.is_file() else None
    ids = [ids] if isinstance(ids, int) else list(ids or [])
    return tuple(str(tokenizer.convert_ids_to_tokens(number)) for number in ids)
