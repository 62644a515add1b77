"""What asks for too much memory is refused it, and nothing else is."""

from __future__ import annotations

import resource
import sys

import pytest

from holdfast.data.memory_limit import memory_limit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has the limit")


def test_too_much_is_refused() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), memory_limit(1 << 28):
        bytearray(1 << 29)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert len(bytearray(1 << 29)) == 1 << 29  # the limit is over


def test_what_is_within_it_is_left_alone() -> None:
    with memory_limit(1 << 29):
        assert len(bytearray(1 << 27)) == 1 << 27


def test_a_tighter_limit_stays() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, hard))
    try:
        with memory_limit(1 << 40):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] == 1 << 36
        assert resource.getrlimit(resource.RLIMIT_AS)[0] == 1 << 36
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
