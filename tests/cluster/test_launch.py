"""Launches on two hosts: DeepSpeed's hostfile over ssh, our sbatch scripts, and the ranks that each launcher assigns."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.cluster_runs import RECIPE, RUN, arguments, wait_for_step, write_hostfile
from helpers.launching import cromic_ds, last_step, losses, records, run_to_end
from helpers.paths import HELPERS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
PROBE = str(HELPERS / "ranks_probe.py")


@pytest.fixture(scope="module")
def local(store, tmp_path_factory) -> Path:
    """The same run on two ranks of one host."""
    folder = tmp_path_factory.mktemp("local")
    run_to_end(folder, ["--config", RECIPE, *arguments(store, "--out", folder / "run")], ranks=2)
    return folder / "run"


def probe(cluster, folder: Path, command: list[str]) -> list[dict]:
    """Return what each rank found, in the order of ranks."""
    done = cluster.run([*command, str(folder)], cwd=folder, timeout=120)
    assert done.returncode == 0, done.stdout
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda ranks: ranks["rank"])


def places(found: list[dict]) -> list[tuple]:
    return [(r["host"], r["rank"], r["local_rank"], r["world_size"], r["local_world_size"]) for r in found]


TWO_BY_TWO = [("node1", 0, 0, 4, 2), ("node1", 1, 1, 4, 2), ("node2", 2, 0, 4, 2), ("node2", 3, 1, 4, 2)]


@pytest.mark.parametrize("gpus", [[], ["--gpus-per-node=2"], ["--gpus-per-task=1"]], ids=str)
def test_the_ranks_of_srun(cluster, tmp_path, gpus):
    found = probe(cluster, tmp_path, ["srun", "--nodes=2", "--ntasks-per-node=2", *gpus, sys.executable, PROBE])
    assert places(found) == TWO_BY_TWO
    assert {(r["master_addr"], r["master_port"]) for r in found} == {("node1", found[0]["master_port"])}
    assert 20000 <= found[0]["master_port"] < 40000
    # With --gpus-per-task each task sees one GPU, which is its device 0; launcher.local_device counts modulo that.
    shown = {"--gpus-per-node=2": ["0,1"] * 4, "--gpus-per-task=1": ["0", "1", "0", "1"]}
    assert [r["devices"] for r in found] == shown.get("".join(gpus), [None] * 4)


def test_the_ranks_of_torchrun_below_srun(cluster, tmp_path):
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nnodes=2", "--nproc-per-node=2"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=node1:29511", "--rdzv-id=1"]
    found = probe(cluster, tmp_path, ["srun", "--nodes=2", "--ntasks-per-node=1", *torchrun, PROBE])
    # Which of the hosts comes first is torchrun's choice.
    assert [place[1:] for place in places(found)] == [place[1:] for place in TWO_BY_TWO]
    assert found[0]["host"] == found[1]["host"] != found[2]["host"] == found[3]["host"]


def test_the_ranks_of_deepspeed(cluster, tmp_path):
    write_hostfile(tmp_path, "node1 slots=2", "node2 slots=2")
    found = probe(cluster, tmp_path, ["deepspeed", "--hostfile", "hosts", PROBE])
    assert places(found) == TWO_BY_TWO
    assert {(r["master_addr"], r["master_port"]) for r in found} == {("10.99.0.1", 29500)}


def test_a_single_process_and_a_batch_script_are_one_rank(cluster, tmp_path):
    alone = ("head", 0, 0, 1, 1)
    assert places(probe(cluster, tmp_path, [sys.executable, PROBE])) == [alone]
    wrapped = f"--wrap={sys.executable} {PROBE} {tmp_path}"
    job = cluster.sbatch("--ntasks=2", f"--output={tmp_path}/out", wrapped, cwd=tmp_path)
    assert cluster.wait_for_end(job)["JobState"] == "COMPLETED"
    assert json.loads((tmp_path / "0.json").read_text())["world_size"] == 1


@pytest.mark.parametrize("slots", [1, 2])
def test_a_hostfile_trains_as_one_host_does(cluster, checkout, store, local, slots):
    write_hostfile(checkout, f"node1 slots={slots}", f"node2 slots={slots}")
    command = ["deepspeed", "--hostfile", "hosts", "pretrain.py", "--config", RECIPE]
    done = cluster.run([*command, *arguments(store)], cwd=checkout, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:]
    run = checkout / "runs" / "pretrain"
    assert f"[rank 0/{2 * slots} node1]" in (run / "log.txt").read_text()
    assert losses(run) == (losses(local) if slots == 1 else pytest.approx(losses(local), rel=1e-5))
    assert (run / "finished.json").exists()


def test_a_launcher_on_each_host_without_ssh(cluster, checkout, store, local):
    write_hostfile(checkout, "node1 slots=1", "node2 slots=1")
    launcher = ["deepspeed", "--hostfile", "hosts", "--no_ssh", "--master_addr", "node1"]
    script = ["pretrain.py", "--config", RECIPE, *arguments(store)]
    with (checkout / "log").open("w") as log, cluster.without_ssh(1), cluster.without_ssh(2):
        commands = [[*launcher, "--node_rank", str(rank), *script] for rank in (0, 1)]
        processes = [cluster.start(c, node, cwd=checkout, stdout=log, stderr=log) for node, c in enumerate(commands, 1)]
        codes = [process.wait(300) for process in processes]
    assert codes == [0, 0], (checkout / "log").read_text()[-4000:]
    assert losses(checkout / "runs" / "pretrain") == losses(local)


def test_a_signal_to_one_rank_saves_and_ctrl_c_ends_the_training_on_all_hosts(cluster, checkout, store):
    write_hostfile(checkout, "node1 slots=1", "node2 slots=1")
    command = ["deepspeed", "--hostfile", "hosts", "pretrain.py", "--config", RECIPE]
    command += arguments(store, "--loop.steps", 100_000, "--out", "runs/first")
    run, log = checkout / "runs" / "first", checkout / "log"
    with log.open("w") as out:
        process = cluster.start(command, cwd=checkout, stdout=out, stderr=out)
        wait_for_step(run, 3, log.read_text)
        # The command of docs/clusters.md.
        cluster.output("ssh", "node1", "pkill -USR1 -f '[p]retrain.py --local_rank=0 .*--out runs/first'")
        assert process.wait(120) == 0, log.read_text()[-4000:]
        stopped = last_step(run)
        assert (run / "checkpoints" / "latest").read_text() == f"step-{stopped:08d}"

        process = cluster.start(command, cwd=checkout, stdout=out, stderr=out)
        wait_for_step(run, stopped + 2, log.read_text)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    end = time.monotonic() + 60
    while left := cluster.run(["pgrep", "--list-full", "--full", "runs/first"]).stdout:
        assert time.monotonic() < end, left
        time.sleep(0.5)
    assert [record["step"] for record in records(run)] == list(range(1, last_step(run) + 1))


def test_sbatch_pretrain_trains_as_one_host_does(cluster, checkout, store, local):
    job = cluster.sbatch("--nodes=2", "--job-name=mine", "launch/pretrain.sh", RECIPE, *arguments(store), cwd=checkout)
    ended = cluster.wait_for_end(job)
    output = (checkout / f"slurm-mine-{job}.out").read_text()
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "0", output
    assert losses(checkout / RUN) == losses(local)
    assert f"finished: {RUN}" in output
    assert re.search(r"hosts +node\[1-2\], tasks 1\(x2\)", output)
    assert f"rendezvous  node1:{20000 + job}" in output
    assert "[rank 0/2 node1 step 4] finished after 4 steps" in output
    logs = checkout / f"slurm-mine-{job}.ranks"
    assert sorted(log.name for log in logs.iterdir()) == ["rank-0.txt", "rank-1.txt"]
    # Once more: nothing is left to do.
    job = cluster.sbatch("--nodes=2", "launch/pretrain.sh", RECIPE, *arguments(store), cwd=checkout)
    assert cluster.wait_for_end(job)["JobState"] == "COMPLETED"
    assert [r["step"] for r in records(checkout / RUN)] == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def muge(local, tmp_path_factory) -> Path:
    """A store of the sample world's captions, with the tokenizer of `local`."""
    folder = tmp_path_factory.mktemp("muge")
    cromic_ds("sample", "--official", folder / "files", "--posts", 40, "--val_fraction", 0.2)
    root, tokenizer = next((folder / "files").glob("*muge*")), local / "export"
    cromic_ds("prepare", "--task", "muge", "--root", root, "--tokenizer", tokenizer, "--out", folder / "store")
    return folder / "store"


