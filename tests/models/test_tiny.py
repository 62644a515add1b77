"""Small models have their family's traits, and their weights come from the seed alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from holdfast.errors import ConfigError
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model

FAMILIES = ["qwen3", "llama", "gemma2", "gemma3"]
TEXTS = [
    "How do magnets work?",
    "A magnet has two poles.\n\nLike poles repel; unlike poles attract.",
    "def f(x):",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_is_finite_and_weights_are_seeded(family: str) -> None:
    tokens = torch.arange(24).reshape(2, 12)
    one, same, other = (tiny_model(family, 40, hidden_size=32, seed=seed).eval() for seed in (1, 1, 2))
    logits = one(tokens).logits
    assert logits.shape == (2, 12, 40)
    assert logits.isfinite().all()
    assert torch.equal(logits, same(tokens).logits)
    assert not torch.equal(logits, other(tokens).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_global_random_state_is_left_alone(family: str) -> None:
    before = torch.get_rng_state()
    tiny_model(family, 40, hidden_size=32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("family", "tied"), [("qwen3", True), ("llama", False), ("gemma2", True), ("gemma3", True)]
)
def test_heads_are_tied_as_the_configuration_says(family: str, tied: bool) -> None:
    def shares_weight(**overrides: bool) -> bool:
        model = tiny_model(family, 40, hidden_size=32, **overrides)
        return model.get_output_embeddings().weight is model.get_input_embeddings().weight

    assert shares_weight() is tied
    assert shares_weight(tie_word_embeddings=not tied) is not tied


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_sliding_layers_forget_what_is_out_of_the_window(family: str) -> None:
    """One sliding layer with a window of 4: position 9 sees 6 to 9, so a change at 5 is invisible there."""
    assert tiny_model(family, 40, hidden_size=32).config.sliding_window == 8
    model = tiny_model(family, 40, hidden_size=32, layers=1, sliding_window=4).eval()
    tokens = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        base = model(tokens).logits[0, 9]
        for place, visible in [(5, False), (6, True)]:
            changed = tokens.clone()
            changed[0, place] = 39
            assert torch.equal(model(changed).logits[0, 9], base) is not visible


def test_gemma2_caps_its_logits() -> None:
    """With caps far below the raw values the output must stay within them: |cap * tanh(x / cap)| < cap."""
    settings = {"hidden_size": 32, "initializer_range": 2.0}
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        raw = tiny_model("gemma2", 40, final_logit_softcapping=None, **settings).eval()(tokens).logits
        capped = tiny_model("gemma2", 40, final_logit_softcapping=5.0, **settings).eval()(tokens).logits
    assert raw.abs().max() > 10
    assert capped.abs().max() <= 5
    torch.testing.assert_close(capped, 5 * torch.tanh(raw / 5))
    default = tiny_model("gemma2", 40, hidden_size=32).config
    assert (default.attn_logit_softcapping, default.final_logit_softcapping) == (50.0, 30.0)
    assert default._attn_implementation == "eager"


def test_size_of_the_demo_model() -> None:
    model = tiny_model("qwen3", 64, hidden_size=128, layers=4)
    # Embeddings 64x128; a layer: q and o 128x128, k and v 128x64, three MLP matrices 128x384, two norms of
    # 128, q and k norms of 32; the last norm of 128.
    layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384 + 2 * 128 + 2 * 32
    assert sum(parameter.numel() for parameter in model.parameters()) == 64 * 128 + 4 * layer + 128 == 796_032


def test_dtype_and_mode() -> None:
    model = tiny_model("llama", 40, hidden_size=32, dtype=torch.float64)
    assert model.training
    assert model(torch.arange(4).unsqueeze(0)).logits.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_special_ids_are_none_unless_given() -> None:
    config = tiny_model("llama", 40, hidden_size=32).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    assert tiny_model("llama", 40, hidden_size=32, eos_token_id=3).config.eos_token_id == 3


def test_errors_name_the_fault() -> None:
    with pytest.raises(ConfigError, match="did you mean 'qwen3'"):
        tiny_model("qwen", 40)
    with pytest.raises(ConfigError, match=r"no field 'slidng_window' \(did you mean 'sliding_window'"):
        tiny_model("gemma3", 40, slidng_window=4)
    with pytest.raises(ConfigError, match="multiple of 16, not 20"):
        tiny_model("qwen3", 40, hidden_size=20)


# --- the BPE tokenizer ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_bpe_tokenizer(TEXTS * 3, 280)


def render(tokenizer: PreTrainedTokenizerBase, *contents: str, generate: bool = False) -> str:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) <= 280
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.bos_token is None
    assert tokenizer("<|im_start|>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<|im_start|>")]


def test_the_first_merge_by_hand() -> None:
    """In `abab ab` the pair a-b stands three times, every other pair once; 259 tokens are there before."""
    before, after = (set(tiny_bpe_tokenizer(["abab ab"], size).get_vocab()) for size in (259, 260))
    assert after - before == {"ab"}


def test_training_is_deterministic(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tiny_bpe_tokenizer(TEXTS * 3, 280).get_vocab() == tokenizer.get_vocab()


def test_template_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    assert render(tokenizer, "Hi", generate=True) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (
        render(tokenizer, "Hi", "Ho") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>"
    )


@given(prompt=st.text(max_size=30), completion=st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_round_trips_and_the_prompt_is_a_prefix(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> None:
    assert tokenizer.decode(tokenizer(completion)["input_ids"]) == completion
    prompt_ids = tokenizer(render(tokenizer, prompt, generate=True))["input_ids"]
    full_ids = tokenizer(render(tokenizer, prompt, completion))["input_ids"]
    assert full_ids[: len(prompt_ids)] == prompt_ids
    assert full_ids[-1] == tokenizer.eos_token_id


def test_newlines_never_merge() -> None:
    """Were two newlines one token, a completion that begins with one would change the prompt's tokens."""
    greedy = tiny_bpe_tokenizer(["a\n\n b\n c"] * 20, 400)
    assert [token for token in greedy.get_vocab() if "Ċ" in token] == ["Ċ"]
    prompt_ids = greedy(render(greedy, "a\n\n", generate=True))["input_ids"]
    assert greedy(render(greedy, "a\n\n", "\n b"))["input_ids"][: len(prompt_ids)] == prompt_ids


def test_too_small_a_vocabulary() -> None:
    assert len(tiny_bpe_tokenizer(TEXTS, 259)) == 259
    with pytest.raises(ConfigError, match="at least 259"):
        tiny_bpe_tokenizer(TEXTS, 258)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_beside_any_family_it_loads_the_same(
    family: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The model type in a folder's config must not lead AutoTokenizer to rebuild another tokenizer."""
    model = tiny_model(family, len(tokenizer), hidden_size=32, eos_token_id=tokenizer.eos_token_id).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = render(tokenizer, "How do poles\n\n work, é?", " Like magnets.")
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids) == text
    assert loaded.chat_template == tokenizer.chat_template
    tokens = torch.tensor([ids])
    with torch.no_grad():
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
        torch.testing.assert_close(reloaded(tokens).logits, model(tokens).logits)
