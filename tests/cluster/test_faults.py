"""Ranks that die, stop or hang, and a network that fails, on two hosts: the run ends on both and reports why, and the next
start resumes with the same losses."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.cluster import Cluster, Process
from helpers.cluster_runs import RECIPE, RUN, arguments, wait_for_step, write_hostfile
from helpers.launching import losses, records, run_to_end
from helpers.paths import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
STEPS, HANG = 96, 8
LENGTH = ["--loop.steps", STEPS, "--checkpoint.every", 2, "--eval.every", 4, "--guard.hang_timeout", HANG]
PHASES = {
    "start-up": (),
    "steps": ("reading data", "in a step"),
    "checkpoint": ("saving",),
    "evaluation": ("evaluating", "generating", "scoring"),
}
STARTING = ("starting", "preflight", "loading")


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory) -> list[float]:
    """Losses of the same run on two ranks of one host."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_to_end(folder, ["--config", RECIPE, *arguments(store, *LENGTH, "--out", folder / "run")], ranks=2)
    return losses(folder / "run")


class Training:
    """A run of two ranks, on node1 and node2."""

    def __init__(self, cluster: Cluster, checkout: Path, run: Path):
        self.cluster, self.checkout, self.run = cluster, checkout, run

    def ranks(self) -> dict[int, Process]:
        """Return the ranks that have started. Processes that load data have the same command, but higher numbers."""
        scripts = [p for p in self.cluster.processes(self.checkout) if p.command[1:3] == ["-u", "pretrain.py"]]
        numbered = [(p.environment.get("RANK") or p.environment["SLURM_PROCID"], p) for p in scripts]
        return {int(rank): p for rank, p in sorted(numbered, key=lambda pair: pair[1].pid, reverse=True)}

    def watcher(self, rank: int) -> Process | None:
        mark = f'{{"rank": {rank},'
        return next((p for p in self.cluster.processes(self.checkout) if mark in " ".join(p.command[3:4])), None)

    def state(self, rank: int = 0) -> dict:
        """Return what the rank's watcher wrote; empty if that was in an earlier start."""
        try:
            state = json.loads((self.run / "ranks" / f"rank-{rank:04d}.json").read_text())
        except (OSError, ValueError):
            return {}
        return state if self.is_ours(state) else {}

    def wait_for(self, what: Callable[[], object], why: str, timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while not what():
            assert time.monotonic() < end, f"{why} not in {timeout} s\n{self.text()[-6000:]}"
            time.sleep(0.003)

    def wait_for_end(self, timeout: float = 60) -> None:
        """Wait until it has failed on both hosts and no process is left."""
        end = time.monotonic() + timeout
        self.check_failed(timeout)
        while left := self.cluster.processes(self.checkout):
            assert time.monotonic() < end, f"left: {left}\n{self.text()[-6000:]}"
            time.sleep(0.1)
        assert not (self.run / "finished.json").exists()


class InSlurm(Training):
    """`sbatch launch/pretrain.sh`"""

    def __init__(self, cluster: Cluster, checkout: Path, store: Path, *settings: object):
        super().__init__(cluster, checkout, checkout / RUN)
        command = ["--nodes=2", "launch/pretrain.sh", RECIPE, *arguments(store, *LENGTH, *settings)]
        self.job = cluster.sbatch(*command, cwd=checkout)

    def is_ours(self, state: dict) -> bool:
        return state["job"] == str(self.job)

    def check_failed(self, timeout: float) -> None:
        ended = self.cluster.wait_for_end(self.job, timeout)
        assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), self.text()

    def finish(self) -> None:
        assert self.cluster.wait_for_end(self.job)["JobState"] == "COMPLETED", self.text()

    def text(self) -> str:
        output = self.checkout / f"slurm-pretrain-{self.job}.out"
        return output.read_text() if output.exists() else ""


class OverSsh(Training):
    """`deepspeed --hostfile`"""

    def __init__(self, cluster: Cluster, checkout: Path, store: Path, *settings: object, **environment: str):
        super().__init__(cluster, checkout, checkout / "runs" / "pretrain")
        write_hostfile(checkout, "node1 slots=1", "node2 slots=1")
        with (checkout / ".deepspeed_env").open("a") as f:
            f.writelines(f"{name}={value}\n" for name, value in environment.items())
        command = ["deepspeed", "--hostfile", "hosts", "pretrain.py", "--config", RECIPE]
        self.log, self.began = checkout / "log", time.time()
        with self.log.open("w") as log:
            command += arguments(store, *LENGTH, *settings)
            self.process = cluster.start(command, cwd=checkout, stdout=log, stderr=log)

    def is_ours(self, state: dict) -> bool:
        return state["since"] > self.began

    def check_failed(self, timeout: float) -> None:
        assert self.process.wait(timeout) != 0, self.text()

    def finish(self) -> None:
        assert self.process.wait(300) == 0, self.text()

    def text(self) -> str:
        return self.log.read_text()


