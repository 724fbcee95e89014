from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with reference values and real posts that may not be copied into it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        reason = f"{folder} is absent: it holds reference values and posts that are not part of the repository"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store of the sample world: 54 training posts, 10 validation posts."""
    from cromic_ds.data.world.sample import SampleSettings, sample

    out = tmp_path_factory.mktemp("world") / "store"
    sample(SampleSettings(out=str(out), posts=64, seed=3, val_fraction=10 / 64))
    return out
