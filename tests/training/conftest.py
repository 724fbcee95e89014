"""`run_ranks`: real DeepSpeed processes on this machine's CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[dict]]:
    """`run_ranks(jobs, world_size=2)` runs `ds_worker.py` in so many processes and returns rank 0's answer to each job."""

    def start(jobs: list[dict], world_size: int = 2, timeout: float = 300) -> list[dict]:
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            **{"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_LOG_LEVEL": "ERROR"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)},
            "LOCAL_SIZE": str(world_size),
            "PYTHONPATH": str(REPOSITORY),
        }
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(REPOSITORY / ".cache" / "torch_extensions"))
        command = [sys.executable, str(Path(__file__).parent / "ds_worker.py"), "jobs.json", "answers.json"]
        ranks = []
        for rank in range(world_size):
            with (tmp_path / f"rank{rank}.log").open("w") as log:
                env = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(timeout) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        logs = "\n".join((tmp_path / f"rank{rank}.log").read_text()[-3000:] for rank in range(world_size))
        assert codes == [0] * world_size, logs
        return json.loads((tmp_path / "answers.json").read_text())

    return start
