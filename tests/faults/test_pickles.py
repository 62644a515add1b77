"""A pickle is never loaded, wherever it lies and whatever its name says: each one here would leave a mark. It is
refused by its name; and the code holds no way to load one.
"""

from __future__ import annotations

import ast
import io
import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch

import holdfast as package
from holdfast.errors import CheckpointError, ModelError
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.models.loading import load_model, load_tokenizer
from holdfast.models.tiny import tiny_model
from holdfast.training.state_files import load_state
from tests.faults.commands import Bomb, copied, holdfast, set_keys, stage
from tests.faults.runs import run, trainer_of


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "mark")


def test_the_bomb_goes_off(bomb: Bomb, tmp_path: Path) -> None:
    """Without this the other tests could not fail."""
    import pickle

    bomb.as_torch(tmp_path / "x.bin")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.bin", weights_only=True)
    assert not bomb.went_off()
    pickle.loads(bomb.as_pickle())
    assert bomb.went_off()


# ---- in a model folder


def refused(folder: Path, rows: Path, bomb: Bomb, name: str, tmp_path: Path) -> str:
    """The message of a run that must not start: it names the file, and nothing was loaded."""
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert name in ended.error
    assert not bomb.went_off()
    assert not (tmp_path / "run").exists()
    return ended.error


def test_weights_that_are_pickles_alone(start: Path, rows: Path, tmp_path: Path, bomb: Bomb) -> None:
    folder = copied(start, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    bomb.as_torch(folder / "pytorch_model.bin")
    assert "holds no weights as safetensors" in refused(folder, rows, bomb, "pytorch_model.bin", tmp_path)


def test_pickles_beside_safetensors_are_left_alone(
    start: Path, rows: Path, tmp_path: Path, bomb: Bomb
) -> None:
    """As many folders have them: old weights, and what a Trainer saves."""
    folder = copied(start, tmp_path / "model")
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "v.pkl",
    ):
        bomb.as_torch(folder / name)
    ended = stage("align", folder, rows, tmp_path / "run")
    assert ended.code == 0, ended.error
    assert not bomb.went_off()


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "adapter_model.safetensors", "config.json", "generation_config.json"),
        *(
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.json",
        ),
        *("tokenizer.model", "merges.txt", "chat_template.jinja"),
    ],
)
def test_a_file_that_is_a_pickle_under_another_name(
    start: Path, rows: Path, tmp_path: Path, bomb: Bomb, name: str, form: str
) -> None:
    folder = copied(start, tmp_path / "model")
    if form == "pickle":
        (folder / name).write_bytes(bomb.as_pickle())
    else:
        bomb.as_torch(folder / name)
    words = refused(folder, rows, bomb, str(folder / name), tmp_path)
    kind = "a Python pickle" if form == "pickle" else "a zip archive, as torch.save writes"
    assert f"is not what its name says, but {kind}" in words


