"""Each floor of the house imports only from the floors below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

ROOT = Path(holdfast.__file__).parent

# Bottom to top. `None` stands for everything below.
FLOORS = [
    "errors",
    "files",
    "file_kinds",
    "ranks",
    "objectives",
    "ops",
    "data",
    "models",
    "training",
    "diagnostics",
    "capability",
    "evaluation",
    "experiments",
    "reports",
    "demo",
    "cli",
    "__main__",
]
# Narrower than "everything below": what the design forbids besides.
ALONE = {
    "objectives": {"errors"},
    "ops": {"errors"},
    "data": {"errors", "files", "file_kinds", "ranks"},
    "evaluation": {
        "errors",
        "files",
        "file_kinds",
        "objectives",
        "ops",
        "data",
        "models",
        "diagnostics",
        "capability",
    },
    "reports": {"errors", "files"},
}


def imports_of(file: Path) -> set[str]:
    """Floors of the package that `file` imports, wherever in the file the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; name the module in full"
            module = node.module or ""
            names = [module] if module != "holdfast" else [f"holdfast.{a.name}" for a in node.names]
        inside = {name.split(".")[1] for name in names if name.startswith("holdfast.")}
        found |= {name for name in inside if name != "__version__"}
    return found


def floor_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_downward(file: Path) -> None:
    floor = floor_of(file)
    assert floor in FLOORS, f"{floor} is on no floor: add it to FLOORS where it belongs"
    allowed = ALONE.get(floor, set(FLOORS[: FLOORS.index(floor)])) | {floor}
    assert imports_of(file) <= allowed, f"{floor} may import {sorted(allowed)}"


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500, "past 500 lines: split it by concept"


def test_objectives_import_torch_only() -> None:
    for file in (ROOT / "objectives").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in {"torch", "holdfast"} | sys.stdlib_module_names, f"{file}: {name}"


def test_package_root_only_names_things() -> None:
    """`import holdfast` must stay light: the public names load when they are asked for."""
    code = "import sys, holdfast; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
