from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cromic_ds.data.record import Record
from cromic_ds.data.store_writer import StoreWriter
from cromic_ds.data.tokenizer import SPECIAL, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join([*SPECIAL.values(), *"红蓝绿"]), encoding="utf-8")
    return load_tokenizer(file)


@pytest.fixture
def make_store(tmp_path, tokenizer) -> Callable[..., Path]:
    """make_store(task, split=[(id, references, extras), …], …): a store without tokens, for scoring."""

    def make(task: str, name: str = "store", **splits: list[tuple[str, list[str], dict]]) -> Path:
        with StoreWriter(tmp_path / name, tokenizer, task=task) as store:
            for split, records in splits.items():
                for id, comments, extras in records:
                    store.add(split, Record(id, "", comments, extras=extras))
        return tmp_path / name

    return make
