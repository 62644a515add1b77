"""Code that a model brings along: never run, unless it was asked for at one revision that cannot change.

A model whose family transformers does not know comes with Python files, and `auto_map` in its configuration names the
classes in them. Whoever can change the files runs code here, so the revision must say which code was read: for a name
on the hub a commit, in full; for a folder the digest of its Python files.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from holdfast.errors import ConfigError, ModelError
from holdfast.models.folder import folder_of, read_object

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
PINNED_KERNEL = re.compile(r"@[0-9a-f]{40}(:|$)")
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def require_pinned(name: str, revision: str | None) -> None:
    """See that a revision says which code it is.

    Raises:
        ConfigError: it does not.
    """
    if folder := folder_of(name):
        digest = code_digest(folder)
        if revision != digest:
            raise ConfigError(
                f"trust_remote_code: a folder's code is pinned by its digest, and revision is {revision!r}. Read the "
                f"Python files of '{folder}'; if you trust them, set revision to {digest}"
            )
    elif revision is None or not COMMIT.fullmatch(revision):
        raise ConfigError(
            f"trust_remote_code: runs the Python files of '{name}', so revision must be one commit (40 hexadecimal "
            f"digits), not {revision!r}: what a branch or tag names can change. Read the files at that commit first"
        )


def code_digest(folder: Path) -> str:
    """What pins the code of a folder: `sha256:` and the digest of the names and bytes of its Python files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(
            f"{path.relative_to(folder)}\n{len(content)}\n".encode(errors="backslashreplace") + content
        )
    return f"sha256:{digest.hexdigest()}"


def require_pinned_kernel(attention: str | None) -> None:
    """See that attention code on the hub (`owner/name@revision`), where that is asked for, is one commit's.

    Raises:
        ConfigError: it is not.
    """
    if attention is not None and is_kernel(attention) and not PINNED_KERNEL.search(attention):
        raise ConfigError(
            f"attention: '{attention}' is code on the hub, and which code is not said: write "
            f"{attention.partition('@')[0]}@COMMIT, with the 40 hexadecimal digits of the commit that you have read"
        )


def is_kernel(attention: Any) -> bool:
    """Whether an attention backend is code on the hub."""
    return isinstance(attention, str) and "/" in attention


def code_options(
    name: str, revision: str | None, trust: bool, *, of_tokenizer: bool = False
) -> dict[str, Any]:
    """The arguments of `from_pretrained` that say whether code of the model is run.

    Args:
        trust: whether the model's own code may run, at the pinned `revision`.
        of_tokenizer: the tokenizer's code, not the model's.

    Raises:
        ModelError: the model needs code, and was not given leave; or its code lies in another repository.
        ConfigError: leave was given, and the revision does not pin the code.
    """
    if trust:
        require_pinned(name, revision)
    settings = _tokenizer_settings(name, revision) if of_tokenizer else _settings(name, revision)
    kernel = next((settings[key] for key in ATTENTION if is_kernel(settings.get(key))), None)
    if kernel is not None:
        raise ModelError(
            f"the configuration of '{name}' names attention code on the hub ({kernel}), which is not run for a model's "
            "asking: choose `model.attention` (`sdpa`, `eager`, ...), and take the key out of config.json"
        )
    classes = _own_classes(
        settings, ("AutoTokenizer",) if of_tokenizer else ("AutoConfig", "AutoModelForCausalLM")
    )
    if not classes:
        return {"trust_remote_code": False}
    if elsewhere := next((own for own in classes if "--" in own), None):
        raise ModelError(
            f"'{name}' wants to run code of another repository ({elsewhere}), which no revision of its own pins: take "
            "a copy of the model that has its code beside it"
        )
    if trust:
        return {"trust_remote_code": True, "code_revision": None if folder_of(name) else revision}
    own = ", ".join(classes)
    if _needs_code(settings, of_tokenizer):
        raise ModelError(
            f"'{name}' needs code of its own to be run ({own}), and that was not allowed. If you have read the code "
            "and trust it, set `model.trust_remote_code: true`, and `model.revision` to "
            + (
                code_digest(folder)
                if (folder := folder_of(name))
                else "the commit that you have read (40 hexadecimal digits)"
            )
        )
    logger.warning(
        "'%s' brings code of its own (%s), which is not run: transformers knows the class", name, own
    )
    return {"trust_remote_code": False}


def _settings(name: str, revision: str | None) -> Mapping[str, Any]:
    if folder := folder_of(name):
        return read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    settings: dict[str, Any] = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
    return settings


def _tokenizer_settings(name: str, revision: str | None) -> Mapping[str, Any]:
    if folder := folder_of(name):
        path = folder / "tokenizer_config.json"
        return read_object(path) if path.is_file() else {}
    settings: dict[str, Any] = get_tokenizer_config(name, revision=revision)
    return settings


def _own_classes(settings: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """The classes that `auto_map` names for these, as `file.Class` or `owner/name--file.Class`."""
    listed = settings.get("auto_map")
    if isinstance(listed, list):  # an old form, of tokenizers alone
        listed = {"AutoTokenizer": listed}
    if not isinstance(listed, Mapping):
        return []
    found = [listed.get(name) for name in names]
    flat = [own for entry in found for own in (entry if isinstance(entry, list) else [entry])]
    return [own for own in flat if isinstance(own, str)]


def _needs_code(settings: Mapping[str, Any], of_tokenizer: bool) -> bool:
    """Whether no class of transformers' own does what the settings ask for."""
    if of_tokenizer:
        return not _is_known(settings.get("tokenizer_class"))
    kind, classes = settings.get("model_type"), settings.get("architectures")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    return not known or not any(map(_is_known, classes if isinstance(classes, list) else [kind]))


def _is_known(name: Any) -> bool:
    """Whether transformers has a class of this name."""
    return isinstance(name, str) and (name in CONFIG_MAPPING or name in dir(transformers))
