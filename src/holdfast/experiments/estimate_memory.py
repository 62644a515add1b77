"""What a training step keeps in memory at its height, by kind, from shapes alone.

Counted is what this package's own forward and backward keep: norms and gated products their inputs (see
`holdfast.ops`), attention its queries, keys, values and output (a FlashAttention kernel, no scores), projections their
inputs where a weight of theirs is trained, the LM head a chunk of logits and never all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.training_args import OptimizerNames

from holdfast.experiments.estimate_shape import DecoderShape, LayerShape
from holdfast.ops.linear_objective import ADDED, CHUNK, FEWEST
from holdfast.training.config import LeanConfig

FLOAT32 = 4  # bytes; trained weights, their gradients and AdamW's moments are kept in it
HALF = 2

# Bytes of state a trained number, by transformers' name of the optimizer. Adafactor keeps a row and a column of each
# matrix (Shazeer & Stern 2018, arXiv:1804.04235); 8-bit states have a float32 scale for each block of 256 numbers
# (Dettmers et al. 2022, arXiv:2110.02861).
EIGHT_BIT = 2 * (1 + 4 / 256)
STATES = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "sgd": 0.0,
    "adafactor": 0.0,
    "lion_32bit": 4.0,
    "lion_8bit": EIGHT_BIT / 2,
    "adamw_8bit": EIGHT_BIT,
    "adamw_bnb_8bit": EIGHT_BIT,
    "paged_adamw_8bit": EIGHT_BIT,
    "paged_adamw_32bit": 8.0,
}
OF_ADAMW = 8.0

# Bytes a number of a quantized projection, its scales too: blocks of 64 whose scales are quantized in turn (QLoRA,
# Dettmers et al. 2023, arXiv:2305.14314, section 3); LLM.int8() has one float32 a row.
QUANTIZED = {"nf4": 0.5 + 0.127 / 8, "fp4": 0.5 + 0.127 / 8, "int8": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights: the model, the adapter too.
        casts: half-precision copies of trained weights, for the products of mixed precision.
        gradients, optimizer: of trained weights.
        activations: what the layers keep for the backward, of the largest micro-batch.
        head: what the LM head needs for a moment: a chunk of logits, its gradients on their way.
        accumulates: whether gradients of earlier micro-batches are there while another is computed.
    """

    weights: float
    casts: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    accumulates: bool

    @property
    def peak(self) -> float:
        """The most at one time.

        In a step of one micro-batch gradients come as activations go, so the larger of the two counts.
        """
        passing = self.casts + self.activations + self.head
        together = passing + self.gradients if self.accumulates else max(passing, self.gradients)
        return self.weights + self.optimizer + together

    def shared_out(self, gpus: int, gathered: float) -> Memory:
        """The same where weights, gradients and states lie in pieces on several GPUs (FSDP).

        Args:
            gathered: bytes of the weights that are put together at one time.
        """
        return Memory(
            weights=self.weights / gpus + gathered,
            casts=self.casts,
            gradients=self.gradients / gpus,
            optimizer=self.optimizer / gpus,
            activations=self.activations,
            head=self.head,
            accumulates=self.accumulates,
        )


def memory_of(
    model: nn.Module,
    shape: DecoderShape,
    args: LeanConfig,
    tokens: int,
    scored: int,
    rank: int | None,
) -> Memory:
    """The memory of a stage.

    Args:
        model: as it is trained, on the meta device: which weights are trained, and in which precision, are its own.
        tokens, scored: of the largest micro-batch; see `Work.largest`.
        rank: of the adapter; None: every weight is trained.
    """
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    embedding, head = (
        _inner(model, name).weight for name in ("get_input_embeddings", "get_output_embeddings")
    )
    mixed = args.mixed_precision != "no"
    product = HALF if mixed else embedding.itemsize
    weights = float(sum(p.numel() * p.itemsize for p in parameters))
    if args.quantization is not None:
        stored = next(p.itemsize for p in parameters if not p.requires_grad)
        weights -= shape.body * (stored - QUANTIZED[args.quantization])
    wide = [p for p in parameters if p.ndim == 2 and p.itemsize > HALF and p is not embedding]
    if head is embedding and head.itemsize > HALF:
        wide.append(head)
    return Memory(
        weights=weights,
        casts=float(HALF * sum(p.numel() for p in wide)) if mixed else 0.0,
        gradients=float(sum(p.numel() * p.itemsize for p in parameters if p.requires_grad)),
        optimizer=trained * STATES.get(optimizer_name(args), OF_ADAMW),
        activations=_activations(shape, args, tokens, product, embedding.itemsize, rank),
        head=_head(shape, scored, product, head.requires_grad, args.objective.kind == "token"),
        accumulates=args.gradient_accumulation_steps > 1,
    )


def kept_by(layer: LayerShape, product: int, stream: int, rank: int | None) -> float:
    """Bytes that a layer keeps for the backward, a token.

    Args:
        product: bytes a number in matrix products.
        stream: bytes a number between layers.
        rank: of the adapter; its second matrices have an input of their own.
    """
    hidden, query, feed = layer.hidden, layer.query, layer.feed
    norms: float = 2 * stream * hidden + product * hidden * (layer.norms - 2) + FLOAT32 * layer.norms
    if layer.head_norms:
        norms += product * (query + layer.key) + FLOAT32 * (query + layer.key) / query * layer.heads
    # Its output twice: as a kernel called by row keeps it, and joined for the projection that follows (or its adapter).
    # FlashAttention, and our own call on a CPU, keep it once.
    attention = product * (2 * query + layer.key + layer.value) + FLOAT32 * layer.heads
    gated = product * 2 * feed
    inputs = hidden + query + hidden + feed
    if rank is not None:
        if product < FLOAT32:  # PEFT widens the input of each adapter, and autocast narrows each anew
            inputs = sum(size for size, _ in layer.projection_sizes)
        inputs += rank * len(layer.projection_sizes)
    return norms + attention + gated + product * inputs


def optimizer_name(args: LeanConfig) -> str:
    """transformers' name of the stage's optimizer."""
    return str(OptimizerNames(args.optim).value)


def checkpointed_share(args: LeanConfig) -> float:
    """Share of the layers that are computed again in the backward."""
    if not (args.activation_checkpointing or args.gradient_checkpointing):
        return 0.0
    options: Any = args.activation_checkpointing_kwargs or {}
    return 1 / int(options.get("every_n_layers") or 1)


def _activations(
    shape: DecoderShape, args: LeanConfig, tokens: int, product: int, stream: int, rank: int | None
) -> float:
    """Bytes that all layers keep. Of checkpointed ones only the input, and one whole layer while it is done again.

    The last layer is counted whole, though it is computed only where it is read: so no more is kept than this.
    """
    options: Any = args.activation_checkpointing_kwargs or {}
    whole = sum(kept_by(layer, product, stream, rank) for layer in shape.layers)
    last = stream * shape.hidden  # the input of the norm behind the layers
    share = checkpointed_share(args)
    if not share:
        return tokens * (whole + last)
    inputs = 0 if options.get("offload") else stream * shape.hidden * len(shape.layers) * share
    again = max(kept_by(layer, product, stream, rank) for layer in shape.layers)
    return tokens * (whole * (1 - share) + inputs + again + last)


def _head(shape: DecoderShape, scored: int, product: int, trained: bool, sums_losses: bool) -> float:
    """Bytes for log-probs and their gradients: see `linear_objective`, and for pairs `linear_logprob`."""
    states = scored * shape.hidden * (FLOAT32 + product)
    gradient = shape.head * FLOAT32 if trained else 0
    if not (trained and sums_losses):
        return states + gradient  # the kernel's logits stay on the chip
    chunk = min(scored, max(FEWEST, CHUNK // shape.vocab))
    narrow = 0 if product == FLOAT32 else product  # the product, and in its place what goes into the next one
    added = min(shape.head, ADDED) * narrow
    return states + gradient + chunk * shape.vocab * (FLOAT32 + narrow) + added


def _inner(model: Any, name: str) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, name)()
