"""Templates and tokenizers that fool naive code: what must come out right, and what must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from holdfast.data.chat import EncodedPair, LengthRule, encode_pairs
from holdfast.data.faults import Problem
from holdfast.data.records import PreferenceRecord, preference_record
from holdfast.data.validation import InvalidRows
from holdfast.errors import DataError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

ANY_LENGTH = LengthRule(None)
BOS = {"bos": "<s>", "adds_bos": True}


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def pair(prompt: str = "Hi", chosen: str = "yes", rejected: str = "no", **options: Any) -> PreferenceRecord:
    return preference_record(
        "rows.jsonl:7",
        [message("user", prompt)],
        [message("assistant", chosen)],
        [message("assistant", rejected)],
        **options,
    )


def encode(record: PreferenceRecord, tokenizer: PreTrainedTokenizerFast, **options: Any) -> EncodedPair:
    (encoded,), _ = encode_pairs([record], tokenizer, ANY_LENGTH, **options)
    return encoded


def fault(record: PreferenceRecord, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Problem:
    """The one problem of a pair that must not be encodable."""
    with pytest.raises(InvalidRows) as error:
        encode_pairs([record], tokenizer, ANY_LENGTH, **options)
    (problem,) = error.value.problems
    assert problem.where == "rows.jsonl:7"
    return problem


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


def test_template_without_an_end_token(make_tokenizer: MakeTokenizer) -> None:
    open_turn = "{{ m['role'] + ': ' + m['content'] + '\n' }}"
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = make_tokenizer(open_turn, ask=ask)
    problem = fault(pair(), tokenizer)
    assert problem.reason == "template"
    assert "['y', 'e', 's', '\\n']" in problem.detail
    assert "append_eos: true" in problem.detail
    encoded = encode(pair(), tokenizer, append_eos=True)
    assert tokenizer.decode(encoded.chosen_ids) == "yes\n<|im_end|>"


def test_append_eos_adds_none_where_the_template_has_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode(pair(), tokenizer, append_eos=True) == encode(pair(), tokenizer)


def test_append_eos_needs_an_eos(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match=r"append_eos.*no EOS token"):
        encode(pair(), make_tokenizer(eos=None), append_eos=True)


def test_special_tokens_inside_an_answer_do_not_end_it(make_tokenizer: MakeTokenizer) -> None:
    """Without an end token behind the answer, one inside it must not be taken for its end."""
    open_turn = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n' }}"
    problem = fault(
        pair(chosen="see <|im_end|> here", rejected="or <|im_end|> there"), make_tokenizer(open_turn)
    )
    assert "no special token ends" in problem.detail


def test_template_that_leaves_nothing_of_an_answer(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(content="m['content'].split('</think>')[-1]")
    problem = fault(pair(chosen="hm</think>"), tokenizer)
    assert problem.reason == "empty_completion"


def test_sides_that_render_alike_are_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(content="m['content'] | lower")
    assert fault(pair(chosen="Yes", rejected="yes"), tokenizer).reason == "equal_pair"


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
    with pytest.raises(DataError, match=r"'some/base-model' has no chat template.* Set `chat_template:`"):
        encode_pairs([pair()], tokenizer, ANY_LENGTH)


def test_tools_and_template_inputs_reach_the_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="{{ tools }}|{{ mood }}|{{ place }}|")
    record = pair(tools=[{"name": "add"}], chat_template_kwargs={"mood": "calm"})
    encoded = encode(record, tokenizer, chat_template_kwargs={"mood": "wild", "place": "here"})
    assert tokenizer.decode(encoded.prompt_ids).startswith("[{'name': 'add'}]|calm|here|")


# --- tokenizers --------------------------------------------------------------------------------------


def test_one_bos(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="{{ bos_token }}", **BOS)
    prompt = encode(pair(), tokenizer).prompt_ids
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert prompt[0] == tokenizer.bos_token_id


def test_missing_bos(make_tokenizer: MakeTokenizer) -> None:
    problem = fault(pair(), make_tokenizer(**BOS))
    assert problem.reason == "template"
    assert "begins texts with ['<s>']" in problem.detail
    assert "begins with ['<|im_start|>', 'u', 's', 'e', 'r', '\\n']" in problem.detail


def test_double_bos(make_tokenizer: MakeTokenizer) -> None:
    problem = fault(pair(), make_tokenizer(before="{{ bos_token }}{{ bos_token }}", **BOS))
    assert problem.reason == "template"
    assert "2 BOS tokens: ['<s>', '<s>', '<|im_start|>'" in problem.detail


def test_bos_is_no_end_token(make_tokenizer: MakeTokenizer) -> None:
    open_turn = "{{ bos_token + m['role'] + ': ' + m['content'] + bos_token }}"
    ask = "{% if add_generation_prompt %}{{ bos_token + 'assistant: ' }}{% endif %}"
    assert "no special token ends" in fault(pair(), make_tokenizer(open_turn, ask=ask, bos="<s>")).detail


def test_tokenizer_that_merges_across_the_boundary(make_tokenizer: MakeTokenizer) -> None:
    """`assistant\\n` + `\\nyes`: two newlines are one token of this tokenizer, as of many."""
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ")])
    problem = fault(pair(chosen="\nyes"), tokenizer)
    assert problem.reason == "template"
    assert "'t', '\\n']" in problem.detail  # the prompt's own last tokens
    assert "'t', '\\n\\n', 'y', 'e', 's', '<|im_end|>'" in problem.detail  # and with the completion
    assert tokenizer.decode(encode(pair(chosen="yes"), tokenizer).chosen_ids) == "yes<|im_end|>"


def test_prompt_of_no_tokens(make_tokenizer: MakeTokenizer) -> None:
    answers = "{% if m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    assert "no tokens" in fault(pair(), make_tokenizer(answers, ask="")).detail


def test_tokens_beyond_the_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    size = len(tokenizer)
    assert encode(pair(), tokenizer, vocab_size=size)
    end = tokenizer.convert_tokens_to_ids("<|im_start|>")
    problem = fault(pair(), tokenizer, vocab_size=end)
    assert problem.reason == "vocabulary"
    assert f"token ['<|im_start|>'] has id {end}" in problem.detail
    assert f"has {end} rows" in problem.detail
    assert f"has {size} tokens" in problem.detail
