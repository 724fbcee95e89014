"""Fixtures of the long tests: a backbone pretrained on the sample world's comments, and the world's official files."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.launching import cromic_ds, run_to_end
from helpers.paths import REPOSITORY

PRETRAINING_STEPS, PICTURES = 2000, 2000


@pytest.fixture(scope="session")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the store that `make pretrain` trains on."""
    made = REPOSITORY / ".cache" / "sample_world"
    if not (made / "store.json").exists():
        made = tmp_path_factory.mktemp("world") / "store"
        cromic_ds("sample", "--out", made, "--posts", 20000)
    return made


@pytest.fixture(scope="session")
def backbone(posts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a pretraining of preset tiny."""
    out = tmp_path_factory.mktemp("backbone") / "run"
    command = ["--config", "recipes/sample_cmt.yaml", "--data.path", str(posts), "--out", str(out)]
    command += ["--loop.steps", str(PRETRAINING_STEPS), "--eval.every", "null", "--eval.generate", "100"]
    run_to_end(out.parent, command, ranks=2, timeout=1500)
    return out


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the five tasks' official folders, with scenes that no post has."""
    out = tmp_path_factory.mktemp("official") / "files"
    cromic_ds("sample", "--official", out, "--posts", PICTURES, "--val_fraction", 0.1)
    return out
