"""State dicts on disk without pickle: of optimizers, schedulers, random number generators, gradient scalers, callbacks.

`save_state(state, folder / "optimizer")` writes two files, and `load_state` gives the same state back:

    optimizer.safetensors   the tensors and arrays, each under its path inside the state: ['state'][0]['exp_avg']
    optimizer.json          everything else; `format`, and `state`, with a reference where a tensor stood

JSON knows neither tuples, nor keys that are not text, nor infinity. What it does not know stands there as an object
with one key that begins with `$`:

    {"$tuple": [...]}                   a tuple
    {"$dict": [[key, value], ...]}      a dict whose keys are not all text, or look like one of these
    {"$ordered": [...]}, {"$counter": [...]}    an OrderedDict, a Counter (MultiStepLR has one)
    {"$float": "7ff8000000000000"}      an infinity or NaN: its eight bytes
    {"$text": "eda080"}                 text with lone surrogates: its bytes, as UTF-8 would write them
    {"$tensor": "['scale']"}            the tensor of that name
    {"$array": "['numpy'][1]"}          that tensor as a NumPy array; {"$scalar": ...} as a NumPy number
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from holdfast.errors import CheckpointError
from holdfast.files import replacing

FORMAT = 1
DEEPEST = 100  # levels; a state that contains itself has more
WIDEST = 8192  # bits of an integer; a random number generator's has 128

# As safetensors stores them. The smaller kinds are packed or still in flux.
DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    }
)
MAPPINGS: dict[str, type[dict[Any, Any]]] = {"$dict": dict, "$ordered": OrderedDict, "$counter": Counter}


def save_state(state: Mapping[str, Any], stem: Path) -> None:
    """Write a state to `<stem>.json` and `<stem>.safetensors`, each synced.

    It may hold None, bool, int, float, str, lists, tuples, dicts, OrderedDicts, Counters, dense tensors on any
    device, NumPy arrays and NumPy numbers, and nothing derived from them. A tensor that stands in several places
    is written once; views that share memory are written each by itself.

    Raises:
        CheckpointError: something else is in it; the message gives its path inside the state.
        OSError, SafetensorError: the files cannot be written.
    """
    encoder = _Encoder()
    encoded = encoder.encode(dict(state), "")
    text = json.dumps({"format": FORMAT, "state": encoded}, indent=1, allow_nan=False)
    json_file, tensor_file = _files(stem)
    with replacing(tensor_file) as beside:
        save_file(encoder.tensors, beside)
    with replacing(json_file) as beside:
        beside.write_text(text + "\n", encoding="ascii")


def load_state(stem: Path) -> dict[str, Any]:
    """The state that `save_state` wrote, tensors on the CPU. Nothing that the files hold is executed.

    Raises:
        CheckpointError: a file is missing, or is not as `save_state` writes it; the message names it.
    """
    json_file, tensor_file = _files(stem)
    try:
        document = json.loads(json_file.read_text(encoding="ascii"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the state '{json_file}' cannot be read: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT or "state" not in document:
        raise CheckpointError(f"'{json_file}' is not a state of format {FORMAT}, the one this version reads")
    decoder = _Decoder(_read_tensors(tensor_file), json_file)
    try:
        state = decoder.decode(document["state"])
    except RecursionError:
        raise CheckpointError(f"'{json_file}' is damaged: it is nested too deeply") from None
    if unused := decoder.tensors.keys() - decoder.used:
        raise CheckpointError(
            f"'{tensor_file}' holds a tensor {min(unused)} that '{json_file}' does not know"
        )
    if not isinstance(state, dict):
        raise CheckpointError(f"'{json_file}' holds no dict at its top")
    return state


def _files(stem: Path) -> tuple[Path, Path]:
    # Not `with_suffix`, which would cut a stem with a dot in it.
    return stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.safetensors")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: what safetensors hands out is mapped from the file, which may be deleted before the run ends.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the state's tensors '{path}' cannot be read: {error}") from None


class _Encoder:
    """Turns a state into what JSON can hold, and collects its tensors under their paths."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}  # by the identity of a tensor
        self._kept: list[Tensor] = []  # those tensors: an identity is one's own only while it lives
        self._storages: set[int] = set()

    def encode(self, value: Any, path: str, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise CheckpointError(f"the state is nested more than {DEEPEST} deep at {path[:80]}...")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            if value.bit_length() > WIDEST:
                raise CheckpointError(f"the state holds an integer of more than {WIDEST} bits at {path}")
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
        if kind is str:
            return value if _is_plain(value) else {"$text": value.encode("utf-8", "surrogatepass").hex()}
        if kind is list or kind is tuple:
            items = [self.encode(item, f"{path}[{n}]", depth + 1) for n, item in enumerate(value)]
            return items if kind is list else {"$tuple": items}
        if kind in MAPPINGS.values():
            return self._mapping(value, path, depth)
        if kind is Tensor:
            return {"$tensor": self._tensor(value, path)}
        if kind is np.ndarray:
            return {"$array": self._array(value, path)}
        if isinstance(value, np.generic):
            return {"$scalar": self._array(np.asarray(value), path)}
        raise _cannot_hold(f"a {kind.__module__}.{kind.__qualname__}", path)

    def _mapping(self, value: dict[Any, Any], path: str, depth: int) -> Any:
        inner = {
            key: self.encode(item, f"{path}[{_key(key, path)}]", depth + 1) for key, item in value.items()
        }
        if type(value) is dict and all(type(k) is str and _is_plain(k) and k[:1] != "$" for k in inner):
            return inner
        tag = next(name for name, kind in MAPPINGS.items() if type(value) is kind)
        return {tag: [[self.encode(key, path), item] for key, item in inner.items()]}

    def _tensor(self, tensor: Tensor, path: str) -> str:
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            layout = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
            raise _cannot_hold(f"a {layout} tensor of {tensor.dtype}", path)
        if id(tensor) not in self._names:
            self._names[id(tensor)] = path
            self._kept.append(tensor)
            self.tensors[path] = self._alone(tensor.detach().resolve_conj().resolve_neg().contiguous())
        return self._names[id(tensor)]

    def _alone(self, tensor: Tensor) -> Tensor:
        """The tensor in memory that no other tensor of the file is in, as safetensors asks."""
        storage = tensor.untyped_storage().data_ptr()
        if storage in self._storages:
            return tensor.clone()
        self._storages.add(storage)
        return tensor

    def _array(self, array: np.ndarray[Any, Any], path: str) -> str:
        try:
            # A copy, not `ascontiguousarray`, which would make a shape of () one of (1,).
            tensor = torch.from_numpy(np.array(array, order="C"))
        except (TypeError, ValueError):  # of text, of objects, of records, in another machine's byte order
            raise _cannot_hold(f"a NumPy array of {array.dtype}", path) from None
        return self._tensor(tensor, path)


def _key(key: Any, path: str) -> str:
    """A dict's key as it stands in a path: 0 and '0' differ."""
    if not _is_key(key):
        raise _cannot_hold(f"the key {key!r} ({type(key).__name__})", path)
    return repr(key)


def _is_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(map(_is_key, key))
    # Two NaNs are two keys, and look alike.
    return key is None or type(key) in (str, int, bool) or (type(key) is float and key == key)


def _is_plain(text: str) -> bool:
    """Whether JSON gives the text back: two lone surrogates beside each other would come back as one character."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _cannot_hold(what: str, path: str) -> CheckpointError:
    return CheckpointError(
        f"the state holds {what} at {path or 'its top'}, which cannot be saved without pickle; "
        "state may hold numbers, text, None, lists, tuples, dicts, tensors and NumPy arrays"
    )


class _Decoder:
    """Turns what `_Encoder` made back into the state; strict, so that a damaged file is no other state."""

    def __init__(self, tensors: dict[str, Tensor], source: Path) -> None:
        self.tensors, self.source = tensors, source
        self.used: set[str] = set()
        self._read: dict[str, Callable[[Any], Any]] = {
            "$tuple": lambda items: tuple(self._items(items)),
            "$float": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
            "$text": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
            "$tensor": self._tensor,
            "$array": lambda name: self._tensor(name).numpy(),
            "$scalar": lambda name: self._tensor(name).numpy()[()],
            **{tag: self._mapping_reader(kind) for tag, kind in MAPPINGS.items()},
        }

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return list(self._items(value))
        if not isinstance(value, dict):
            return value
        if not any(key.startswith("$") for key in value):
            return {key: self.decode(item) for key, item in value.items()}
        try:
            (tag,) = value  # alone, as it was written
            return self._read[tag](value[tag])
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, struct.error):
            raise CheckpointError(f"'{self.source}' is damaged: {json.dumps(value)[:120]}") from None

    def _items(self, items: Any) -> Iterator[Any]:
        if not isinstance(items, list):
            raise TypeError
        return map(self.decode, items)

    def _mapping_reader(self, kind: type[dict[Any, Any]]) -> Callable[[Any], dict[Any, Any]]:
        def read(pairs: Any) -> dict[Any, Any]:
            result = kind()
            for key, item in pairs:
                result[self.decode(key)] = self.decode(item)
            return result

        return read

    def _tensor(self, name: Any) -> Tensor:
        self.used.add(name)
        return self.tensors[name]