def write_script(checkout: Path, *first: str) -> None:
    """Write a pretrain.py that executes some lines first."""
    (checkout / "pretrain.py").unlink()
    imports = "import os\nfrom datetime import timedelta\nfrom pathlib import Path\nfrom cromic_ds.cli import script"
    start = 'script("pretrain")'
    (checkout / "pretrain.py").write_text("\n".join([imports, *first, start]) + "\n")


LAUNCHERS = pytest.mark.parametrize("launch", [InSlurm, OverSsh], ids=["slurm", "ssh"])


def last_words(training: Training) -> str:
    """Return the end of the output without the lines of DeepSpeed's launchers and pdsh, which may come later."""
    lines = [line for line in training.text().splitlines() if not re.search(r"\[launch\.py:|^pdsh@", line)]
    return "\n".join(lines[-6:])


def strike(training: Training, phase: str, chance: random.Random, rank: int, watcher_too: bool) -> Process:
    """Kill a rank somewhere in a phase."""
    training.wait_for(lambda: len(training.ranks()) == 2, "both ranks")
    process = training.ranks()[rank]
    if phase == "start-up":
        time.sleep(chance.uniform(0, 8))
    else:
        training.wait_for(lambda: training.state().get("phase", "starting") not in STARTING, "the first step")
        step = training.state()["step"] + chance.randint(1, 5)
        training.wait_for(
            lambda: (now := training.state()) and now["phase"] in PHASES[phase] and now["step"] >= step, phase
        )
        time.sleep(chance.uniform(0, 0.15))  # a checkpoint is still written after the phase
    if watcher_too and (watcher := training.watcher(rank)):
        os.kill(watcher.pid, signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    return process


def test_twenty_kills_at_random_moments_change_no_loss(cluster, checkout, store, undisturbed):
    """One training under Slurm, started twenty times; each time a rank is killed.

    Four times the rank's watcher is killed with it: Slurm does so where it follows a job's processes by cgroups.
    """
    seed = int(os.environ.get("KILL_SEED", "1"))
    chance = random.Random(seed)
    plan = ["start-up"] * 5 + ["steps"] * 6 + ["checkpoint"] * 5 + ["evaluation"] * 4
    chance.shuffle(plan)
    print(f"KILL_SEED={seed}: {', '.join(plan)}")
    for number, phase in enumerate(plan):
        rank, watcher_too = chance.randrange(2), number % 5 == 4
        training = InSlurm(cluster, checkout, store)
        process = strike(training, phase, chance, rank, watcher_too)
        killed = time.monotonic()
        training.wait_for_end()
        state, words = training.state(rank), last_words(training)
        left = [path.name for path in (checkout / RUN / "checkpoints").glob(".writing-*")]
        print(
            f"{number + 1}. {phase}: rank {rank}{' and its watcher' * watcher_too}, {state.get('phase')} after step "
            f"{state.get('step')}, left: {left}; all had ended {time.monotonic() - killed:.1f} s later\n"
            f"   {words.splitlines()[-1]}"
        )
        assert f"error: {process.host}: task {rank}: Killed" in words, training.text()
        if state and not watcher_too:
            died = f"error: rank {rank} on host {process.host} (pid {process.name}) died without reporting an error after step"
            assert words.splitlines()[-1].startswith(died), training.text()
    InSlurm(cluster, checkout, store).finish()
    begins = re.findall(r"steps: (\d+) of", (checkout / RUN / "log.txt").read_text())
    print(f"the starts began after steps {', '.join(begins)}")
    assert len(set(begins)) > 5
    assert losses(checkout / RUN) == undisturbed
    assert [record["step"] for record in records(checkout / RUN)] == list(range(1, STEPS + 1))


@LAUNCHERS
def test_a_stopped_rank_is_found_and_named(cluster, checkout, store, launch):
    training = launch(cluster, checkout, store)
    wait_for_step(training.run, 4, training.text)
    process = training.ranks()[1]
    os.kill(process.pid, signal.SIGSTOP)
    training.wait_for_end(HANG + 60)
    named = f"rank 1 on host node2 (pid {process.name}) is stopped by a signal: no progress for {HANG} s after step"
    assert named in last_words(training), training.text()[-6000:]
    assert "File" in training.state(1)["traceback"]


@LAUNCHERS
def test_a_rank_that_hangs_is_named_with_its_stack(cluster, checkout, store, launch, monkeypatch):
    (checkout / "pretrain.py").unlink()
    (checkout / "pretrain.py").symlink_to(REPOSITORY / "tests" / "helpers" / "faulty.py")
    if launch is InSlurm:
        monkeypatch.setenv("FAULT", "hang:1:5")
        training = launch(cluster, checkout, store)
    else:
        training = launch(cluster, checkout, store, FAULT="hang:1:5")
    wait_for_step(training.run, 5, training.text)
    training.wait_for_end(HANG + 60)
    named = f"hangs outside of any collective: no progress for {HANG} s after step 5, while reading data"
    assert "rank 1 on host node2" in last_words(training) and named in last_words(training), training.text()[-6000:]
    assert "in strike" in training.state(1)["traceback"]


def test_five_seconds_without_network_change_nothing(cluster, checkout, store, undisturbed):
    training = InSlurm(cluster, checkout, store, "--guard.hang_timeout", 60)
    wait_for_step(training.run, 6, training.text)
    cluster.cut(2)
    time.sleep(5)
    cluster.mend(2)
    training.finish()
    assert cluster.job(training.job)["Restarts"] == "0"
    assert losses(training.run) == undisturbed


def test_a_network_that_stays_away_ends_the_run_on_both_hosts(cluster, checkout, store, undisturbed, monkeypatch):
    # Without this ssh would not notice, and the launcher would wait for it.
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-o ServerAliveInterval=5")
    training = OverSsh(cluster, checkout, store)
    wait_for_step(training.run, 6, training.text)
    cluster.cut(2)
    try:
        training.wait_for_end(HANG + 60)
    finally:
        cluster.mend(2)
    assert "waits for the other ranks, and none of them reports why (is the network to node" in training.text()
    OverSsh(cluster, checkout, store).finish()
    assert losses(training.run) == undisturbed


def test_slurm_starts_the_job_again_when_a_lost_node_is_back(cluster, checkout, store, undisturbed):
    training = InSlurm(cluster, checkout, store)
    wait_for_step(training.run, 6, training.text)
    cluster.cut(2)
    try:
        training.wait_for(lambda: cluster.job(training.job)["Restarts"] == "1", "requeued")
        training.wait_for(lambda: not training.ranks(), "the ranks ended", HANG + 60)
    finally:
        cluster.mend(2)
    training.finish()
    assert losses(training.run) == undisturbed


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A cgroup whose processes' memory is counted together."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    names = [f"/sys/fs/cgroup/{kind}{path}" for _, kind, path in groups if kind in ("", "memory")]
    folders = [Path(name) for name in names if Path(name, "memory.stat").exists()]
    if not folders:
        pytest.skip("this machine counts no memory by cgroups")
    group = folders[0] / f"faults-{os.getpid()}"
    group.mkdir()
    yield group
    group.rmdir()


def tighten(group: Path) -> None:
    """Limit the group to the memory that it uses now."""
    version_1 = (group / "memory.limit_in_bytes").exists()
    usage, limit = ("usage_in_bytes", "limit_in_bytes") if version_1 else ("current", "max")
    with contextlib.suppress(OSError):  # more was taken in between
        (group / f"memory.{limit}").write_text((group / f"memory.{usage}").read_text())


def test_a_rank_whose_memory_is_used_up_says_so(cluster, checkout, store, memory_group, monkeypatch):
    write_script(checkout, f"if os.environ['SLURM_PROCID'] == '1': Path('{memory_group}/cgroup.procs').write_text('0')")
    training = InSlurm(cluster, checkout, store)
    wait_for_step(training.run, 4, training.text)
    process = training.ranks()[1]
    training.wait_for(lambda: tighten(memory_group) or not Path(f"/proc/{process.pid}/cwd").exists(), "out of memory")
    training.wait_for_end()
    named = f"error: rank 1 on host node2 (pid {process.name}) died without reporting an error after step"
    assert named in last_words(training) and "(the memory of its cgroup was used up)" in last_words(training)


def test_ranks_do_not_wait_long_for_one_that_never_comes(cluster, checkout, store):
    write_script(checkout, "from cromic_ds.engine import process_group", "process_group.JOIN = timedelta(seconds=10)")
    with cluster.without_ssh(node=2):
        training = OverSsh(cluster, checkout, store)
        training.wait_for_end(120)
    assert (
        "error: 1 of 2 ranks came to 10.99.0.1:29500 within 10 s; missing: rank 1. Did their hosts" in training.text()
    )


def test_a_signal_during_the_start_is_obeyed_after_the_first_step(cluster, checkout, store):
    training = InSlurm(cluster, checkout, store)
    training.wait_for(lambda: len(training.ranks()) == 2, "both ranks")
    time.sleep(0.5)  # they import
    cluster.output("scancel", "--signal=USR1", training.job)
    cluster.wait_for_state(training.job, "PENDING", timeout=120)
    cluster.output("scancel", training.job)
    assert "stopped by SIGUSR1 after step 1; the same command resumes here" in training.text()
    assert (training.run / "checkpoints" / "latest").read_text() == "step-00000001"