def test_sbatch_finetune_and_evaluate(cluster, checkout, local, muge):
    small = ["--loop.steps", 2, "--loop.global_batch", 4, "--eval.generate", 4, "--tracking.wandb", "off"]
    command = ["launch/finetune.sh", "muge", local / "export", "--data.path", muge, *small]
    job = cluster.sbatch("--ntasks-per-node=2", "--cpus-per-task=2", *command, cwd=checkout)
    state = cluster.wait_for_end(job)["JobState"]
    output = (checkout / f"slurm-finetune-{job}.out").read_text()
    assert state == "COMPLETED" and "finished: runs/finetune_muge" in output, output
    assert f"from {local / 'export'}" in output

    settings = ["--split", "val", "--limit", 4, "--meteor", "false", "--resamples", 10, "--out", "result.json"]
    export = "runs/finetune_muge/export"
    job = cluster.sbatch("launch/evaluate.sh", export, "--data", muge, *settings, cwd=checkout)
    state = cluster.wait_for_end(job)["JobState"]
    assert state == "COMPLETED", (checkout / f"slurm-evaluate-{job}.out").read_text()
    assert "cider" in json.loads((checkout / "result.json").read_text())["scores"]


def test_sbatch_table_runs_the_cells_as_job_arrays(cluster, checkout):
    training = {
        **{"ds_config": "zero0", "precision": "fp32", "eval": {"every": None, "generate": 4}},
        **{"loop": {"steps": 2, "global_batch": 4}, "tracking": {"wandb": "off"}},
    }
    recipe = {
        **{"models": {"cmt": {"preset": "tiny", "batch_norm": "batch"}}, "tasks": ["muge"], "seeds": [0]},
        **{"starts": ["scratch"], "data": {"sample_posts": 64, "sample_pictures": 20, "sample_val_pictures": 8}},
        **{"prepare": {"all": {"workers": 1}}, "finetune": {"all": training}},
        **{"evaluate": {"all": {"meteor": False, "limit": 4, "resamples": 10}}},
    }
    (checkout / "table.yaml").write_text(yaml.safe_dump(recipe))
    cells = "--slurm=--partition=batch --cpus-per-task=1"
    job = cluster.sbatch("launch/table.sh", "table.yaml", "tables/small", cells, cwd=checkout)
    state = cluster.wait_for_end(job, timeout=600)["JobState"]
    output = (checkout / f"slurm-table-{job}.out").read_text()
    assert state == "COMPLETED", output + cluster.output("squeue")
    assert (checkout / "tables/small/results.md").exists()
    assert re.search(r"(\d+) of \1 jobs done", output)
