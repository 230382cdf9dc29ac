"""Imports point downwards, and third-party packages come in through their doors only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "medsam2_ft"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "slicer" not in path.parts)

LAYERS = [
    {"errors", "resources"},
    {"config", "io", "overlay"},
    {"data", "prompts", "losses", "metrics"},
    {"modeling"},
    {"training", "inference"},
    {"benchmark", "deploy"},
    {"__main__"},
]
DOORS = {
    "sam2": ("modeling/", "inference/propagate.py"),
    "lightning": ("data/datamodule.py", "training/"),
    "gradio": ("deploy/",),
    "fastapi": ("deploy/",),
    "uvicorn": ("deploy/",),
}
MAY_SHARE = {("metrics", "data"), ("data", "prompts"), ("data", "io"), ("data", "metrics")}
"""Rooms of one layer that may know each other."""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if name in rooms)


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in it, but not for type checking alone."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(inner) for block in typing_only for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards_through_the_doors(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "data_prep":
            pytest.fail(f"{path} imports data_prep: the library never does")
        if parts[0] in DOORS and path.relative_to(PACKAGE).as_posix() != parts[0]:
            relative = path.relative_to(PACKAGE).as_posix()
            assert any(relative.startswith(door) for door in DOORS[parts[0]]), f"{relative} imports {parts[0]}"
        if parts[0] == "medsam2_ft" and len(parts) > 1 and here != "__init__":
            there = parts[1]
            allowed = there == here or layer(there) < layer(here) or (here, there) in MAY_SHARE
            assert allowed, f"{path.relative_to(ROOT)} imports {name}, which lies above or beside it"


def test_slicer_extension_stands_alone():
    for path in (PACKAGE / "deploy" / "slicer").rglob("*.py"):
        foreign = {name for name in imports(path) if name.split(".")[0] in ("medsam2_ft", "torch", "requests")}
        assert not foreign, f"{path} imports {foreign}"


def test_no_module_outgrows_its_room():
    long = {str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines: {long}"


def test_no_room_for_odds_and_ends():
    names = {"utils", "helpers", "common", "misc", "base"}
    assert not [path for path in (*MODULES, *(ROOT / "data_prep").rglob("*.py")) if path.stem in names]
