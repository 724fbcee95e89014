from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import launching
from helpers.cluster import Cluster, missing
from helpers.paths import REPOSITORY


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


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """For each of the processes, which share this machine's cores; and what they compile is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in launching.environment().items():
            patch.setenv(name, value)
        patch.delenv("GLOO_SOCKET_IFNAME")  # there is a network between the hosts
        yield


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like the repository's, to submit in: what runs there is written there."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("launch", "recipes", "pretrain.py", "finetune.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder
