"""BOS, the boundary between prompt and answer, and the end of a turn, as templates and tokenizers make them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from holdfast.data.chat import encode_sft
from holdfast.data.validation import InvalidRows
from holdfast.errors import DataError
from tests.data.conftest import ASK, TURN, MakeTokenizer
from tests.data.encoding import ANY_LENGTH, ASSISTANT, BOS, chat, encode, fault, pair

# --- the end of a turn --------------------------------------------------------------------------------


def test_template_without_an_end_token(make_tokenizer: MakeTokenizer) -> None:
    open_turn = "{{ m['role'] + ': ' + m['content'] + '\n' }}"
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = make_tokenizer(open_turn, ask=ask)
    problem = fault(pair(), tokenizer)
    assert problem.reason == "template"
    assert "['y', 'e', 's', '\\n']" in problem.detail
    assert "set `append_eos`" in problem.detail
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


# --- BOS and boundaries ------------------------------------------------------------------------------


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
    open_turn = "{{ m['role'] + ': ' + m['content'] }}{% if loop.index0 == 1 %}{{ bos_token }}{% endif %}"
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    assert "no special token ends" in fault(pair(), make_tokenizer(open_turn, ask=ask, bos="<s>")).detail


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (
            {"before": "{{ bos_token + '\n' + bos_token }}"},
            "2 BOS tokens: ['<s>', '\\n', '<s>', '<|im_start|>'",
        ),
        ({"turn": "{{ bos_token }}" + TURN, "ask": "{{ bos_token }}" + ASK}, "2 BOS tokens: "),
        ({"before": "{{ bos_token }}", "content": "m['content'] + bos_token"}, "2 BOS tokens: "),
        (
            {"before": "{{ bos_token }}", "content": f"m['content'] + (bos_token if {ASSISTANT} else '')"},
            "puts a BOS token into the answer, which the model would learn to write: ['y', 'e', 's', '<s>'",
        ),
    ],
)
def test_bos_in_places_other_than_the_head(
    make_tokenizer: MakeTokenizer, template: dict[str, Any], shown: str
) -> None:
    tokenizer = make_tokenizer(**template, **BOS)
    problem = fault(pair(chosen="yes"), tokenizer)
    assert (problem.reason, problem.check) == ("template", "one_bos")
    assert shown in problem.detail
    with pytest.raises(InvalidRows) as error:
        encode_sft([pair().chosen_as_sft()], tokenizer, ANY_LENGTH)
    assert error.value.problems[0].check == "one_bos"


def test_bos_in_an_earlier_trained_turn(make_tokenizer: MakeTokenizer) -> None:
    content = f"m['content'] + (bos_token if {ASSISTANT} and not loop.last else '')"
    tokenizer = make_tokenizer(before="{{ bos_token }}", content=content, **BOS)
    record = chat("user a", "assistant one", "user b").chosen_as_sft()
    with pytest.raises(InvalidRows, match="the rendered prompt has 2 BOS tokens: .'o', 'n', 'e', '<s>'"):
        encode_sft([record], tokenizer, ANY_LENGTH)


def test_bos_that_a_text_spells_is_no_fault_of_the_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="{{ bos_token }}", **BOS)
    encoded = encode(pair("Say <s>!", "<s> it is"), tokenizer)
    assert encoded.prompt_ids.count(tokenizer.bos_token_id) == 2
    assert encoded.chosen_ids.count(tokenizer.bos_token_id) == 1


def test_bos_that_is_also_the_end_token_may_end_turns(make_tokenizer: MakeTokenizer) -> None:
    """As GPT-2's."""
    tokenizer = make_tokenizer(turn="{{ m['content'] + eos_token }}", ask="", bos="</s>", eos="</s>")
    assert tokenizer.decode(encode(pair(), tokenizer).chosen_ids) == "yes</s>"


def test_tokenizer_that_merges_across_the_boundary(make_tokenizer: MakeTokenizer) -> None:
    """`assistant\\n` + `\\nyes`: two newlines are one token of this tokenizer, as of many."""
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ")])
    problem = fault(pair(chosen="\nyes"), tokenizer)
    assert problem.reason == "template"
    assert "'t', '\\n']" in problem.detail  # the prompt's own last tokens
    assert "'t', '\\n\\n', 'y', 'e', 's', '<|im_end|>'" in problem.detail  # and with the completion
    assert tokenizer.decode(encode(pair(chosen="yes"), tokenizer).chosen_ids) == "yes<|im_end|>"


def test_tokenizer_that_merges_the_space_before_an_answer(make_tokenizer: MakeTokenizer) -> None:
    """`assistant: ` + `yes`: a space at the prompt's end becomes part of the answer's first token."""
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    turn = "{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}"
    tokenizer = make_tokenizer(turn, ask=ask, merges=[("Ġ", "y")])
    problem = fault(pair(), tokenizer)
    assert "the tokenizer merges the prompt's end" in problem.detail
    assert "'t', ':', ' ']" in problem.detail
    assert "'t', ':', ' y', 'e', 's', '<|im_end|>']" in problem.detail


def test_bos_of_template_and_tokenizer_is_written_once(make_tokenizer: MakeTokenizer) -> None:
    """A template that writes BOS, and a tokenizer that adds one: on every side, and in demonstrations, one."""
    tokenizer = make_tokenizer(before="{{ bos_token }}", **BOS)
    record = pair()
    (sft,), _ = encode_sft([record.chosen_as_sft()], tokenizer, ANY_LENGTH)
    encoded = encode(record, tokenizer)
    for ids in (sft.input_ids, encoded.prompt_ids + encoded.chosen_ids + encoded.rejected_ids):
        assert ids.count(tokenizer.bos_token_id) == 1


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
