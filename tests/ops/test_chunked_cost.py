"""What the chunked form spends: memory flat in the vocabulary, and no more matrix products than it must."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from holdfast.ops.chunked import linear_logprob_chunked
from holdfast.ops.reference import linear_logprob_reference


class Ledger(TorchDispatchMode):
    """Counts the calls, and sizes the largest tensor made since the mode was entered."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in inputs}
        self.largest = 0
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


def audit(form: Any, tokens: int, hidden: int, vocab: int, *, frozen: bool, **options: Any) -> Ledger:
    """A forward and a backward under the ledger."""
    x = torch.randn(tokens, hidden, requires_grad=True)
    weight = torch.randn(vocab, hidden, requires_grad=not frozen)
    targets = torch.randint(vocab, (tokens,))
    with Ledger(x, weight, targets) as ledger:
        form(x, weight, targets, **options).sum().backward()
    return ledger


TOKENS, HIDDEN = 256, 8


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_memory_is_flat_in_the_vocabulary(softcap: float | None) -> None:
    small, large = (
        audit(linear_logprob_chunked, TOKENS, HIDDEN, vocab, frozen=True, softcap=softcap).largest
        for vocab in (1 << 13, 1 << 16)
    )
    assert small == large == 1 << 20  # one block
    plain = audit(linear_logprob_reference, TOKENS, HIDDEN, 1 << 16, frozen=True, softcap=softcap)
    assert plain.largest == TOKENS << 16  # the ledger sees whole logits where there are some


def test_a_trained_head_makes_nothing_larger_than_itself() -> None:
    ledger = audit(linear_logprob_chunked, TOKENS, 32, 1 << 15, frozen=False, width=1 << 10)
    assert ledger.largest == 32 << 15  # the weight's gradient, an eighth of the whole logits


def test_matrix_products() -> None:
    """Per block of a frozen head: the logits, the hidden states' gradient. Trained: its own, and the logits again
    where their exponentials were not kept."""
    blocks = {"width": 16, "vocab": 64}
    block = 5 * 16 * 4
    for products, options in (
        (2 * 4, {"frozen": True}),
        (3 * 4, {"frozen": False}),
        (4 * 4, {"frozen": False, "keep": 0}),
        (3 * 2 + 4 * 2, {"frozen": False, "keep": 2 * block + 1}),
    ):
        calls = audit(linear_logprob_chunked, 5, 3, **blocks, **options).calls
        assert calls["mm"] + calls["addmm_"] == products


def test_no_more_waits_for_the_backward_than_was_allowed() -> None:
    def held(keep: int, frozen: bool = False) -> int:
        x = torch.randn(TOKENS, HIDDEN, requires_grad=True)
        weight = torch.randn(1 << 12, HIDDEN, requires_grad=not frozen)
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes if tensor.data_ptr() != weight.data_ptr() else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            linear_logprob_chunked(x, weight, torch.randint(4096, (TOKENS,)), width=256, keep=keep)
        return sum(sizes)

    block, without = TOKENS * 256 * 4, held(0)
    assert held(0, frozen=True) <= without == held(block)  # which a block fills
    for blocks in (1, 7, 16):
        # with each block, the maximum that it is relative to
        assert held(blocks * block + 1) == without + blocks * (block + TOKENS * 4)
    assert held(1 << 30) == held(16 * block + 1)
    assert held(1 << 30, frozen=True) == held(0, frozen=True)
