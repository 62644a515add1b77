"""oneDNN remembers few shapes: memory does not grow with every new number of tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.ops.product_cache import SHAPES, VARIABLES, bound_product_cache

# The three products of a projection, for 150 numbers of tokens in bfloat16, and how far the resident set grows, in MB.
GROWTH = """
import os, random, sys, torch
from holdfast.ops.product_cache import bound_product_cache
if sys.argv[1] == "bounded":
    bound_product_cache()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
random.seed(0)
weight = torch.randn(1536, 512).bfloat16()
for number in range(150):
    if number == 10:
        before = resident()
    tokens = random.randrange(1000, 3000)
    x, upstream = (torch.randn(tokens, size).bfloat16() for size in (512, 1536))
    x @ weight.t(), upstream @ weight, upstream.t() @ x
print(resident() - before)
"""


def growth(how: str) -> float:
    """In a process of its own: the variables are read once."""
    surroundings = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = [sys.executable, "-c", GROWTH, how]
    return float(subprocess.run(command, env=surroundings, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the resident set is read from Linux' /proc"
)
def test_memory_does_not_grow_with_the_shapes() -> None:
    unbounded = growth("as it is")
    if unbounded < 200:
        pytest.skip(f"on this processor bfloat16 products grow by {unbounded:.0f} MB in 140 shapes")
    assert growth("bounded") < unbounded / 2


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = VARIABLES
    monkeypatch.setenv(first, "7")
    monkeypatch.setenv(second, "")  # so that it is put back
    monkeypatch.delenv(second)
    bound_product_cache()
    assert (os.environ[first], os.environ[second]) == ("7", str(SHAPES))
