from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from cluster import REPOSITORY, Cluster, missing


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: Cluster) -> Cluster:
    """Two nodes, node1 and node2, without jobs, and a head that reaches them by Slurm and by ssh."""
    session_cluster.output("scancel", "--user=root")
    session_cluster.wait_until_idle()
    return session_cluster


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like the repository's, to submit in: what runs there is written there."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("launch", "recipes", "pretrain.py", "finetune.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder
