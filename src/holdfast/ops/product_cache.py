"""How many shapes of matrix products oneDNN remembers.

For every shape it has met, up to 1,024 of them, torch's oneDNN keeps the compiled product and its working memory: some
megabytes for a layer's product of a thousand tokens. Rows without padding bring a new number of tokens with every
micro-batch, and bfloat16 training on a CPU would grow by gigabytes (docs/log.md).
"""

from __future__ import annotations

import os

# oneDNN's own cache, and that of the layer between it and torch, which holds on to what the first lets go.
VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
# A step on new rows compiles as many with 32 as with 1,024, and five times that with 16: the backward of a layer goes
# around in more shapes than that.
SHAPES = 32


def bound_product_cache() -> None:
    """Let oneDNN remember `SHAPES` shapes, unless the environment says otherwise.

    Both variables are read at the first product that oneDNN computes in this process: later calls change nothing.
    """
    for variable in VARIABLES:
        os.environ.setdefault(variable, str(SHAPES))
