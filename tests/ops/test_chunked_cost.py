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


def test_a_frozen_head_costs_as_many_products_as_plain_torch() -> None:
    """Per block of a frozen head: the logits, the hidden states' gradient. Trained: logits again, its own."""
    blocks = {"width": 16, "vocab": 64}
    frozen = audit(linear_logprob_chunked, 5, 3, frozen=True, **blocks).calls
    trained = audit(linear_logprob_chunked, 5, 3, frozen=False, **blocks).calls
    assert frozen["mm"] + frozen["addmm_"] == 2 * 4
    assert trained["mm"] + trained["addmm_"] == 4 * 4
