"""The decoder's last layer, computed where it is read: at the positions whose log-probs are asked for.

Keys and values of the last layer are read from everywhere, all else of it only where a token is scored: what comes
after it, a norm and the LM head, takes each position by itself. So its queries, its output projection and its MLP are
computed for those positions and are zero at the others (prompts, the user's turns). What is read has the same value and
the same gradients; of the rest most of a layer's matrix products are spared.

What is read travels with the flattened rows, see `flat_attention`; without them the layer is computed everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from holdfast.models.flat_attention import ROWS
from holdfast.models.flat_rows import FlatRows
from holdfast.models.lean_layers import ATTENTION, is_lean_mlp


def install_last_layer(decoder: nn.Module) -> None:
    """Let the last layer of `decoder` skip what is not read, where its parts are known. Call once, after lean layers.

    Known are an attention with projections of their own (fused ones are not, nor is a layer that takes its keys from
    another), and a gated MLP that the layer calls itself (a mixture's experts are not). What is not known is computed
    everywhere, and so is all of it under FlexAttention, which hears of no rows.
    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not layers:
        return
    attentions = [m for m in layers[-1].modules() if all(hasattr(m, n) for n in (*ATTENTION, "o_proj"))]
    if len(attentions) == 1:
        _LastLayer(layers[-1], attentions[0], [m for m in layers[-1].children() if is_lean_mlp(m)])


class _LastLayer:
    """Hooks on the parts of one layer, and what they tell each other.

    Checkpointing runs the layer's `forward` again without the layer's own hooks: its attention alone hears then, by its
    keywords, which rows these are. The MLP goes by what the attention before it heard; in a layer that calls its MLP
    first, the MLP is left alone.
    """

    def __init__(self, layer: nn.Module, attention: Any, mlps: Sequence[nn.Module]) -> None:
        # the tokens read, and of how many, since the attention was called
        self.read: tuple[Tensor, int] | None = None
        self.expected = False  # that it will be called with rows
        self.mlp_first = False
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        layer.register_forward_hook(self._leave, always_call=True)
        attention.register_forward_pre_hook(self._attend, with_kwargs=True)
        for projection in (attention.q_proj, attention.o_proj):
            if isinstance(projection, nn.Linear | BaseTunerLayer):
                projection.register_forward_pre_hook(self._gather)
                projection.register_forward_hook(self._spread)
        for mlp in mlps:
            mlp.register_forward_pre_hook(self._gather_behind_attention)
            mlp.register_forward_hook(self._spread_behind_attention)

    def _enter(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.read, self.expected = None, kwargs.get(ROWS) is not None

    def _attend(self, attention: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows: FlatRows | None = kwargs.get(ROWS)
        self.read = None if rows is None or rows.read is None else (rows.read, sum(rows.sizes))
        self.expected = False

    def _leave(self, layer: Any, args: Any, output: Any) -> None:
        self.read, self.expected = None, False

    def _gather(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args if self.read is None else (args[0].index_select(1, self.read[0]), *args[1:])

    def _spread(self, module: Any, args: Any, output: Tensor) -> Tensor:
        if self.read is None:
            return output
        read, tokens = self.read
        return output.new_zeros(1, tokens, output.shape[2]).index_copy_(1, read, output)

    def _gather_behind_attention(self, mlp: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.mlp_first |= self.expected
        return args if self.mlp_first else self._gather(mlp, args)

    def _spread_behind_attention(self, mlp: Any, args: Any, output: Tensor) -> Tensor:
        return output if self.mlp_first else self._spread(mlp, args, output)
