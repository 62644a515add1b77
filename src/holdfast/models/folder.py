"""A model's folder, looked over before anything in it is loaded: no pickle, no path that leads out, weights that fit.

Everything here reads headers and small files; no weight is read, and nothing is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from holdfast.errors import ModelError
from holdfast.file_kinds import HEAD, PICKLES, begins_as_safetensors, foreign_kind

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# What is read of a model's folder besides its weights: a pickle by such a name is one all the same.
READ = frozenset({".json", ".jinja", ".txt", ".model", ".safetensors"})

Shapes = dict[str, tuple[int, ...]]


def folder_of(name: str) -> Path | None:
    """The folder that a model's name is the path of; None for a name on the hub."""
    path = os.path.expanduser(name)
    return Path(path) if os.path.isdir(path) else None


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a model folder's weights, configuration, tokenizer and chat template."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def require_sound_folder(folder: Path) -> None:
    """Refuse a folder that says of itself what it is not. Weights need not be there.

    Raises:
        ModelError: an adapter in the place of a model; a file that is a pickle or an archive; fewer weights than the
            configuration has layers. Names the file.
    """
    require_no_adapter(folder)
    require_no_pickle(folder)
    layers = _layers(folder / "config.json")
    if layers and _named_weights(folder) is not None and layers > (tensors := len(shapes_of(folder))):
        raise ModelError(
            f"'{folder / 'config.json'}' says {layers} layers, but the weights beside it are {tensors} tensors: they "
            "do not belong together"
        )


def require_no_pickle(folder: Path) -> None:
    """Raise a ModelError where a file that would be read is a pickle or an archive, whatever its name says."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in READ or not path.is_file():
            continue
        with path.open("rb") as file:
            head = file.read(HEAD)
        if path.suffix == ".safetensors" and begins_as_safetensors(head, path.stat().st_size):
            continue
        kind = foreign_kind(head)
        if kind is not None:
            raise ModelError(
                f"'{path}' is not what its name says, but {kind}: loading it may run code, so it is not"
            )


def pickles_in(folder: Path) -> str:
    """The pickles of a folder by their names, for people; empty where there is none."""
    names = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def shapes_of(folder: Path) -> Shapes:
    """Every weight's shape, from the files' headers.

    Raises:
        ModelError: no safetensors weights; a file that is none, that is missing or that lies elsewhere.
    """
    shapes: Shapes = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"'{path}' cannot be read as safetensors: {error}. It is damaged, or was not copied to its end"
            ) from error
    return shapes


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights."""
    own = _named_weights(folder)
    if own is None or not (folder / own).is_file():
        pickles = pickles_in(folder)
        raise ModelError(
            f"'{folder}' holds no weights as safetensors ({own or f'{WEIGHTS} or {INDEX}'})"
            + (
                f". It holds pickles ({pickles}), which are never opened, for loading one can run any code: have "
                "whoever made them save them as safetensors"
                if pickles
                else ""
            )
        )
    if not own.endswith(".json"):
        return [folder / own]
    names = read_object(folder / own).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"'{folder / own}' has no `weight_map` from the names of weights to those of files")
    for name in sorted(set(names.values())):
        _require_own(name, (".safetensors",), folder / own)
        if not (folder / name).is_file():
            raise ModelError(
                f"'{folder / own}' names '{name}', which is not there: copy all files of the model"
            )
    return [folder / name for name in sorted(set(names.values()))]


def _named_weights(folder: Path) -> str | None:
    """The file of the weights, or of their index: as the configuration names it, or by its usual name."""
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = config.get("transformers_weights")
    if isinstance(named, str):
        _require_own(named, (".safetensors", ".safetensors.index.json"), folder / "config.json")
        return named
    return next((name for name in (WEIGHTS, INDEX) if (folder / name).is_file()), None)


def _require_own(name: str, suffixes: tuple[str, ...], where: Path) -> None:
    if name != Path(name).name or not name.endswith(suffixes):
        raise ModelError(
            f"'{where}' names '{name}' as a file of weights: it must be a safetensors file in the folder itself"
        )


def require_no_adapter(folder: Path) -> None:
    """Raise a ModelError where a folder holds a LoRA adapter in the place of a model, or beside one.

    transformers would load its base and put the adapter on it: what is then trained and saved is neither.
    """
    if not (folder / ADAPTER).is_file():
        return
    config = read_object(folder / ADAPTER)
    base = config.get("base_model_name_or_path")
    sizes = _adapter_sizes(folder)
    misfit = _misfit(sizes, own) if isinstance(base, str) and (own := folder_of(base)) else ""
    raise ModelError(
        f"'{folder}' is an adapter of rank {config.get('r')} on the model '{base}', not a model ({ADAPTER} is there"
        + "".join(f"; its {name} is for {size[0]} x {size[1]}" for name, size in list(sizes.items())[:1])
        + f"){misfit}. Merge it first (`holdfast export ADAPTER OUTPUT`), and give OUTPUT"
    )


def _adapter_sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """(output, input) sizes of the weights that an adapter changes, by their names in the base."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read as safetensors: {error}") from error
    pairs = [(name, name.replace(".lora_A.", ".lora_B.")) for name in shapes if ".lora_A." in name]
    return {
        a.removeprefix("base_model.model.").replace(".lora_A.", "."): (shapes[b][0], shapes[a][1])
        for a, b in pairs
        if b in shapes and len(shapes[a]) == len(shapes[b]) == 2
    }


def _misfit(sizes: dict[str, tuple[int, int]], base: Path) -> str:
    """Where an adapter's sizes are not its base's; empty where all that can be compared agree."""
    try:
        shapes = shapes_of(base)
    except ModelError:
        return ""
    for name, size in sizes.items():
        if name in shapes and shapes[name] != size:
            return (
                f"; and it is another model's: '{name}' is {shapes[name][0]} x {shapes[name][1]} in '{base}', and "
                f"{size[0]} x {size[1]} in the adapter"
            )
    return ""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: it is none.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"'{path}' is not JSON that can be read: {reason}") from error
    if not isinstance(found, dict):
        raise ModelError(f"'{path}' holds a JSON {type(found).__name__}, not an object")
    return found


def differing_shapes(found: Shapes, expected: Shapes, most: int = 3) -> str:
    """The weights whose shapes differ, the first few, in words; empty where none does."""
    names = [name for name, shape in expected.items() if name in found and found[name] != shape]
    return "; ".join(
        f"'{name}' is {_size(found[name])}, and the configuration makes it {_size(expected[name])}"
        for name in names[:most]
    )


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _layers(path: Path) -> int:
    """The layers that a configuration speaks of, of its text model where it has several; 0 where it says nothing."""
    if not path.is_file():
        return 0
    config = read_object(path)
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    return max((n for one in sections if type(n := one.get("num_hidden_layers")) is int), default=0)
