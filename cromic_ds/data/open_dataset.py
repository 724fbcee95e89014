"""Opening a data set of either layout."""

from pathlib import Path

from cromic_ds.data.dataset import Dataset
from cromic_ds.data.published_layout import PublishedDataset, holds_published, published_names
from cromic_ds.data.store import StoreDataset, is_store, read_meta
from cromic_ds.errors import UserError


def open_dataset(path: str | Path, split: str = "train") -> Dataset:
    """Open a split of a store, or of a folder (or one `.pt` file) in the published layout.

    Raises UserError when `path` is neither, or has no such split.
    """
    path = Path(path)
    if is_store(path):
        return StoreDataset(path, split)
    if holds_published(path):
        return PublishedDataset(path, split)
    raise _unknown(path)


def available_splits(path: str | Path) -> list[str]:
    """Return the split names of `path`. A single published file can be opened as any split and is listed by its own name."""
    if is_store(path):
        return list(read_meta(path)["splits"])
    if holds_published(path):
        return published_names(path)
    raise _unknown(Path(path))


def _unknown(path: Path) -> UserError:
    if not path.exists():
        return UserError(f"{path}: no such data set; make one with `cromic-ds prepare` or `cromic-ds sample`")
    if path.is_dir() and (path.parent / f"{path.name}.partial").is_dir():
        return UserError(f"{path}: its preparation is not finished; run the same `cromic-ds prepare` again")
    return UserError(
        f"{path}: neither a store (no store.json) nor the published layout (no <name>.pt beside <name>_image_lmdb); "
        "make a store with `cromic-ds prepare`"
    )
