"""The sizes of a decoder that memory and time depend on, read from a model without weights (on the meta device)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from holdfast.errors import ModelError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer: attention and a gated MLP between norms. Sizes are numbers a token.

    Attributes:
        hidden: the stream between layers.
        query, key, value: what those projections give.
        feed: the inside of the MLP.
        heads: of the queries.
        norms: of the stream.
        head_norms: of queries and keys, where the family has them (Qwen3, Gemma 3).
    """

    hidden: int
    query: int
    key: int
    value: int
    feed: int
    heads: int
    norms: int
    head_norms: bool

    @property
    def weights(self) -> int:
        """Numbers in the seven projections."""
        return self.hidden * (2 * self.query + self.key + self.value + 3 * self.feed)

    @property
    def projection_sizes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each of the seven."""
        hidden, feed = self.hidden, self.feed
        attention = [(hidden, self.query), (hidden, self.key), (hidden, self.value), (self.query, hidden)]
        return [*attention, (hidden, feed), (hidden, feed), (feed, hidden)]


@dataclass(frozen=True)
class DecoderShape:
    """A decoder's layers, and its LM head of (vocab, hidden)."""

    layers: tuple[LayerShape, ...]
    vocab: int
    hidden: int

    @property
    def body(self) -> int:
        """Numbers in the projections of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def head(self) -> int:
        """Numbers in the LM head."""
        return self.vocab * self.hidden


def decoder_shape(model: Any) -> DecoderShape:
    """The shape of a causal LM as transformers builds it, before an adapter is put on.

    Raises:
        ModelError: its layers are not attention and one gated MLP (experts, fused projections, state spaces).
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ModelError(f"{type(model).__name__} has no list of decoder layers")
    vocab, hidden = model.get_output_embeddings().weight.shape
    return DecoderShape(tuple(_layer_shape(layer, hidden) for layer in layers), vocab, hidden)


def _layer_shape(layer: nn.Module, hidden: int) -> LayerShape:
    linear: dict[str, list[nn.Linear]] = {}
    norms, head_norms = 0, False
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            linear.setdefault(name.rpartition(".")[2], []).append(module)
        elif isinstance(weight, nn.Parameter) and weight.ndim == 1:
            of_heads = name.endswith(("q_norm", "k_norm"))
            norms += not of_heads and len(weight) == hidden
            head_norms = head_norms or of_heads
    if set(linear) != {*ATTENTION, *GATED} or any(len(found) > 1 for found in linear.values()):
        raise ModelError(f"{type(layer).__name__} is more than attention and one gated MLP")
    size = {name: found[0].out_features for name, found in linear.items()}
    attention: Any = next(module for module in layer.modules() if hasattr(module, "q_proj"))
    return LayerShape(
        hidden=hidden,
        query=size["q_proj"],
        key=size["k_proj"],
        value=size["v_proj"],
        feed=size["gate_proj"],
        heads=size["q_proj"] // attention.head_dim,
        norms=norms,
        head_norms=head_norms,
    )
