"""Templates that fool naive code: what must come out right, and what must be refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from holdfast.data.chat import encode_pairs
from holdfast.data.records import preference_record
from holdfast.data.rendering import ChatRenderer
from holdfast.errors import DataError
from tests.data.conftest import MakeTokenizer
from tests.data.encoding import ANY_LENGTH, BOS, encode, fault, message, pair

# --- templates that fool naive code ------------------------------------------------------------------


def test_template_that_trims_content(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(content="m['content'] | trim")
    encoded = encode(pair("  Hi ", "\n yes \n", "no"), tokenizer)
    assert tokenizer.decode(encoded.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.chosen_ids) == "yes<|im_end|>"


def test_template_that_adds_a_default_system_turn(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="<|im_start|>system\nBe kind.<|im_end|>\n")
    encoded = encode(pair(), tokenizer)
    assert tokenizer.decode(encoded.prompt_ids).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    assert tokenizer.decode(encoded.chosen_ids) == "yes<|im_end|>"


def test_template_whose_generation_prompt_is_not_the_rendered_turn(
    make_tokenizer: MakeTokenizer,
) -> None:
    ask = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    problem = fault(pair(), make_tokenizer(ask=ask))
    assert problem.reason == "template"
    assert "<think>" in problem.detail  # the prompt as rendered for generation
    assert "assistant\\nyes<|im_end|>" in problem.detail  # and the conversation


def test_template_that_strips_answers_alone(make_tokenizer: MakeTokenizer) -> None:
    """The prompt keeps its whitespace; sides that differ only in what is stripped are no pair."""
    content = "(m['content'].strip() if m['role'] == 'assistant' else m['content'])"
    tokenizer = make_tokenizer(content=content, merges=[("Ċ", "Ċ")])
    encoded = encode(pair(" Hi ", "\nyes\n", "no"), tokenizer)
    assert "user\n Hi <|im_end|>" in tokenizer.decode(encoded.prompt_ids)
    assert tokenizer.decode(encoded.chosen_ids) == "yes<|im_end|>"


def test_template_that_opens_the_last_answer_with_empty_reasoning(make_tokenizer: MakeTokenizer) -> None:
    """As Qwen3's: the rendered turn has more than the generation prompt, and what it adds is trained."""
    last = "('<think>\n\n</think>\n\n' if m['role'] == 'assistant' and loop.last else '') + m['content']"
    tokenizer = make_tokenizer(content=f"({last})")
    encoded = encode(pair(), tokenizer)
    assert tokenizer.decode(encoded.prompt_ids).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(encoded.chosen_ids) == "<think>\n\n</think>\n\nyes<|im_end|>"


def test_template_that_drops_earlier_reasoning_from_a_prompt(make_tokenizer: MakeTokenizer) -> None:
    content = "(m['content'] if loop.last else m['content'].split('</think>')[-1])"
    tokenizer = make_tokenizer(content=content)
    record = preference_record(
        "rows.jsonl:7",
        [message("user", "a"), message("assistant", "hm</think>one"), message("user", "b")],
        [message("assistant", "ha</think>two")],
        [message("assistant", "three")],
    )
    encoded = encode(record, tokenizer)
    assert "one<|im_end|>" in tokenizer.decode(encoded.prompt_ids)
    assert "hm" not in tokenizer.decode(encoded.prompt_ids)
    assert tokenizer.decode(encoded.chosen_ids) == "ha</think>two<|im_end|>"


def test_template_that_keeps_reasoning_until_the_answer_is_there(make_tokenizer: MakeTokenizer) -> None:
    """The prompt asked with is another than the one trained behind: earlier reasoning goes once answered."""
    kept = "(m['content'] if add_generation_prompt else m['content'].split('</think>')[-1])"
    record = preference_record(
        "rows.jsonl:7",
        [message("user", "a"), message("assistant", "hm</think>one"), message("user", "b")],
        [message("assistant", "two")],
        [message("assistant", "three")],
    )
    problem = fault(record, make_tokenizer(content=kept))
    assert "the prompt as rendered for generation is not how the whole conversation begins" in problem.detail
    assert "hm</think>one" in problem.detail
    assert problem.check == "prompt_is_prefix"


