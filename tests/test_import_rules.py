"""Which room may import which, read from the code: each room only what comes before it, and no file in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "cromic_ds"
LEAVES = ("batch", "errors", "files", "progress", "run_folder", "settings", "shipped")
ROOMS = (
    *("leaves", "data", "metrics", "models", "tracking", "ranks", "tasks", "engine", "prepare", "inference", "world"),
    *("checkpoints", "training", "tools", "cli"),
)
ONLY_IN = {"deepspeed": "engine", "wandb": "tracking"}
STANDARD_LIBRARY_ONLY = (
    "files.py",
    "run_folder.py",
    "settings.py",
    "shipped.py",
    "ranks/processes.py",
    "ranks/watcher.py",
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """`cromic_ds.data.store` -> `data`; the package itself, which everyone may ask for its version, counts as a leaf."""
    first = module.split(".")[1] if "." in module else "leaves"
    return "leaves" if first in LEAVES else first


def imports(path: Path) -> set[str]:
    """Modules that the file imports, anywhere in it; `from package import module` names the module."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if (
        path == PACKAGE / "__init__.py"
    ):  # the public API imports lazily; what it imports for type checkers does not count
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = full & MODULES.keys()
            names |= modules | ({node.module} if len(modules) < len(full) else set())
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_rooms_before_its_own(path: Path):
    room = room_of(module_of(path))
    for name in imports(path):
        if name.split(".")[0] == "cromic_ds":
            assert ROOMS.index(room_of(name)) <= ROOMS.index(room), f"{room} imports {name}"
            if room == "leaves":
                assert name in ("cromic_ds", "cromic_ds.errors"), f"{path.name} is a leaf and imports {name}"
        for library, only in ONLY_IN.items():
            assert name.split(".")[0] != library or room == only, f"{library} is imported in {room}"


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_a_file_that_the_guard_uses_imports_the_standard_library_alone(name: str):
    import sys

    allowed = set(sys.stdlib_module_names) | {"cromic_ds"}
    assert {module.split(".")[0] for module in imports(PACKAGE / name)} <= allowed


def test_no_file_imports_itself_through_others():
    graph = {m: imports(path) & MODULES.keys() - {m} for m, path in MODULES.items()}
    while leaves := [m for m, needs in graph.items() if not needs & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph, f"in a circle, or above one: {', '.join(sorted(graph))}"
