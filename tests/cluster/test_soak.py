"""Two hundred steps through many kills, preemptions and requeues, on one to three ranks, give the weights of an undisturbed
run."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.cluster import Cluster
from helpers.cluster_runs import RECIPE, RUN, arguments
from helpers.launching import last_step, losses, records, run_to_end
from safetensors.torch import load_file

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
STEPS = 200
# At a rate of 1e-5, two undisturbed runs that differ in nothing but the order of sums are 5e-5 apart after 200 steps.
LENGTH = {
    "--loop.steps": STEPS,
    "--loop.global_batch": 12,
    "--checkpoint.every": 10,
    "--eval.every": 50,
    "--optim.lr": 1e-6,
}
RANKS = {1: ("--nodes=1",), 2: ("--nodes=2",), 3: ("--nodes=1", "--ntasks-per-node=3", "--cpus-per-task=1")}
STORM = ["kill"] * 5 + ["preempt"] * 2 + ["requeue"] * 2 + ["cancel", "corrupt"]


def settings(store: Path) -> list[str]:
    return arguments(store, *[part for pair in LENGTH.items() for part in pair])


class Soak:
    """One run, through as many jobs as it takes."""

    def __init__(self, cluster: Cluster, checkout: Path, store: Path, chance: random.Random):
        self.cluster, self.checkout, self.store, self.chance = cluster, checkout, store, chance
        self.run, self.ranks, self.job, self.seen = checkout / RUN, 0, 0, 0
        self.counts: Counter[str] = Counter()

    def submit(self) -> None:
        """Submit another job, on another number of ranks."""
        self.ranks = self.chance.choice([n for n in RANKS if n != self.ranks])
        options = [*RANKS[self.ranks], "launch/pretrain.sh", RECIPE, *settings(self.store)]
        self.job = self.cluster.sbatch(*options, cwd=self.checkout)
        self.counts[f"jobs on {self.ranks} ranks"] += 1

    def text(self) -> str:
        output = self.checkout / f"slurm-pretrain-{self.job}.out"
        return output.read_text()[-6000:] if output.exists() else str(self.cluster.job(self.job))

    def wait_for_steps(self, more: int) -> None:
        """Wait until the next start is some steps beyond the newest checkpoint."""
        goal, end = self.saved() + more, time.monotonic() + 240
        while not (self.starts() > self.seen and last_step(self.run) >= goal):
            job = self.cluster.job(self.job)
            assert time.monotonic() < end and job["JobState"] not in ("FAILED", "COMPLETED"), self.text()
            if job["JobState"] == "PENDING" and job["Restarts"] != "0":
                self.cluster.start_now(self.job)
            time.sleep(0.1)
        self.seen = self.starts()

    def starts(self) -> int:
        log = self.run / "log.txt"
        return len(re.findall(r"steps: \d+ of", log.read_text())) if log.exists() else 0

    def processes(self) -> list:
        """Return the processes that train. Those that load data have the same command."""
        scripts = [p for p in self.cluster.processes(self.checkout) if p.command[1:3] == ["-u", "pretrain.py"]]
        numbers = {p.environment["SLURM_PROCID"]: p for p in sorted(scripts, key=lambda p: p.pid, reverse=True)}
        return list(numbers.values())

    def saved(self) -> int:
        latest = self.run / "checkpoints" / "latest"
        return int(latest.read_text().removeprefix("step-")) if latest.exists() else 0

    def failed(self) -> None:
        assert self.cluster.wait_for_end(self.job, 60)["JobState"] == "FAILED", self.text()

    # ---- what happens to it

    def kill(self) -> None:
        os.kill(self.chance.choice(self.processes()).pid, signal.SIGKILL)
        self.failed()
        self.submit()

    def preempt(self) -> None:
        how = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
        urgent = self.cluster.sbatch(*how, cwd=self.checkout)
        assert self.cluster.wait_for_end(urgent, 120)["JobState"] == "COMPLETED"

    def requeue(self) -> None:
        self.cluster.output("scontrol", "requeue", self.job)
        self.cluster.wait_for_state(self.job, "PENDING")

    def cancel(self) -> None:
        self.cluster.output("scancel", self.job)
        assert self.cluster.wait_for_end(self.job)["JobState"] == "CANCELLED", self.text()
        self.submit()

    def corrupt(self) -> None:
        """Kill a rank, and flip a bit of the newest checkpoint."""
        os.kill(self.processes()[0].pid, signal.SIGKILL)
        self.failed()
        newest = self.run / "checkpoints" / (self.run / "checkpoints" / "latest").read_text()
        shard = self.chance.choice(sorted(newest.glob("*.pt")))
        content = bytearray(shard.read_bytes())
        content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
        shard.write_bytes(content)
        self.submit()


def test_two_hundred_steps_through_a_storm(cluster, checkout, store, tmp_path):
    calm = tmp_path / "calm"
    run_to_end(tmp_path / "log", ["--config", RECIPE, *settings(store), "--out", str(calm)], ranks=2, timeout=600)
    seed = int(os.environ.get("STORM_SEED", "1"))
    chance = random.Random(seed)
    soak = Soak(cluster, checkout, store, chance)
    chance.shuffle(STORM)
    print(f"STORM_SEED={seed}: {', '.join(STORM)}")
    soak.submit()
    for event in STORM:
        soak.wait_for_steps(chance.randint(11 if event == "corrupt" else 1, 16))
        on, step = soak.ranks, last_step(soak.run)
        getattr(soak, event)()
        soak.counts[event] += 1
        print(f"{event} on {on} ranks after step {step}; newest checkpoint: step {soak.saved()}", flush=True)
    soak.wait_for_steps(1)
    assert cluster.wait_for_end(soak.job, 600)["JobState"] == "COMPLETED", soak.text()

    assert [record["step"] for record in records(soak.run)] == list(range(1, STEPS + 1))
    assert losses(soak.run) == pytest.approx(losses(calm), rel=5e-5)
    log = (soak.run / "log.txt").read_text()
    assert log.count("is damaged (") == 1
    ours, expected = (load_file(of / "export" / "model.safetensors") for of in (soak.run, calm))
    apart, whole = (
        torch.sqrt(sum(value.double().square().sum() for value in values))
        for values in ([ours[name].double() - value.double() for name, value in expected.items()], expected.values())
    )
    print(dict(soak.counts), f"{soak.starts()} starts; weights {apart / whole:.1e} apart", flush=True)
    assert apart <= 1e-5 * whole
