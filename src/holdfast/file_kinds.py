"""What a file's first bytes say it is, whatever its name says."""

from __future__ import annotations

import re

# What a pickle is named, and PyTorch's files, which are pickles: loading one can run any code.
PICKLES = frozenset(".pkl .pickle .pt .pth .bin .ckpt .joblib .dill".split())
HEAD = 262  # bytes that `foreign_kind` looks at
_PICKLED = (
    (0, b"\x80[\x02-\x05]", "a Python pickle"),
    (0, b"PK\x03\x04", "a zip archive, as torch.save writes"),
)
_MAGIC = (
    *_PICKLED,
    (0, b"\x1f\x8b", "packed by gzip"),
    (0, b"BZh[1-9]", "packed by bzip2"),
    (0, b"\xfd7zXZ\0", "packed by xz"),
    (0, b"\\(\xb5/\xfd", "packed by zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a rar archive"),
    (257, b"ustar", "a tar archive"),
)


def foreign_kind(head: bytes) -> str | None:
    """What a file is that begins with these bytes (`HEAD` of them, or all), if it is a pickle or an archive.

    Pickles of the protocols 0 and 1 are text, and look like any other.
    """
    return next((kind for at, magic, kind in _MAGIC if re.match(magic, head[at:], re.DOTALL)), None)


def pickle_kind(head: bytes) -> str | None:
    """As `foreign_kind`, of pickles and of archives as `torch.save` writes them: what may run code as it is read."""
    return next((kind for at, magic, kind in _PICKLED if re.match(magic, head[at:], re.DOTALL)), None)


def begins_as_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of so many bytes begins as safetensors: the length of the header, eight bytes, and a JSON object.

    To be asked before `foreign_kind`: a length of 640 alone looks like a pickle of protocol 2.
    """
    return 8 + int.from_bytes(head[:8], "little") <= size and head[8:9] == b"{"
