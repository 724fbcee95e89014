"""Recipes: YAML files of settings, by their path or by the name of a shipped one."""

from __future__ import annotations

from pathlib import Path

from cromic_ds.errors import UserError, nearest
from cromic_ds.shipped import shipped


def find_recipe(name: str, option: str) -> Path:
    """Return a recipe by its path, or by its name among the shipped ones (`sample_cmt`, `recipes/sample_cmt.yaml`)."""
    folder = shipped("recipes")
    for path in (Path(name), folder / Path(name).name, folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    raise UserError(
        f"{option}: no file {name!r}{nearest(name, known)}, and none of the shipped recipes ({', '.join(known)})"
    )
