"""Records to tokens: what is trained, what is cut, and what becomes of rows that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from holdfast.data.chat import EncodedSFT, LengthRule, encode_pairs, encode_sft
from holdfast.data.faults import Problem
from holdfast.data.records import SFTRecord, sft_record, text_record
from holdfast.data.sources import read_rows
from holdfast.data.validation import InvalidRows, check_rows, enforce
from holdfast.errors import ConfigError, DataError
from tests.data.conftest import MakeTokenizer
from tests.data.encoding import ANY_LENGTH, BOS, encode, message, pair


def conversation(*contents: str) -> SFTRecord:
    """User and assistant in turn; the last turn is the completion."""
    roles = ["user", "assistant"] * len(contents)
    messages = [message(role, content) for role, content in zip(roles, contents, strict=False)]
    return sft_record("rows.jsonl:7", messages, len(messages) - 1)


def trained(encoded: EncodedSFT, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The trained stretches of a row, as text."""
    stretches: list[list[int]] = [[]]
    for token, flag in zip(encoded.input_ids, encoded.completion_mask, strict=True):
        if flag:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


# --- what is trained ---------------------------------------------------------------------------------


def test_a_pair_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.convert_tokens_to_ids
    start, end = ids("<|im_start|>"), ids("<|im_end|>")

    def spelled(text: str) -> list[int]:
        return [ids(letter) for letter in text.replace("\n", "Ċ")]

    encoded = encode(pair("Hi", "yes", "no"), tokenizer)
    assert encoded.prompt_ids == [
        start, *spelled("user\nHi"), end, *spelled("\n"), start, *spelled("assistant\n")
    ]  # fmt: skip
    # the newline that the template puts behind the end token is no part of the answer
    assert encoded.chosen_ids == [*spelled("yes"), end]
    assert encoded.rejected_ids == [*spelled("no"), end]
    assert encoded.id == pair("Hi", "yes", "no").id


def test_demonstration_trains_its_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    record = conversation("a", "one", "b", "two")
    (last,), _ = encode_sft([record], tokenizer, ANY_LENGTH)
    (every,), _ = encode_sft([record], tokenizer, ANY_LENGTH, train_on="all")
    assert trained(last, tokenizer) == ["two<|im_end|>"]
    assert trained(every, tokenizer) == ["one<|im_end|>", "two<|im_end|>"]
    assert last.input_ids == every.input_ids
    assert last.id == record.id


def test_an_opening_turn_answers_nothing_and_is_not_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [message("assistant", "Welcome!"), message("user", "a"), message("assistant", "one")]
    (encoded,), _ = encode_sft([sft_record("here", messages, 2)], tokenizer, ANY_LENGTH, train_on="all")
    assert trained(encoded, tokenizer) == ["one<|im_end|>"]


def test_a_completion_of_several_messages_trains_the_assistants_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [
        message("user", "2 + 2?"),
        message("assistant", "add(2, 2)"),
        message("tool", "4"),
        message("assistant", "It is 4."),
    ]
    (encoded,), _ = encode_sft([sft_record("here", messages, 1)], tokenizer, ANY_LENGTH)
    assert trained(encoded, tokenizer) == ["add(2, 2)<|im_end|>", "It is 4.<|im_end|>"]


def test_raw_text_trains_all_but_its_first_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(None, bos="<s>", eos="</s>", adds_bos=True)
    (encoded,), report = encode_sft([text_record("here", "abc")], tokenizer, ANY_LENGTH)
    assert tokenizer.decode(encoded.input_ids) == "<s>abc"
    assert encoded.completion_mask == [False, True, True, True]
    (closed,), _ = encode_sft([text_record("here", "abc")], tokenizer, ANY_LENGTH, append_eos=True)
    assert tokenizer.decode(closed.input_ids) == "<s>abc</s>"
    assert closed.completion_mask == [False, True, True, True, True]
    assert report.sides["completion"].tokens == 3


