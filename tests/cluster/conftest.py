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
    """Give each process one thread, because they share this machine's cores, and one folder for what they compile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in launching.environment().items():
            patch.setenv(name, value)
        patch.delenv("GLOO_SOCKET_IFNAME")  # there is a network between the hosts
        yield


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder like the repository, to submit in; jobs write their files there."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("launch", "recipes", "pretrain.py", "finetune.py"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder
