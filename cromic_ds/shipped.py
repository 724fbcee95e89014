"""Where the package's files are: shipped DeepSpeed configs and recipes, and what it keeps. Standard library only."""

import os
from pathlib import Path

from cromic_ds.errors import UserError, nearest

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """Return the folder `ds_configs` or `recipes`: inside an installed package, or at the top level of a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


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


def extensions_folder() -> Path:
    """Return where DeepSpeed's compiled operations are kept, so that every start finds them again: TORCH_EXTENSIONS_DIR where
    that is set, .cache/torch_extensions in a checkout (as in the Makefile), the user's cache for an installed package."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    if not (PACKAGE / "recipes").is_dir():
        return PACKAGE.parent / ".cache" / "torch_extensions"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cromic_ds" / "torch_extensions"
