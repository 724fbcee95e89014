"""Who may import whom: the rules of the house, read from the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cromic_ds"
LEAVES = {"answers", "batch", "errors"}
ALLOWED = {
    "answers": set(),
    "batch": set(),
    "errors": set(),
    "data": LEAVES | {"data"},
    "models": LEAVES | {"models"},
    "metrics": LEAVES | {"metrics"},
    "tracking": LEAVES | {"tracking"},
    "tasks": LEAVES | {"tasks", "data", "metrics"},
    "rating": LEAVES | {"rating", "data", "metrics", "tasks"},
    "doctor": LEAVES | {"doctor", "data", "models", "tracking", "training"},
    "table": LEAVES | {"table", "data", "models", "tasks"},
    "training": LEAVES | {"training", "data", "models", "metrics", "tracking", "tasks"},
    "cli": LEAVES | {"cli", "training", "data", "models", "metrics", "tracking", "tasks", "rating"},
}
ONLY_IN = {"deepspeed": "training", "wandb": "tracking"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_room_may(path: Path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "cromic_ds" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in ALLOWED.get(room, set()), f"{room} imports {name}"
        if parts[0] in ONLY_IN:
            assert room == ONLY_IN[parts[0]], f"{parts[0]} is imported in {room}"
