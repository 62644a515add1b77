"""The model a run starts from, without its weights: shapes and dtypes on PyTorch's meta device, no memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from holdfast.errors import ConfigError
from holdfast.experiments.config import RunConfig
from holdfast.models.loading import read_config
from holdfast.models.tiny import tiny_config


def configuration_of(config: RunConfig, vocabulary: int | None = None) -> Any:
    """The configuration of the model that a run starts from: the named one's, or that of one made from scratch.

    Args:
        vocabulary: of a model from scratch, where its tokenizer is made; None: as configured.

    Raises:
        ModelError, ConfigError: as `read_config`.
    """
    scratch = config.model.from_scratch
    if scratch is None:
        assert config.model.name is not None
        return read_config(
            config.model.name,
            revision=config.model.revision,
            trust_remote_code=config.model.trust_remote_code,
        )
    return tiny_config(
        scratch.family,
        vocabulary or scratch.vocab_size,
        hidden_size=scratch.hidden_size,
        layers=scratch.layers,
        max_position_embeddings=max(2048, config.data.max_length),
    )


def model_without_weights(config: RunConfig, dtype: str, vocabulary: int | None) -> Any:
    """The model as transformers builds it from its configuration alone.

    Args:
        dtype: of its weights: `auto` (the checkpoint's) or a name of torch's.
        vocabulary: see `configuration_of`.

    Raises:
        ModelError: its configuration cannot be read.
        ConfigError: it cannot be built from that.
    """
    settings = configuration_of(config, vocabulary)
    if dtype == "auto":
        named = getattr(settings, "dtype", None) or getattr(settings.get_text_config(), "dtype", None)
    else:
        named = getattr(torch, dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                settings, dtype=named or torch.float32, trust_remote_code=False
            )
        model.tie_weights()
    except Exception as error:  # a configuration that somebody else wrote can fail in any way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"the model cannot be built from its configuration: {reason}") from error
    return model