def test_sides_that_render_alike_name_what_the_template_drops(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(content="m['content'].split('</think>')[-1]")
    problem = fault(pair(chosen="<think>one</think>yes", rejected="<think>two</think>yes"), tokenizer)
    assert (problem.reason, problem.check) == ("template", "completion_is_rendered")
    assert "the rendering lacks '<think>one</think>yes'" in problem.detail
    assert "so 'chosen' and 'rejected' render to the same tokens" in problem.detail
    blind = make_tokenizer(content="m['content'].split() | join(' ')")
    problem = fault(pair(chosen="a  b", rejected="a b"), blind)
    assert problem.reason == "equal_pair"
    assert "the chat template drops what tells them apart (whitespace" in problem.detail


# --- a header that is trained ------------------------------------------------------------------------


def test_template_that_ignores_the_generation_prompt(make_tokenizer: MakeTokenizer) -> None:
    record = pair()

    def header(**options: Any) -> str:
        renderer = ChatRenderer(make_tokenizer(**options))
        return renderer.trained_header(record.prompt, record.chosen[0], record)

    assert header(ask="") == "<|im_start|>assistant"
    assert header() == ""
    # without a header there is none to train
    assert header(turn="{{ m['content'] + '<|im_end|>' }}", ask="") == ""
    refuses = "{% if not add_generation_prompt and messages[-1]['role'] == 'user' %}{{ 1 // 0 }}{% endif %}"
    assert header(before=refuses) == ""
    calls = message("assistant", "") | {"tool_calls": []}
    assert ChatRenderer(make_tokenizer(ask="")).trained_header(record.prompt, calls, record) == ""


def test_template_that_refuses_a_conversation(make_tokenizer: MakeTokenizer) -> None:
    refusal = "{{ raise_exception('System role not supported') }}"
    before = "{% if messages[0]['role'] == 'system' %}" + refusal + "{% endif %}"
    record = preference_record(
        "rows.jsonl:7",
        [message("system", "Be brief."), message("user", "Hi")],
        [message("assistant", "yes")],
        [message("assistant", "no")],
    )
    problem = fault(record, make_tokenizer(before=before))
    assert problem.reason == "template"
    assert "System role not supported" in problem.detail


def test_no_template_is_an_error_that_says_what_to_do(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.name_or_path = "some/base-model"
    with pytest.raises(DataError, match=r"'some/base-model' has no chat template.* Set `chat_template`"):
        encode_pairs([pair()], tokenizer, ANY_LENGTH)


def test_tools_and_template_inputs_reach_the_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="{{ tools }}|{{ mood }}|{{ place }}|")
    record = pair(tools=[{"name": "add"}], chat_template_kwargs={"mood": "calm"})
    encoded = encode(record, tokenizer, chat_template_kwargs={"mood": "wild", "place": "here"})
    assert tokenizer.decode(encoded.prompt_ids).startswith("[{'name': 'add'}]|calm|here|")


# --- shared text is tokenized once -------------------------------------------------------------------

pieces = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<s>", "<", "|>", "a", " a", "\n", "é"]), max_size=8
)


@pytest.mark.parametrize("options", [{}, {"merges": [("Ċ", "Ċ"), ("Ġ", "a")]}, BOS])
@given(shared=pieces, ends=st.lists(pieces, min_size=1, max_size=4))
def test_tokens_of_a_group_are_those_of_its_texts(
    make_tokenizer: MakeTokenizer, options: dict[str, Any], shared: list[str], ends: list[list[str]]
) -> None:
    chat = ChatRenderer(make_tokenizer(**options))
    texts = ["".join(shared + end) for end in ends]
    assert chat.tokenize_groups([texts, [], texts[:1]]) == [
        chat.tokenize(texts),
        [],
        chat.tokenize(texts[:1]),
    ]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@given(shared=pieces, ends=st.lists(pieces, min_size=1, max_size=4))
def test_tokens_of_a_group_where_words_carry_their_space(
    scheme: str, shared: list[str], ends: list[list[str]]
) -> None:
    """As SentencePiece's: a space is put before a text's first word, which must not happen anew at a cut."""
    letters = {letter: n for n, letter in enumerate(["▁", "a", "▁a", "<", "|", ">", "\n", "é", "i", "s"])}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[("▁", "a")], unk_token="<"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    chat = ChatRenderer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>"))
    texts = ["".join(shared + end) for end in ends]
    assert chat.tokenize_groups([texts]) == [chat.tokenize(texts)]


def test_what_a_group_shares_is_tokenized_once(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ChatRenderer(tokenizer)
    asked: list[str] = []
    monkeypatch.setattr(chat, "tokenize", lambda texts: asked.extend(texts) or [[0]] * len(texts))
    chat.tokenize_groups([["<s>long<|im_end|>a", "<s>long<|im_end|>a yes", "<s>long<|im_end|>a no"]])
    assert asked == ["<s>long", "<|im_end|>a", "<|im_end|>a yes", "<|im_end|>a no"]


def test_tokens_that_overlap_or_take_their_spaces_cut_nothing(make_tokenizer: MakeTokenizer) -> None:
    text = "a<pad>b<|im_start|>c<|im_end|>d"

    def shared(*tokens: AddedToken) -> str:
        tokenizer = make_tokenizer()
        tokenizer.add_tokens(list(tokens), special_tokens=True)
        return ChatRenderer(tokenizer)._shared_head([text, text + "e"])

    assert shared() == "a<pad>b<|im_start|>c"
    # begins where `<|im_end|>` cannot: the cut is at its own beginning
    assert shared(AddedToken("c<|im", special=True)) == "a<pad>b<|im_start|>"
    # takes the spaces before it, and hides `<|im_end|>`: the cut is at the token before
    assert shared(AddedToken("c<|im_end|>", special=True, lstrip=True)) == "a<pad>b"
    assert shared(AddedToken("b<|im_start|>c<|im_end|>", special=True, lstrip=True)) == "a"
