"""Imports point down (see DESIGN.md): no room knows of one above it."""

import ast
from pathlib import Path

import pytest

import sa2depth

ROOT = Path(sa2depth.__file__).parent

# __main__ is the command itself
BELOW_ALL = {
    *{"errors", "resources", "version", "atomic", "masks", "holes", "depth_size"},
    *{
        "threads",
        "stages",
        "quoting",
        "image_files",
        "file_kinds",
        "limits",
        "targets",
        "interrupts",
        "output",
        "values",
    },
}
# What each room may import besides its own and what is below all.
ALLOWED = {
    "ops": set(),
    "nn": {"ops"},
    "models": {"nn", "ops"},
    "losses": set(),
    "metrics": set(),
    "data": set(),
    "report": {"metrics"},
    "weights": {"models", "nn", "ops"},
    "export": {"models", "nn", "ops", "infer", "weights"},
    "infer": {"models", "nn", "ops", "weights", "metrics", "report"},
    "lit": {"models", "nn", "ops", "losses", "metrics", "data", "weights", "report"},
}
# Public names and the room behind each.
PUBLIC = {"create_model": "factory", "load_model": "weights", "__version__": "version"}


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms of sa2depth that a file imports, at its head or inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                [f"sa2depth.{alias.name}" for alias in node.names]
                if node.module == "sa2depth"
                else [node.module]
            )
        firsts = {name.split(".")[1] for name in names if name.startswith("sa2depth.")}
        rooms |= {PUBLIC.get(first, first) for first in firsts}
    return rooms


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = room(path)
    rooms = imported_rooms(path) - {own}
    if own not in ("cli", "__main__"):
        assert "cli" not in rooms, "nothing imports cli"
    if own in BELOW_ALL:
        assert not rooms - BELOW_ALL
    if own in ALLOWED:
        above = rooms - ALLOWED[own] - BELOW_ALL
        assert not above, f"{own} may not import {', '.join(sorted(above))}"


def test_every_rule_names_an_existing_room():
    rooms = {room(path) for path in FILES}
    for name in set(ALLOWED) - {"export"}:
        assert name in rooms
