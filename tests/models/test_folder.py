"""What a model folder's headers say. What attacks is in tests/faults/test_pickles.py and test_vocabulary.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from holdfast.errors import ModelError
from holdfast.models.folder import (
    differing_shapes,
    folder_digest,
    folder_of,
    pickles_in,
    read_object,
    require_no_pickle,
    shapes_of,
)


def test_shapes_of_one_file_and_of_shards(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, tmp_path / "model.safetensors")
    assert shapes_of(tmp_path) == {"a": (2, 3), "b": ()}
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(4)}, tmp_path / "two.safetensors")
    places = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert shapes_of(tmp_path) == {"a": (2, 3), "b": (), "c": (4,)}


def test_the_configuration_may_name_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "own.safetensors")
    with pytest.raises(ModelError, match="no weights as safetensors"):
        shapes_of(tmp_path)
    (tmp_path / "config.json").write_text('{"transformers_weights": "own.safetensors"}')
    assert shapes_of(tmp_path) == {"a": (2,)}


def test_sizes_that_differ_are_said() -> None:
    found = {"a": (2, 3), "b": (4,), "c": (), "d": (1,)}
    assert differing_shapes(found, dict(found)) == ""
    assert differing_shapes(found, {"e": (1,)}) == ""  # what is missing is another fault
    words = differing_shapes(found, {"a": (3, 2), "b": (4,), "c": (5,), "d": (2,)}, most=2)
    assert words == (
        "'a' is 2 x 3, and the configuration makes it 3 x 2; 'c' is one number, and the configuration makes it 5"
    )


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 66176])
def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path, length: int) -> None:
    """640 is 0x0280: its bytes are those a pickle of protocol 2 begins with."""
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = length.to_bytes(8, "little") + header.ljust(length) + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert content[0] == 0x80
    assert 2 <= content[1] <= 5
    require_no_pickle(tmp_path)
    assert shapes_of(tmp_path) == {"a": (1,)}


def test_names_of_pickles(tmp_path: Path) -> None:
    assert pickles_in(tmp_path) == ""
    for name in ("b.bin", "a.pt", "c.txt"):
        (tmp_path / name).touch()
    assert pickles_in(tmp_path) == "a.pt, b.bin"
    for number in range(9):
        (tmp_path / f"{number}.pkl").touch()
    assert pickles_in(tmp_path) == "0.pkl, 1.pkl, 2.pkl, 3.pkl, 4.pkl, ..."


def test_objects_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(ModelError, match=r"b\.json' is not JSON that can be read"):
        read_object(tmp_path / "b.json")
    assert folder_of(str(tmp_path)) == tmp_path
    assert folder_of("me/mine") is None
    assert folder_of("~nobody-of-this-name/x") is None
    assert folder_of("x" * 5000) is None


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = folder_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not the model's")
    assert folder_digest(tmp_path) == first
    (tmp_path / "config.json").write_text("{}")
    second = folder_digest(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert len({first, second, folder_digest(tmp_path)}) == 3
