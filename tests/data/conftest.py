"""Tokenizers made on the spot: one token a byte unless told otherwise, so that ids can be worked by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

TURN = "{{ '<|im_start|>' + m['role'] + '\n' + CONTENT + '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def build_tokenizer(
    turn: str | None = TURN,
    *,
    content: str = "m['content']",
    before: str = "",
    ask: str = ASK,
    merges: Sequence[tuple[str, str]] = (),
    texts: Iterable[str] | None = None,
    bos: str | None = None,
    eos: str | None = "<|im_end|>",
    pad: str = "<pad>",
    adds_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; special tokens follow the bytes and merges.

    The chat template is `before`, each message `m` as `turn` (`content` for CONTENT), and `ask`, the
    generation prompt; with `turn=None` there is none. The BPE has the given merges (a newline is spelled
    `Ċ`), or is trained on `texts`.
    """
    template = None
    if turn is not None:
        loop = "{% for m in messages %}" + turn.replace("CONTENT", content) + "{% endfor %}"
        template = before + loop + ask
    specials = [t for t in dict.fromkeys([bos, eos, pad, "<|im_start|>", "<|im_end|>"]) if t is not None]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=texts is not None)
    backend.decoder = decoders.ByteLevel()
    if texts is not None:
        trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad, chat_template=template
    )


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """`build_tokenizer`, for tests that need more than one."""
    return build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ChatML turns, a newline behind each end token (as Qwen's)."""
    return build_tokenizer()
