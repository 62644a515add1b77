"""Small models from scratch, in the shapes of real families: for the demo, the tests and trial runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from holdfast.errors import ConfigError, did_you_mean

_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
}


def _family_settings(family: str, head_size: int, layers: int) -> dict[str, Any]:
    """What sets the family apart, scaled down: which layers slide, what is capped, what is tied."""
    alternating = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    if family == "qwen3":
        return {"tie_word_embeddings": True}
    if family == "llama":
        return {"tie_word_embeddings": False}
    gemma = {
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": head_size,
        "layer_types": alternating,
        "sliding_window": 8,
    }
    if family == "gemma2":
        gemma |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return gemma


def tiny_config(
    family: str, vocab_size: int, *, hidden_size: int = 64, layers: int = 2, **overrides: Any
) -> PreTrainedConfig:
    """The configuration behind `tiny_model`; see there."""
    if family not in _CONFIGS:
        raise ConfigError(f"no tiny model of family '{family}'{did_you_mean(family, _CONFIGS)}")
    if hidden_size < 16 or hidden_size % 16:
        raise ConfigError(f"hidden_size must be a multiple of 16, not {hidden_size}")
    head_size = 32 if hidden_size % 64 == 0 else 16
    heads = hidden_size // head_size
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        # Grouped queries wherever the heads can be paired, as in the real families.
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "head_dim": head_size,
        "max_position_embeddings": 2048,
        # A family's default ids mean nothing in another vocabulary: state them, or have none.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **_family_settings(family, head_size, layers),
    }
    config_class = _CONFIGS[family]
    known = vars(config_class())
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{config_class.__name__} has no field '{name}'{did_you_mean(name, known)}")
    return config_class(**(settings | overrides))


def tiny_model(
    family: str,
    vocab_size: int,
    *,
    hidden_size: int = 64,
    layers: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> PreTrainedModel:
    """A causal language model with random weights, in training mode on the CPU.

    Families: `qwen3` (tied head), `llama` (untied head), `gemma2` (tied, sliding and full layers in turn,
    attention logits capped at 50 and final logits at 30), `gemma3` (its text part: tied, sliding and full
    layers in turn). Sliding windows are 8 tokens. `overrides` are fields of the family's configuration, such
    as `tie_word_embeddings=True`, `sliding_window=4` or `eos_token_id=2`.

    The weights depend on `seed` alone, and the global random state is left as it was.

    Raises ConfigError for an unknown family or field, or a `hidden_size` that heads cannot share.
    """
    config = tiny_config(family, vocab_size, hidden_size=hidden_size, layers=layers, **overrides)
    # Soft-capped attention exists in the eager implementation only.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    return model.train()


PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_bpe_tokenizer(
    texts: Iterable[str], vocab_size: int, *, max_length: int = 2048
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, with a ChatML template.

    A turn is `<|im_start|>role\\ncontent<|im_end|>`; `<|im_end|>` is the eos token and closes every turn, and
    nothing follows the last one; `<|pad|>` is a token of its own; there is no bos token. Any text
    round-trips. A newline never merges with its neighbours, so the tokens of a rendered prompt are a prefix of
    the tokens of prompt and completion, whatever the completion starts with.

    The vocabulary has at most `vocab_size` tokens (fewer when `texts` hold too few pairs to merge).

    Raises ConfigError when `vocab_size` cannot hold the 256 bytes and the 3 special tokens.
    """
    special = [PAD, TURN_START, TURN_END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(special):
        raise ConfigError(
            f"vocab_size must be at least {len(alphabet) + len(special)} "
            f"(256 bytes and {len(special)} special tokens), not {vocab_size}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, special=True) for token in special],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHATML_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
