"""No module of the room imports deepspeed, and the commands' modules import neither torch nor transformers: they start fast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

ROOM = REPOSITORY / "cromic_ds" / "inference"
MODULES = sorted(f"cromic_ds.inference.{path.stem}" for path in ROOM.glob("*.py") if path.stem != "__init__")
HEAVY = ("torch", "transformers", "scipy", "pandas", "matplotlib", "jieba", "pycocoevalcap", "java")
LIGHT = ("settings", "generate", "evaluate", "predict", "import_published")


def imported(program: str) -> set[str]:
    """Return the modules that a fresh interpreter has imported after the program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(done.stdout.split())


def test_no_module_imports_deepspeed():
    modules = imported("\n".join(f"import {module}" for module in MODULES))
    assert set(MODULES) <= modules
    assert "deepspeed" not in modules


@pytest.mark.parametrize("name", LIGHT)
def test_a_module_of_a_command_imports_nothing_heavy(name: str):
    assert imported(f"import cromic_ds.inference.{name}").isdisjoint(HEAVY)


def test_loading_an_export_does_not_import_deepspeed(export_folder: Path):
    program = f"from cromic_ds.inference.loaded import load; load({str(export_folder)!r}, 'fp32').generate('猜猜看')"
    assert "deepspeed" not in imported(program)
