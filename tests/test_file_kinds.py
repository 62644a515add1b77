"""What a file is, by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
from pathlib import Path

import pytest
import torch

from holdfast.file_kinds import begins_as_safetensors, foreign_kind, pickle_kind


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (pickle.dumps({}, protocol=2), "a Python pickle"),
        (pickle.dumps({}, protocol=5), "a Python pickle"),
        (b"\x80\x06", None),
        (b"PK\x03\x04rest", "a zip archive, as torch.save writes"),
        (b"PK", None),
        (gzip.compress(b"", mtime=0), "packed by gzip"),
        (bz2.compress(b""), "packed by bzip2"),
        (b"BZh0", None),
        (lzma.compress(b""), "packed by xz"),
        (b"(\xb5/\xfd", "packed by zstd"),
        (bytes(257) + b"ustar\0", "a tar archive"),
        (bytes(256) + b"ustar\0", None),
        (b"", None),
        (b'{"prompt": "PK"}', None),
        ("\ufeff{}".encode(), None),
    ],
)
def test_what_the_first_bytes_say(head: bytes, kind: str | None) -> None:
    assert foreign_kind(head) == kind


def test_how_safetensors_begin() -> None:
    content = (640).to_bytes(8, "little") + b"{".ljust(640)
    assert foreign_kind(content) == "a Python pickle"  # by its first two bytes alone
    assert begins_as_safetensors(content, len(content))
    assert not begins_as_safetensors(content, len(content) - 1)
    assert not begins_as_safetensors(pickle.dumps({}), 1 << 40)
    assert not begins_as_safetensors(b"", 0)


def test_what_may_run_code_is_told_from_what_is_merely_packed(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "zip")
    assert pickle_kind((tmp_path / "zip").read_bytes()) == "a zip archive, as torch.save writes"
    assert pickle_kind(pickle.dumps({})) == "a Python pickle"
    for packed in (gzip.compress(b"a"), bz2.compress(b"a"), b"plain", b""):
        assert pickle_kind(packed) is None