@pytest.mark.parametrize(
    "name",
    ["weights.bin", "../elsewhere.safetensors", "/tmp/elsewhere.safetensors", "deep/model.safetensors"],
)
def test_an_index_names_safetensors_of_its_folder_alone(
    start: Path, rows: Path, tmp_path: Path, bomb: Bomb, name: str
) -> None:
    """transformers would load a `.bin` that an index of safetensors names."""
    folder = copied(start, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    bomb.as_torch(folder / "weights.bin")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "in the folder itself" in refused(
        folder, rows, bomb, f"names '{name}' as a file of weights", tmp_path
    )
    (folder / "model.safetensors.index.json").unlink()
    set_keys(folder / "config.json", transformers_weights=name)
    assert "in the folder itself" in refused(
        folder, rows, bomb, f"names '{name}' as a file of weights", tmp_path
    )


@pytest.mark.parametrize(
    "index", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 5}}', "[" * 100_000]
)
def test_an_index_that_is_none(start: Path, rows: Path, tmp_path: Path, bomb: Bomb, index: str) -> None:
    folder = copied(start, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    refused(folder, rows, bomb, "model.safetensors.index.json", tmp_path)


def test_a_shard_that_is_a_pickle_or_missing(start: Path, rows: Path, tmp_path: Path, bomb: Bomb) -> None:
    folder = copied(start, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "which is not there" in refused(folder, rows, bomb, "model-2.safetensors", tmp_path)
    (folder / "model-2.safetensors").write_bytes(bomb.as_pickle())
    assert "but a Python pickle" in refused(folder, rows, bomb, "model-2.safetensors", tmp_path)


def header(text: bytes, length: int | None = None, data: bytes = b"\0" * 8) -> bytes:
    """A safetensors file."""
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensors(**offsets: list[int]) -> bytes:
    return json.dumps(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": own} for name, own in offsets.items()}
    ).encode()


HEADERS = {
    "nothing": b"",
    "a header without end": header(b"{}", 2**63),
    "a header of 100 MB": header(b"{}", 99_999_999),
    "nesting without end": header(b"[" * 1_000_000),
    "offsets before the file": header(tensors(a=[-8, 0])),
    "offsets that overlap": header(tensors(a=[0, 8], b=[0, 8])),
    "offsets behind the file": header(tensors(a=[0, 1 << 40])),
    "a size without end": header(
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}}'
    ),
    "bytes behind the tensors": header(tensors(a=[0, 8]), data=b"\0" * 9),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_safetensors_that_are_none(
    start: Path, rows: Path, tmp_path: Path, bomb: Bomb, content: bytes
) -> None:
    folder = copied(start, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    words = refused(folder, rows, bomb, str(folder / "model.safetensors"), tmp_path)
    assert "cannot be read as safetensors" in words


def test_half_a_weight_file(start: Path, rows: Path, tmp_path: Path, bomb: Bomb) -> None:
    folder = copied(start, tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "not copied to its end" in refused(folder, rows, bomb, "model.safetensors", tmp_path)


def test_an_adapter_that_is_a_pickle(start: Path, rows: Path, tmp_path: Path, bomb: Bomb) -> None:
    folder = copied(start, tmp_path / "adapter")
    attach_adapter(tiny_model("qwen3", 320), lora_config(tiny_model("qwen3", 320), rank=2)).save_pretrained(
        folder
    )
    (folder / "adapter_model.safetensors").unlink()
    bomb.as_torch(folder / "adapter_model.bin")
    refused(folder, rows, bomb, "is an adapter of rank 2", tmp_path)
    with pytest.raises(ModelError, match="is an adapter"):
        load_model(str(folder))
    assert not bomb.went_off()


def test_a_tokenizer_of_pickles(start: Path, tmp_path: Path, bomb: Bomb) -> None:
    folder = copied(start, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.pkl", "vocab.bin"):
        (folder / name).write_bytes(bomb.as_pickle())
    set_keys(folder / "tokenizer_config.json", tokenizer_class="TransfoXLTokenizer")
    with pytest.raises(ModelError, match=r"holds pickles, which are never opened: vocab\.bin, vocab\.pkl"):
        load_tokenizer(str(folder))
    assert not bomb.went_off()


# ---- among the rows


@pytest.mark.parametrize("suffix", "pkl pickle pt pth bin ckpt joblib dill".split())
def test_rows_as_a_pickle(start: Path, rows: Path, tmp_path: Path, bomb: Bomb, suffix: str) -> None:
    file = tmp_path / "rows" / f"more.{suffix}"
    file.parent.mkdir()
    file.write_bytes(bomb.as_pickle())
    (file.parent / "rows.jsonl").write_bytes(rows.read_bytes())
    for source in (file, file.parent):  # alone, and among rows that could be read
        for ended in (stage("align", start, source, tmp_path / "run"), holdfast("check", source)):
            assert ended.code == 2
            assert f"'{file}' is a pickle by its name" in ended.error
    assert not bomb.went_off()


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "arrow", "jsonl.gz"])
def test_rows_that_are_a_pickle_under_another_name(
    start: Path, tmp_path: Path, bomb: Bomb, suffix: str, form: str
) -> None:
    file = tmp_path / f"rows.{suffix}"
    if form == "pickle":
        file.write_bytes(bomb.as_pickle())
    else:
        bomb.as_torch(file)
    ended = stage("align", start, file, tmp_path / "run", "data.validation=lenient")
    assert ended.code == 2
    assert str(file) in ended.error
    assert not bomb.went_off()


def test_rows_stored_in_a_zip_are_not_taken_for_lines(start: Path, rows: Path, tmp_path: Path) -> None:
    """An archive that does not compress shows whole lines: lenient would train on those it does not cut in two."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.jsonl", rows.read_bytes())
    (tmp_path / "rows.jsonl").write_bytes(content.getvalue())
    ended = stage("align", start, tmp_path / "rows.jsonl", tmp_path / "run", "data.validation=lenient")
    assert ended.code == 2
    assert "not text, but a zip archive" in ended.error


# ---- in a checkpoint


def test_a_state_that_is_a_pickle(tmp_path: Path, bomb: Bomb) -> None:
    for suffix in ("json", "safetensors", "pt"):
        bomb.as_torch(tmp_path / f"optimizer.{suffix}")
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "optimizer")
    assert not bomb.went_off()


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_with_a_pickle_in_it(tmp_path: Path, bomb: Bomb, form: str) -> None:
    """Added under a name that transformers would load, or in the place of any file: it is refused by name."""
    folder = tmp_path / "run"
    run(trainer_of("slime", folder, lora=True, max_steps=2, save_steps=2))
    (checkpoint,) = folder.glob("checkpoint-*")
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json")
    assert files
    added = [
        checkpoint / name for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
    ]
    for file in [*added, *files]:
        before = file.read_bytes() if file.exists() else None
        if form == "pickle":
            file.write_bytes(bomb.as_pickle())
        else:
            bomb.as_torch(file)
        with pytest.raises(CheckpointError) as raised:
            trainer_of("slime", folder, lora=True, max_steps=2, save_steps=2).train(
                resume_from_checkpoint=str(checkpoint)
            )
        assert file.name in str(raised.value)
        assert not bomb.went_off()
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)


# ---- the code itself

ROOT = Path(package.__file__).parent
PICKLERS = ("pickle", "cPickle", "dill", "joblib", "marshal", "shelve")


def dangers(source: str) -> list[str]:
    """What in a source would run code out of a file: pickles, `eval`, `exec`, a model's own code unasked."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in PICKLERS]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in (
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "yaml.unsafe_load",
            "yaml.full_load",
        ):
            found.append(name)
        if name in ("torch.load", "np.load", "numpy.load", "pandas.read_pickle", "pd.read_pickle"):
            found.append(name)
        if options.get("weights_only") == "False" or options.get("allow_pickle") == "True":
            found.append(name)
        if options.get("trust_remote_code") == "True" or options.get("shell") == "True":
            found.append(name)
        if name == "yaml.load" and "_Loader" not in ast.unparse(node):
            found.append(name)
    for literal in ("weights_only=False", "trust_remote_code=True"):
        found += [literal] * source.count(literal)
    return found


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_loads_a_pickle_or_runs_a_file(file: Path) -> None:
    assert dangers(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from joblib import load",
            "torch.load('x')",
            "torch.load('x', weights_only=True)",
        ),
        *(
            "f(weights_only=False)",
            "np.load(f, allow_pickle=True)",
            "eval('1')",
            "exec(text)",
            "yaml.load(t, Loader)",
        ),
        *("AutoModel.from_pretrained(n, trust_remote_code=True)", "subprocess.run(c, shell=True)"),
    ],
)
def test_what_the_search_finds(line: str) -> None:
    assert dangers(line)
