"""Starting the real training script in real processes, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cromic_ds.ranks.launcher import free_port
from helpers.paths import REPOSITORY

QUIET = ["--tracking.wandb", "off", "--tracking.console", "off"]


def environment(**more: str) -> dict[str, str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu", **more}
    env.setdefault("TORCH_EXTENSIONS_DIR", str(REPOSITORY / ".cache" / "torch_extensions"))
    return env


class Job:
    """`script` in `ranks` processes, as a launcher would start them, each with its output in a file.

    `more` is added to their environment.
    """

    def __init__(self, folder: Path, arguments: list[str], ranks: int = 1, script: str = "pretrain.py", **more: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"rank{r}.log" for r in range(ranks)]
        port = str(free_port())
        self.processes = []
        for rank, log in enumerate(self.logs):
            env = environment(
                RANK=str(rank),
                WORLD_SIZE=str(ranks),
                LOCAL_RANK=str(rank),
                LOCAL_WORLD_SIZE=str(ranks),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                **more,
            )
            command = [sys.executable, str(REPOSITORY / script), *arguments]
            with log.open("a") as f:
                self.processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=f, stderr=f))

    def output(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in self.logs)

    def wait(self, timeout: float = 240) -> list[int]:
        """Return the exit codes. All processes are killed if one takes longer than `timeout` seconds."""
        end = time.monotonic() + timeout
        try:
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for p in self.processes:
            if p.poll() is None:
                p.send_signal(signal.SIGKILL)
                p.wait()

    def wait_for_step(self, run: Path, step: int, timeout: float = 240) -> None:
        """Return once `metrics.jsonl` contains training step `step`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if last_step(run) >= step:
                return
            assert any(p.poll() is None for p in self.processes), self.output()
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached in {timeout} s\n{self.output()}")


def run_to_end(
    folder: Path, arguments: list[str], ranks: int = 1, script: str = "pretrain.py", timeout: float = 240, **more: str
) -> None:
    job = Job(folder, arguments, ranks, script, **more)
    assert job.wait(timeout) == [0] * ranks, job.output()


def cromic_ds(*arguments: object, timeout: float = 600) -> str:
    """Run a command of the console script in a process; return what it printed."""
    command = [str(Path(sys.executable).parent / "cromic-ds"), *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def records(run: Path, kind: str = "train") -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def last_step(run: Path) -> int:
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines if '"train"' in line), default=0)
    except (OSError, ValueError):  # not there yet, or its last line is being written
        return 0


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in records(run)]