def test_raw_text_that_spells_the_bos_has_it_twice(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(None, **BOS)
    with pytest.raises(
        InvalidRows, match="spells the BOS that the tokenizer adds itself: .'<s>', '<s>', 'a'"
    ):
        encode_sft([text_record("here", "<s>abc")], tokenizer, ANY_LENGTH)
    inside, _ = encode_sft([text_record("here", "a<s>b")], tokenizer, ANY_LENGTH)
    assert tokenizer.decode(inside[0].input_ids) == "<s>a<s>b"


def test_text_of_one_token_trains_nothing(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(InvalidRows, match="empty_completion: the text is one token"):
        encode_sft([text_record("here", "a")], make_tokenizer(), ANY_LENGTH)


def test_pad_equal_to_eos_never_unmasks_the_end(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(pad="<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert encode(pair(), tokenizer).chosen_ids[-1] == tokenizer.eos_token_id
    (encoded,), _ = encode_sft([conversation("a", "one")], tokenizer, ANY_LENGTH)
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    assert encoded.completion_mask[-1]


def test_template_that_drops_earlier_reasoning(make_tokenizer: MakeTokenizer) -> None:
    """As Qwen3's: only the last answer keeps what comes before `</think>`."""
    content = "(m['content'] if loop.last else m['content'].split('</think>')[-1])"
    tokenizer = make_tokenizer(content=content)
    record = conversation("a", "hm</think>one", "b", "ha</think>two")
    (last,), _ = encode_sft([record], tokenizer, ANY_LENGTH)
    assert trained(last, tokenizer) == ["ha</think>two<|im_end|>"]
    assert "hm" not in tokenizer.decode(last.input_ids)
    with pytest.raises(InvalidRows, match="once the conversation goes on") as error:
        encode_sft([record], tokenizer, ANY_LENGTH, train_on="all")
    assert "set `train_on: last`" in str(error.value)


def test_default_system_turn_with_every_turn_trained(make_tokenizer: MakeTokenizer) -> None:
    before = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    tokenizer = make_tokenizer(before=before)
    (every,), _ = encode_sft([conversation("a", "one", "b", "two")], tokenizer, ANY_LENGTH, train_on="all")
    assert trained(every, tokenizer) == ["one<|im_end|>", "two<|im_end|>"]
    assert tokenizer.decode(every.input_ids).count("Be kind.") == 1


def test_append_eos_closes_the_last_turn_only(make_tokenizer: MakeTokenizer) -> None:
    open_turn = "{{ m['role'] + ': ' + m['content'] + '\n' }}"
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = make_tokenizer(open_turn, ask=ask)
    record = conversation("a", "one", "b", "two")
    (last,), _ = encode_sft([record], tokenizer, ANY_LENGTH, append_eos=True)
    assert trained(last, tokenizer) == ["two\n<|im_end|>"]
    with pytest.raises(InvalidRows, match="no special token ends the assistant's turn"):
        encode_sft([record], tokenizer, ANY_LENGTH, append_eos=True, train_on="all")


# --- lengths -----------------------------------------------------------------------------------------


def test_one_cut_for_both_sides(make_tokenizer: MakeTokenizer) -> None:
    # prompt: <s> + u + 6 letters + a = 9 tokens; chosen 8 + end = 9, rejected 2 + end = 3
    turn = "{{ m['role'][0] + m['content'] }}{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}"
    ask = "{% if add_generation_prompt %}a{% endif %}"
    tokenizer = make_tokenizer(turn, before="{{ bos_token }}", ask=ask, **BOS)
    record = pair("abcdef", "12345678", "12")
    (encoded,), report = encode_pairs([record], tokenizer, LengthRule(10))
    # half of 10 is the prompt's, BOS first; 5 of each completion, so the chosen loses its end token
    assert tokenizer.decode(encoded.prompt_ids) == "<s>defa"
    assert tokenizer.decode(encoded.chosen_ids) == "12345"
    assert tokenizer.decode(encoded.rejected_ids) == "12<|im_end|>"
    assert report.as_dict()["sides"] == {
        "prompt": {"rows": 1, "rows_cut": 1, "tokens": 9, "tokens_cut": 4},
        "chosen": {"rows": 1, "rows_cut": 1, "tokens": 9, "tokens_cut": 4},
        "rejected": {"rows": 1, "rows_cut": 0, "tokens": 3, "tokens_cut": 0},
    }
    turned_record = pair("abcdef", "12", "12345678")
    (turned,), _ = encode_pairs([turned_record], tokenizer, LengthRule(10))
    assert turned.prompt_ids == encoded.prompt_ids
    assert (turned.chosen_ids, turned.rejected_ids) == (encoded.rejected_ids, encoded.chosen_ids)
    assert tokenizer.decode(encode(turned_record, tokenizer).rejected_ids) == "12345678<|im_end|>"
    sft, sft_report = encode_sft([record.chosen_as_sft()], tokenizer, LengthRule(10))
    assert tokenizer.decode(sft[0].input_ids) == "<s>defa12345"
    assert trained(sft[0], tokenizer) == ["12345"]
    assert sft_report.sides["completion"].tokens_cut == 4


def cutting(max_length: int) -> LengthRule:
    """A rule that cuts prompts of any length."""
    return LengthRule(max_length, max_prompt_length=max_length - 1)


texts = st.text("abc\n", max_size=40)


@given(texts, texts, texts, st.integers(2, 80))
def test_a_cut_pair_is_the_end_of_its_prompt_and_the_beginning_of_its_answers(
    tokenizer: PreTrainedTokenizerFast, prompt: str, chosen: str, rejected: str, max_length: int
) -> None:
    record = pair("?" + prompt, "1" + chosen, "2" + rejected)
    whole = encode(record, tokenizer)
    (cut,), _ = encode_pairs([record], tokenizer, cutting(max_length))
    longest = max(len(whole.chosen_ids), len(whole.rejected_ids))
    for_prompt, for_completion = cutting(max_length).fit(len(whole.prompt_ids), longest)
    assert cut.prompt_ids == whole.prompt_ids[-for_prompt:]
    assert cut.chosen_ids == whole.chosen_ids[:for_completion]
    assert cut.rejected_ids == whole.rejected_ids[:for_completion]


@given(st.lists(texts, min_size=1, max_size=4), st.integers(2, 80))
def test_a_cut_demonstration_keeps_tokens_and_mask_together(
    tokenizer: PreTrainedTokenizerFast, contents: list[str], max_length: int
) -> None:
    turns_of_it = [f"{n}{mark}{text}" for n, text in enumerate(contents) for mark in "?!"]
    record = conversation(*turns_of_it)
    (whole,), _ = encode_sft([record], tokenizer, ANY_LENGTH, train_on="all")
    (cut,), _ = encode_sft([record], tokenizer, cutting(max_length), train_on="all")
    assert len(cut.input_ids) == len(cut.completion_mask) <= max_length
    assert any(cut.completion_mask)
    assert not cut.completion_mask[0]
    pairs = list(zip(whole.input_ids, whole.completion_mask, strict=True))
    kept = list(zip(cut.input_ids, cut.completion_mask, strict=True))
    assert any(pairs[n : n + len(kept)] == kept for n in range(len(pairs) - len(kept) + 1))


def test_pairs_alike_after_the_cut_are_left_out_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    records = [pair("Hi", "same beginning, one end", "same beginning, other end"), pair()]
    encoded, report = encode_pairs(records, tokenizer, cutting(20))
    assert [row.id for row in encoded] == [records[1].id]
    assert report.equal_after_cut == 1


def test_on_overflow(tokenizer: PreTrainedTokenizerFast) -> None:
    records = [pair(), pair(chosen="y" * 100)]
    # prompt: 1 + 5 + 2 + 1 + 1 and 1 + 10 of the generation prompt = 21; answers 3 + 1
    fits = LengthRule(25, on_overflow="drop")
    encoded, report = encode_pairs(records, tokenizer, fits)
    assert ([row.id for row in encoded], report.dropped) == ([records[0].id], 1)
    assert report.sides["chosen"].rows == 1
    sft, sft_report = encode_sft([record.chosen_as_sft() for record in records], tokenizer, fits)
    assert (len(sft), sft_report.dropped) == (1, 1)
    with pytest.raises(InvalidRows, match="too_long 1"):
        encode_pairs(records, tokenizer, LengthRule(25, on_overflow="error"))
    with pytest.raises(DataError, match="no row is left to train on\ndropped for their length: 2 rows"):
        encode_pairs(records, tokenizer, LengthRule(24, on_overflow="drop"))


# --- many rows ---------------------------------------------------------------------------------------


def test_bad_rows_among_good_ones(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ")])
    records = [pair(f"question {n}", chosen="\n" * (n % 100 == 3) + "yes") for n in range(600)]
    problems: list[Problem] = []
    encoded, report = encode_pairs(records, tokenizer, ANY_LENGTH, problems=problems)
    good = [record.id for record in records if record.chosen[0]["content"] == "yes"]
    assert [row.id for row in encoded] == good
    assert len(good) == 594
    assert [problem.row["prompt"][0]["content"] for problem in problems] == [
        f"question {n}" for n in range(3, 600, 100)
    ]
    assert report.sides["prompt"].rows == 594
    with pytest.raises(InvalidRows, match="6 of 600 rows cannot be used: template 6"):
        encode_pairs(records, tokenizer, ANY_LENGTH)


def test_no_rows_at_all(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no row is left"):
        encode_pairs([], tokenizer, ANY_LENGTH)
    problems: list[Problem] = []
    with pytest.raises(InvalidRows, match="No usable row is left"):
        encode_pairs([pair()], tokenizer, ANY_LENGTH, vocab_size=1, problems=problems)
    assert len(problems) == 1


def test_train_on_is_checked(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="did you mean 'last'"):
        encode_sft([conversation("a", "b")], tokenizer, ANY_LENGTH, train_on="lst")  # type: ignore[arg-type]


def test_hostile_text_comes_through_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "NUL \x00, line separator \u2028, emoji 👩‍👩‍👧, right-to-left \u202e"
    encoded = encode(pair(text, text, "no"), tokenizer)
    assert tokenizer.decode(encoded.chosen_ids) == text + "<|im_end|>"
    assert text in tokenizer.decode(encoded.prompt_ids)


# --- real rows ---------------------------------------------------------------------------------------


def test_real_rows_through_the_whole_path(shared_data: Path, make_tokenizer: MakeTokenizer) -> None:
    checked = check_rows(read_rows(shared_data / "preference" / "dpo_en_demo.json"))
    assert (checked.format, checked.problems) == ("preference_sharegpt", [])
    records = enforce(checked)
    contents = [m["content"] for r in records for m in (*r.prompt, *r.chosen, *r.rejected)]
    tokenizer = make_tokenizer(texts=contents)
    encoded, report = encode_pairs(records, tokenizer, ANY_LENGTH, vocab_size=len(tokenizer))
    assert len(encoded) == 300
    assert all(side.tokens_cut == 0 for side in report.sides.values())
    for record, row in zip(records, encoded, strict=True):
        for side, ids in ((record.chosen, row.chosen_ids), (record.rejected, row.rejected_ids)):
            rendered = tokenizer.apply_chat_template([*record.prompt, *side], tokenize=False)
            assert tokenizer.decode(row.prompt_ids + ids) + "\n" == rendered
            assert tokenizer.decode(ids) == side[0]["content"] + "<|im_end|>"
    sft, _ = encode_sft([r.chosen_as_sft() for r in records], tokenizer, cutting(512), train_on="all")
    assert len(sft) == 300
