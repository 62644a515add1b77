"""The weights of a checkpoint: written so that `from_pretrained` (or PEFT) loads the folder, and read back into the
model that wrote them, bit for bit.

A checkpoint has what training changes: all weights of a model that is trained whole, those of the adapter (trained
heads included) of one that has one. Every name in the file is the model's own, so that the way back needs no
conversion.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.utils import logging as library

from holdfast.errors import CheckpointError, ConfigError
from holdfast.ranks import once
from holdfast.training.processes import spread, whole

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, by the name in the file; the tensors share the model's memory.

    Of matrices that are tied, a model that is trained whole has one.
    """
    if isinstance(model, PeftModel):
        adapter = _trained_adapter(model)
        # "auto" would ask the hub whether the vocabulary has grown.
        return dict(get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False))
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    leader = {name: min(same, key=lambda one: one in tied) for same in names.values() for name in same}
    return {name: tensor for name, tensor in model.state_dict().items() if leader.get(name, name) == name}


def require_saved(model: nn.Module) -> None:
    """See that everything that is trained is in the adapter, so that a checkpoint has it.

    Raises:
        ConfigError: a trained weight that is in no file.
    """
    if not isinstance(model, PeftModel):
        return
    saved = {_address(tensor) for tensor in own_weights(model).values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.is_meta and _address(parameter) not in saved:
            raise ConfigError(
                f"'{name}' is trained, and is not in the adapter: a checkpoint would lose it. List its module in "
                "`modules_to_save`, freeze it, or set save_strategy: no"
            )


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """`own_weights`, whole where they are sharded. All processes must call this; the main one's result counts."""
    return {name: whole(tensor) for name, tensor in own_weights(model).items()}


def write_weights(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write gathered weights and the configuration that belongs to them, on the main process."""
    if isinstance(model, PeftModel):
        config = copy.deepcopy(model.peft_config[_trained_adapter(model)])
        config.inference_mode = True
        save_file(_apart(weights), folder / ADAPTER, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
    else:
        with _no_progress_bar():
            # The names as they are: older ones, which some families convert theirs to on saving, need not lead back.
            model.save_pretrained(folder, state_dict=dict(weights), save_original_format=False)
    with ExitStack() as stack:
        _WeightsFile(folder, stack).require_same(weights)


def read_weights(model: nn.Module, folder: Path) -> None:
    """Give the model the weights that a checkpoint holds. All processes must call this together.

    Raises:
        CheckpointError: a file is missing, or a name, shape or number format is not the model's.
    """
    live = own_weights(model)
    with ExitStack() as stack:
        file: _WeightsFile | None = None

        def open_file() -> None:
            nonlocal file
            file = _WeightsFile(folder, stack)
            file.require_same(live)

        once(open_file)
        for name, tensor in live.items():
            with torch.no_grad():
                tensor.copy_(spread(None if file is None else file[name], tensor))
        if any(isinstance(tensor, DTensor) for tensor in live.values()):
            return
        again = own_weights(model)  # what is no view of the model's memory has not reached the model
        for name, tensor in live.items():
            if not torch.equal(again[name], tensor):
                raise CheckpointError(f"'{name}' of '{folder}' cannot be given back to the model")


class _WeightsFile:
    """The tensors of a folder's weights, in one file or in several with an index, read as they are asked for.

    Raises:
        CheckpointError: a file is missing, or cannot be read.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}  # by tensor name
        try:
            for name in self._file_names():
                file = stack.enter_context(safe_open(folder / name, framework="pt"))
                self._files |= dict.fromkeys(file.keys(), file)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"the weights in '{folder}' cannot be read: {error}") from error

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def require_same(self, weights: Mapping[str, Tensor]) -> None:
        """See that names, shapes and number formats are those of `weights`."""
        missing, unknown = weights.keys() - self._files.keys(), self._files.keys() - weights.keys()
        for names, what in ((missing, "lack"), (unknown, "have")):
            if names:
                raise CheckpointError(
                    f"the weights in '{self.folder}' {what} '{min(names)}' (and {len(names) - 1} more), "
                    f"which the model {'has' if what == 'lack' else 'does not'}: they are another model's"
                )
        for name, weight in weights.items():
            part = self._files[name].get_slice(name)
            saved = part[:0] if part.get_shape() else self[name]  # of the tensor itself, nothing is read
            shape = tuple(part.get_shape())
            if (shape, saved.dtype) != (tuple(weight.shape), weight.dtype):
                raise CheckpointError(
                    f"'{name}' in '{self.folder}' is {saved.dtype} of shape {shape}; the model's is "
                    f"{weight.dtype} of shape {tuple(weight.shape)}"
                )

    def _file_names(self) -> set[str]:
        for name in (ADAPTER, WEIGHTS):
            if (self.folder / name).is_file():
                return {name}
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        return set(index["weight_map"].values())


def _trained_adapter(model: PeftModel) -> str:
    """The name of the adapter that is trained.

    Raises:
        ConfigError: there are several.
    """
    names = [model.active_adapter] if isinstance(model.active_adapter, str) else list(model.active_adapters)
    if len(names) != 1:
        raise ConfigError(f"several adapters are active ({', '.join(names)}); a checkpoint holds one")
    return str(names[0])


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors each in memory of its own, as safetensors asks."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor.contiguous()
        seen.add(storage)
    return result


def _address(tensor: Tensor) -> int:
    """Where it lies in memory; of one that is shared out, this process's part."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.untyped_storage().data_ptr()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """No bar for each file that is written; the program's own bar goes on."""
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()
