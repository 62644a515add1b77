"""Batches of pairs and demonstrations, worked by hand."""

from __future__ import annotations

import pytest
import torch

from holdfast.data.collate import PairCollator, SFTCollator

PAIRS = [
    {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5], "row_index": 7},
    {"prompt_ids": [6], "chosen_ids": [7], "rejected_ids": [8, 9, 10], "row_index": 8},
]


FORMS = [(shared_prefix, padding_free) for shared_prefix in (True, False) for padding_free in (True, False)]


@pytest.mark.parametrize(("shared_prefix", "padding_free"), FORMS)
def test_slots_find_every_completion_token(shared_prefix: bool, padding_free: bool) -> None:
    batch = PairCollator(0, shared_prefix, padding_free)(PAIRS)
    for side in ("chosen", "rejected"):
        for pair, example in enumerate(PAIRS):
            slots = batch[f"{side}_slots"][pair]
            assert batch["target_ids"][slots[slots >= 0]].tolist() == example[f"{side}_ids"]


@pytest.mark.parametrize(("shared_prefix", "padding_free"), FORMS)
def test_each_target_is_predicted_by_the_token_before_it(shared_prefix: bool, padding_free: bool) -> None:
    batch = PairCollator(0, shared_prefix, padding_free)(PAIRS)
    flat = batch["input_ids"].flatten()
    for pair, example in enumerate(PAIRS):
        for side in ("chosen", "rejected"):
            completion = example[f"{side}_ids"]
            before = [example["prompt_ids"][-1], *completion[:-1]]
            slots = batch[f"{side}_slots"][pair]
            assert flat[batch["score_index"][slots[slots >= 0]]].tolist() == before


def test_plain_rows_carry_no_mask_and_shared_rows_do() -> None:
    plain, shared = PairCollator(0, shared_prefix=False)(PAIRS), PairCollator(0)(PAIRS)
    assert plain["input_ids"].tolist() == [[1, 2, 3], [6, 0, 0], [1, 2, 0], [6, 8, 9]]
    assert "segment_ids" not in plain
    assert shared["input_ids"].tolist() == [[1, 2, 3], [6, 8, 9]]
    assert shared["segment_ids"].tolist() == [[0, 0, 1], [0, 2, 2]]
    # both count what the plain form reads: 2*2+2+1 and 2*1+1+3
    assert plain["num_tokens"].tolist() == shared["num_tokens"].tolist() == [13]


def test_flattened_pairs_by_hand() -> None:
    batch = PairCollator(0, padding_free=True)(PAIRS)
    # causal parts 1 2 3 and 6, then the only rejected input: 8 9, which follows 6
    assert batch["input_ids"].tolist() == [[1, 2, 3, 6, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch["row_lengths"] == ((2, 1, 0), (1, 0, 2))
    # 3 and 5 follow 2; 4 follows 3; 7 and 8 follow 6; 9 follows 8 and 10 follows 9
    assert batch["target_ids"].tolist() == [3, 4, 5, 7, 8, 9, 10]
    assert batch["score_index"].tolist() == [1, 2, 1, 3, 3, 4, 5]
    assert batch["num_tokens"].tolist() == [13]


def test_flattened_plain_rows_by_hand() -> None:
    batch = PairCollator(0, shared_prefix=False, padding_free=True)(PAIRS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 6, 1, 2, 6, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 0, 1, 2]]
    assert batch["row_lengths"] == ((3, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0))


def test_reference_columns_travel() -> None:
    rows = [{**row, "reference_chosen": -1.5, "reference_rejected": -2.5} for row in PAIRS]
    batch = PairCollator(0)(rows)
    assert batch["reference_chosen"].tolist() == [-1.5, -1.5]
    assert batch["row_index"].tolist() == [7, 8]


def test_sft_batch_by_hand() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "completion_mask": [False, False, True], "row_index": 0},
        {"input_ids": [4, 5, 6, 7], "completion_mask": [False, True, True, True], "row_index": 1},
    ]
    batch = SFTCollator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 9], [4, 5, 6]]
    assert batch["target_ids"].tolist() == [3, 5, 6, 7]
    assert batch["score_index"].tolist() == [1, 3, 4, 5]
    assert batch["num_tokens"].tolist() == [7]


def test_flattened_sft_batch_by_hand() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "completion_mask": [False, False, True], "row_index": 0},
        {"input_ids": [4, 5, 6, 7], "completion_mask": [False, True, True, True], "row_index": 1},
    ]
    batch = SFTCollator(pad_token_id=9, padding_free=True)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 4, 5, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["row_lengths"] == ((2, 0, 0), (3, 0, 0))
    assert batch["target_ids"].tolist() == [3, 5, 6, 7]
    assert batch["score_index"].tolist() == [1, 2, 3, 4]


def test_padding_token_may_equal_a_trained_token() -> None:
    rows = [
        {"input_ids": [1, 0], "completion_mask": [False, True], "row_index": 0},
        {"input_ids": [1, 2, 0], "completion_mask": [False, True, True], "row_index": 1},
    ]
    batch = SFTCollator(pad_token_id=0)(rows)
    assert batch["target_ids"].tolist() == [0, 2, 0]
    assert torch.equal(batch["score_index"], torch.tensor([0, 2, 3]))
