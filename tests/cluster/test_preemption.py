"""Slurm takes a training's nodes away in each of its ways: the training saves, and resumes by itself where it stopped."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from helpers.cluster_runs import RECIPE, RUN, arguments, wait_for_step
from helpers.launching import losses, records, run_to_end

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
SOME = ["--loop.steps", 120]
ENDLESS = ["--loop.steps", 100_000]


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_to_end(folder, ["--config", RECIPE, *arguments(store, *SOME, "--out", folder / "run")], ranks=2)
    return folder / "run"


class Training:
    """`sbatch launch/pretrain.sh` on two nodes, W&B offline."""

    def __init__(self, cluster, checkout: Path, store: Path, length: list, options: tuple[str, ...] = ("--nodes=2",)):
        self.cluster, self.run = cluster, checkout / RUN
        settings = arguments(store, *length, "--tracking.wandb", "offline")
        self.job = cluster.sbatch(*options, "launch/pretrain.sh", RECIPE, *settings, cwd=checkout)
        self.output = checkout / f"slurm-pretrain-{self.job}.out"

    def wait_for_step(self, step: int) -> None:
        wait_for_step(self.run, step, self.text)

    def wait_for_restart(self, restart: int = 1) -> int:
        """Wait until the requeued job runs again; returns the step that it stopped after."""
        end = time.monotonic() + 240
        while (job := self.cluster.job(self.job))["Restarts"] != str(restart) or job["JobState"] != "RUNNING":
            assert time.monotonic() < end and job["JobState"] not in ("FAILED", "TIMEOUT", "COMPLETED"), self.text()
            if job["Restarts"] == str(restart) and job["JobState"] == "PENDING":
                self.cluster.start_now(self.job)
            time.sleep(0.2)
        return int(self.stops()[-1])

    def stops(self) -> list[str]:
        return re.findall(r"stopped by \S+ after step (\d+)", (self.run / "log.txt").read_text())

    def starts(self) -> list[str]:
        """Return after how many steps each start began."""
        return re.findall(r"steps: (\d+) of", (self.run / "log.txt").read_text())

    def text(self) -> str:
        return self.output.read_text()[-6000:] if self.output.exists() else str(self.cluster.job(self.job))

    def check_whole(self) -> None:
        """Check that no step is missing or duplicated, and that everything is one run in W&B."""
        steps = [record["step"] for record in records(self.run)]
        assert steps == list(range(1, len(steps) + 1))
        id = (self.run / "wandb_run_id").read_text().strip()
        folders = [path.name for path in (self.run / "wandb").glob("offline-run-*")]
        assert len(folders) == len(self.starts()) and all(name.endswith(id) for name in folders)


def test_a_job_with_more_priority_goes_first_and_the_training_ends_as_if_alone(cluster, checkout, store, undisturbed):
    training = Training(cluster, checkout, store, SOME)
    training.wait_for_step(3)
    id = (training.run / "wandb_run_id").read_text()
    urgent = cluster.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert cluster.wait_for_end(urgent)["JobState"] == "COMPLETED"
    ended = cluster.wait_for_end(training.job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), training.text()
    assert training.starts() == ["0", *training.stops()] and len(training.stops()) == 1
    assert losses(training.run) == losses(undisturbed)
    assert (training.run / "wandb_run_id").read_text() == id
    training.check_whole()
    assert f"will resume from step-{int(training.stops()[0]):08d}; requeued" in training.output.read_text()
    assert f"finished: {RUN}" in training.output.read_text()


def test_the_time_limit(cluster, checkout, store):
    training = Training(cluster, checkout, store, ENDLESS, ("--nodes=2", "--time=30", "--signal=USR1@60"))
    training.wait_for_step(3)
    hours, minutes, _ = map(int, cluster.job(training.job)["RunTime"].split(":"))
    cluster.output("scontrol", "update", f"jobid={training.job}", f"TimeLimit={hours * 60 + minutes + 1}")
    cluster.wait_for_state(training.job, "PENDING", timeout=120)
    cluster.output("scontrol", "update", f"jobid={training.job}", "TimeLimit=30")
    stopped = training.wait_for_restart()
    training.wait_for_step(stopped + 3)
    assert "stopped by SIGUSR1" in (training.run / "log.txt").read_text()
    assert training.starts() == ["0", str(stopped)]
    training.check_whole()


def test_requeue_signal_and_cancel_by_hand(cluster, checkout, store):
    training = Training(cluster, checkout, store, ENDLESS)
    training.wait_for_step(3)
    cluster.output("scontrol", "requeue", training.job)
    stopped = training.wait_for_restart()
    training.wait_for_step(stopped + 3)
    assert training.starts() == ["0", str(stopped)]

    cluster.output("scancel", "--signal=USR1", training.job)
    again = training.wait_for_restart(2)
    training.wait_for_step(again + 3)
    assert training.starts() == ["0", str(stopped), str(again)]

    cluster.output("scancel", training.job)
    ended = cluster.wait_for_end(training.job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "2")
    assert (training.run / "checkpoints" / "latest").read_text() == f"step-{int(training.stops()[-1]):08d}"
    training.check_whole()


def test_a_job_whose_rank_is_killed_fails_at_once_and_is_not_requeued(cluster, checkout, store):
    training = Training(cluster, checkout, store, ENDLESS)
    training.wait_for_step(3)
    rank = json.loads((training.run / "ranks" / "rank-0001.json").read_text())
    cluster.output("kill", "-KILL", rank["pid"], node=2)
    ended = cluster.wait_for_end(training.job, timeout=60)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), training.text()
    assert "failed with exit code 137" in training.text()
    assert "node2: task 1: Killed" in training.text()
    assert not (training.run / "finished.json").exists()


def test_a_requeued_job_with_fewer_nodes_keeps_the_global_batch(cluster, checkout, store):
    training = Training(cluster, checkout, store, ENDLESS)
    training.wait_for_step(3)
    assert "global batch 8 = micro-batch 2 × accumulation 2 × 2 ranks" in (training.run / "log.txt").read_text()
    cluster.output("scontrol", "requeue", training.job)
    cluster.wait_for_state(training.job, "PENDING")
    cluster.output("scontrol", "update", f"jobid={training.job}", "NumNodes=1", "NumTasks=1", "NumCPUs=4")
    stopped = training.wait_for_restart()
    training.wait_for_step(stopped + 3)
    assert training.starts() == ["0", str(stopped)]
    assert "global batch 8 = micro-batch 2 × accumulation 4 × 1 rank" in (training.run / "log.txt").read_text()
    training.check_whole()
