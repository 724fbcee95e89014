"""The errors that a user sees if a host cannot take part: of sbatch, of our scripts, of DeepSpeed's launcher."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers.cluster_runs import RECIPE, RUN, arguments, write_hostfile

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def own_store(store, tmp_path) -> Path:
    """A store that can be taken away."""
    return Path(shutil.copytree(store, tmp_path / "own" / "store"))


def job_output(cluster, checkout, *command, state="FAILED", name="pretrain") -> str:
    job = cluster.sbatch(*command, cwd=checkout)
    ended = cluster.wait_for_end(job)
    output = (checkout / f"slurm-{name}-{job}.out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == (state, "0"), output
    return output


def test_slurm_names_the_node_without_the_store(cluster, checkout, own_store):
    with cluster.hidden(own_store.parent, node=2):
        output = job_output(cluster, checkout, "--nodes=2", "launch/pretrain.sh", RECIPE, *arguments(own_store))
    last = output.splitlines()[-1]
    assert last.startswith("error: ") and "host node2" in last and str(own_store) in last
    assert not (checkout / RUN / "finished.json").exists()


def test_slurm_names_the_port_in_use(cluster, checkout, store, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "22")  # sshd has it
    output = job_output(cluster, checkout, "--nodes=2", "launch/pretrain.sh", RECIPE, *arguments(store))
    assert "error: port 22 of node1 is in use: " in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (["--gpus-per-node=2"], [RECIPE], "1 tasks for 2 GPUs on node1, and each task drives one"),
        ([], ["recipes/none.yaml"], "there is no recipe recipes/none.yaml"),
        ([], [RECIPE, "--loop.step", "3"], "unknown setting 'loop.step' (did you mean 'loop.steps'?)"),
    ],
    ids=["gpus", "recipe", "setting"],
)
def test_a_wrong_submission_ends_with_one_line(cluster, checkout, options, arguments, message):
    output = job_output(cluster, checkout, *options, "launch/pretrain.sh", *arguments)
    last = output.splitlines()[-1]
    assert last.startswith("error: ") and message in last


def test_a_submission_elsewhere_says_where_to(cluster, checkout, tmp_path):
    output = job_output(cluster, tmp_path, checkout / "launch" / "pretrain.sh")
    assert output == f"error: submit this in the repository's folder, not in {tmp_path}\n"


def test_more_nodes_than_there_are_is_refused_by_sbatch(cluster, checkout):
    done = cluster.run(["sbatch", "--nodes=5", "launch/pretrain.sh"], cwd=checkout)
    assert done.returncode == 1
    assert "Node count specification invalid" in done.stdout or "More processors requested" in done.stdout


def doctor(cluster, checkout, *more: object) -> tuple[int, list[str]]:
    """Run `cromic-ds doctor`; return its exit code and what it reports would stop a run."""
    done = cluster.run(["cromic-ds", "doctor", "--hostfile", "hosts", *map(str, more)], cwd=checkout, timeout=200)
    found = [line.removeprefix("stops a run: ") for line in done.stdout.splitlines() if line.startswith("stops a run")]
    return done.returncode, found


def test_the_doctor_finds_what_is_wrong_with_each_host(cluster, checkout, own_store):
    write_hostfile(checkout, "# the cluster", "node1 slots=2", "node2 slots=2")
    assert doctor(cluster, checkout, "--data", own_store) == (0, [])
    write_hostfile(checkout, "node1 slots=2", "node2 slots=2", "node3 slots=2")
    with cluster.hidden(own_store.parent, node=2), cluster.without_ssh(node=1):
        code, found = doctor(cluster, checkout, "--data", own_store)
    assert code == 1
    refused, unknown, without_store = found
    assert refused.startswith("node1: cannot be reached by ssh") and "Connection refused" in refused
    assert unknown.startswith("node3: cannot be reached by ssh") and "Could not resolve hostname" in unknown
    assert without_store.startswith("node2: ") and str(own_store) in without_store
    write_hostfile(checkout, "node2 slots=2")
    cluster.cut(2)
    try:
        code, found = doctor(cluster, checkout)
    finally:
        cluster.mend(2)
    assert code == 1 and found[0].startswith("node2: cannot be reached by ssh")


def deepspeed(cluster, checkout, store):
    command = ["deepspeed", "--hostfile", "hosts", "pretrain.py", "--config", RECIPE, *arguments(store)]
    return cluster.run(command, cwd=checkout, timeout=200)


def test_deepspeed_names_a_first_host_that_does_not_answer(cluster, checkout, store):
    write_hostfile(checkout, "node3 slots=1", "node1 slots=1")
    done = deepspeed(cluster, checkout, store)
    assert done.returncode == 1
    assert "host=node3 was not reachable via ssh" in done.stdout


@contextlib.contextmanager
def hanging(cluster, checkout, *command: object):
    """Run a launcher of DeepSpeed, which waits for the other hosts after one has failed (see docs/clusters.md).

    Yields a function that waits until a text is in its output, and returns the output.
    """
    log = checkout / "log"
    with log.open("w") as out:
        process = cluster.start(command, cwd=checkout, stdout=out, stderr=out)

    def output_with(text: str) -> str:
        end = time.monotonic() + 120
        while text not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        return log.read_text()

    yield output_with
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for node in (1, 2):  # killed so, it leaves what it started there
        cluster.run(["pkill", "-KILL", "-f", "pretrain[.]py"], node=node)


def test_deepspeed_names_another_host_that_refuses(cluster, checkout, store):
    write_hostfile(checkout, "node1 slots=1", "node2 slots=1")
    command = ["deepspeed", "--hostfile", "hosts", "pretrain.py", "--config", RECIPE, *arguments(store)]
    with cluster.without_ssh(node=2), hanging(cluster, checkout, *command) as output_with:
        output = output_with("node2: ssh exited with exit code 255")
    assert "connect to host node2 port 22: Connection refused" in output


def test_deepspeed_with_its_port_in_use(cluster, checkout, store):
    write_hostfile(checkout, "node1 slots=1", "node2 slots=1")
    command = ["deepspeed", "--hostfile", "hosts", "--master_port", "22", "pretrain.py", "--config", RECIPE]
    with hanging(cluster, checkout, *command, *arguments(store)) as output_with:
        output_with("error: port 22 of 10.99.0.1 is in use: ")


def test_deepspeed_refuses_a_line_without_a_number_of_slots(cluster, checkout, store):
    write_hostfile(checkout, "node1 slots=two")
    done = deepspeed(cluster, checkout, store)
    assert done.returncode == 1
    assert "node1 slots=two" in done.stdout


def test_deepspeed_with_a_node_without_the_store(cluster, checkout, own_store):
    write_hostfile(checkout, "node1 slots=1", "node2 slots=1")
    with cluster.hidden(own_store.parent, node=2):
        done = deepspeed(cluster, checkout, own_store)
    assert done.returncode != 0
    assert f"host node2: {own_store}" in done.stdout


def test_slots_that_do_not_divide_the_global_batch(cluster, checkout, store):
    write_hostfile(checkout, "node1 slots=2", "node2 slots=1")
    done = deepspeed(cluster, checkout, store)
    assert done.returncode != 0
    assert "error: " in done.stdout and "global_batch" in done.stdout
