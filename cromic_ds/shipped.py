"""Files that come with the package: DeepSpeed configs and recipes. Standard library only."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """Return the folder `ds_configs` or `recipes`: inside an installed package, or at the top level of a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
