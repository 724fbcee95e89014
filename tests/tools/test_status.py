"""`cromic-ds status` on runs that run, stop, finish, fail and die: made-up files and real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from helpers.launching import QUIET, Job, last_step, run_to_end
from helpers.paths import REPOSITORY

from cromic_ds.cli.commands import main
from cromic_ds.errors import UserError
from cromic_ds.tools import status
from cromic_ds.tools.display import age
from cromic_ds.tools.status import read_status, status_text

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def hasty(monkeypatch, request):
    """Wait half a second for made-up ranks."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(status, "REWRITTEN", 0.5)


def make_run(folder: Path, ranks: tuple = (), done: int = 0, epoch: float = 0.01, **loop) -> Path:
    """Make a run folder. Each of `ranks` is what differs from a rank that runs on another host and reported just now."""
    (folder / "ranks").mkdir(parents=True)
    settings = {"loop": {"steps": 100, "epochs": 5.0, "global_batch": 8, **loop}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    os.utime(folder / "config.yaml", (NOW - 900,) * 2)
    for number, changes in enumerate(ranks):
        write_rank(folder, number, **changes)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, done + 1):
            record = {
                "step": step,
                "kind": "train",
                "time": NOW - 2 * (done - step) - 10,
                "loss": 4 - step / 1000,
                "seconds_per_step": 2.0,
                "posts_per_second": 4.0,
                "epoch": step * epoch,
                "skipped_steps": step // 10,
                "skipped_records": 0,
                "seconds_left": 2.5 * (100 - step),
            }
            print(json.dumps(record), file=file)
        file.write('{"step": ')  # torn
    return folder


def write_rank(folder: Path, number: int, **changes) -> None:
    values = {
        "rank": number,
        "world_size": 2,
        "host": f"node{number}",
        "pid": 10,
        "guard_pid": 11,
        "job": None,
        "state": "running",
        "step": 20,
        "phase": "in a step",
        "since": NOW - 3,
        "time": NOW - 1,
        "error": None,
        "traceback": None,
        **changes,
    }
    path = folder / "ranks" / f"rank-{number:04d}.json"
    path.with_suffix(".new").write_text(json.dumps(values))
    path.with_suffix(".new").replace(path)


def add_checkpoint(folder: Path, step: int, age: float) -> None:
    manifest = folder / "checkpoints" / f"step-{step:08d}" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    os.utime(manifest, (NOW - age,) * 2)


def test_a_running_one(tmp_path):
    run = make_run(tmp_path / "run", ({"since": NOW - 20, "job": "17"}, {"job": "17"}), done=30)
    add_checkpoint(run, 20, age=240)
    (run / "checkpoints" / ".writing-step-00000030").mkdir()
    found = read_status(run, NOW)
    assert (found.state, found.step, found.total_steps, found.skipped_steps) == ("running", 30, 100, 3)
    assert (found.seconds_per_step, found.posts_per_second, found.seconds_left) == (2.0, 4.0, 175.0 - 10)
    assert (found.checkpoint, found.checkpoint_age) == ("step-00000020", 240)
    assert found.hosts == {"node0": [0], "node1": [1]}
    assert status_text(found).splitlines()[1:] == [
        "  step 30 of 100 (30%), 2 s a step, 4.0 posts/s, loss 3.9700, 0:02:45 left",
        "  node0 (rank 0), node1 (rank 1), Slurm job 17",
        "  checkpoint step-00000020, 4 min old, 10 steps before the last",
        "  skipped steps: 3",
    ]
    assert "running[/], in a step for 20 s" in status_text(found)


def test_a_rank_that_fell_silent_is_dead(tmp_path):
    run = make_run(tmp_path / "run", ({}, {"time": NOW - 40, "since": NOW - 45}), done=30)
    found = read_status(run, NOW)
    assert found.state == "dead"
    assert [rank["state"] for rank in found.ranks] == ["running", "dead"]
    assert "rank 1[/]: no sign of life for 40 s, after step 20, while in a step" in status_text(found)
    assert "left once it is resumed" in status_text(found)


@pytest.mark.parametrize("behind", [300, -300])
def test_a_clock_that_is_off_kills_no_rank(tmp_path, behind):
    run = make_run(tmp_path / "run", ({}, {"time": NOW - behind}))
    stop = threading.Event()

    def beat():
        while not stop.wait(0.1):
            write_rank(run, 1, time=time.time() - behind)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert read_status(run, NOW).state == "running"
    finally:
        stop.set()
        thread.join()


def test_a_clock_that_was_set_back_makes_no_nonsense(tmp_path):
    """The newest times are an hour ahead of now."""
    run = make_run(tmp_path / "run", ({"since": NOW, "time": NOW}, {"since": NOW, "time": NOW}), done=30)
    add_checkpoint(run, 20, age=0)
    found = read_status(run, NOW - 3600)
    assert found.state == "dead"  # nobody rewrites the files
    assert (found.since_progress, found.checkpoint_age, found.seconds_left) == (0, 0, 175)
    assert "no sign of life for 0 s" in status_text(found)


def test_a_rank_of_this_host_is_looked_up(tmp_path):
    me = {"host": socket.gethostname(), "time": NOW - 2000}
    with subprocess.Popen(["sleep", "60"]) as guard:
        alive = make_run(tmp_path / "alive", ({**me, "pid": os.getpid(), "guard_pid": guard.pid},))
        other = make_run(tmp_path / "other", ({**me, "pid": 1, "guard_pid": guard.pid},))  # a number used again
        assert read_status(alive, NOW).state == "running"
        assert read_status(other, NOW).state == "dead"
        guard.kill()
    assert read_status(alive, NOW).state == "dead"


def test_the_outcome_may_be_written_while_one_waits(tmp_path):
    run = make_run(tmp_path / "run", ({}, {"time": NOW - 40}))
    late = threading.Timer(0.3, write_rank, (run, 1), {"state": "stopped", "phase": "ended"})
    late.start()
    assert [rank["state"] for rank in read_status(run, NOW).ranks] == ["running", "stopped"]
    late.join()


def test_a_failed_one_says_why_each_rank_ended(tmp_path):
    because = {"state": "killed", "phase": "ended", "error": "ended because rank 2 failed"}
    failed = {
        "state": "failed",
        "error": "rank 2 on host node2 failed: ValueError: [x]",
        "traceback": "Trace\n  line\n",
    }
    run = make_run(tmp_path / "run", (because, because, failed, because), done=5)
    (run / "ranks" / "failed-abc.json").write_text('{"rank": 2, "error": "…"}')
    found = read_status(run, NOW)
    assert found.state == "failed"
    lines = status_text(found).splitlines()
    assert lines[-4:] == [
        "  [red]rank 2[/]: rank 2 on host node2 failed: ValueError: \\[x]",
        "  [red]ranks 0-1, 3[/]: ended because rank 2 failed",
        "    Trace",
        "      line",
    ]


def test_a_stopped_and_a_finished_one(tmp_path):
    ended = {"state": "stopped", "phase": "ended", "time": NOW - 90_000}
    stopped = read_status(make_run(tmp_path / "stopped", (ended, ended), done=30), NOW)
    assert (stopped.state, stopped.seconds_left) == ("stopped", 175.0)
    run = make_run(tmp_path / "finished", ({**ended, "state": "finished"},), done=100)
    (run / "finished.json").write_text('{"step": 100, "time": 1}')
    finished = read_status(run, NOW)
    assert (finished.state, finished.step) == ("finished", 100)
    assert "left" not in status_text(finished)


def test_before_a_rank_has_reported_anything(tmp_path):
    run = make_run(tmp_path / "run")
    assert read_status(run, NOW).state == "dead"
    os.utime(run / "config.yaml", (NOW - 2,) * 2)
    found = read_status(run, NOW)
    assert (found.state, found.step, found.checkpoint) == ("running", 0, None)
    assert "no checkpoint yet" in status_text(found)


def test_the_length_of_a_run_in_epochs(tmp_path):
    run = make_run(tmp_path / "run", done=30, epoch=8 / 54, steps=0)
    assert read_status(run, NOW).total_steps == 33  # floor(5 · 54 / 8), as in training


def test_a_long_log_is_not_read_to_find_its_end(tmp_path):
    run = make_run(tmp_path / "run", done=20_000, steps=30_000)
    start = time.perf_counter()
    assert read_status(run, NOW).step == 20_000
    assert time.perf_counter() - start < 0.5


def test_the_command(tmp_path, capsys):
    good = make_run(tmp_path / "good", ({"time": time.time()},), done=3)
    bad = make_run(tmp_path / "bad", ({"state": "hung", "error": "rank 0 hangs"},), done=3)
    main(["status", str(good)])
    assert "running" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["status", str(good), str(bad), "--json", "true"])
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["running", "failed"]
    with pytest.raises(SystemExit, match="2"):
        main(["status", str(good), str(tmp_path)])
    assert capsys.readouterr().err == f"error: {tmp_path}: no run folder (no config.yaml in it)\n"
    (tmp_path / "config.yaml").write_text("[1]")
    with pytest.raises(UserError, match="not the configuration of a run"):
        read_status(tmp_path)


def test_reading_imports_neither_torch_nor_deepspeed(tmp_path):
    run = make_run(tmp_path / "run", ({"state": "stopped"},), done=3)
    check = (
        f"import sys; from cromic_ds.cli import main; main(['status', {str(run)!r}])\n"
        "assert not {'torch', 'deepspeed', 'transformers', 'wandb', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_file_of_a_living_rank_is_rewritten_in_time():
    from cromic_ds.ranks import watcher

    assert watcher.BEAT + 2 * watcher.TICK < status.SILENCE
    assert "\nREWRITTEN = BEAT + 2 " in Path(status.__file__).read_text()  # half a second in these tests


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 days"), (-3, "0 s")]
)
def test_ages(seconds, text):
    assert age(seconds) == text


@pytest.mark.long
def test_real_runs(store, tmp_path):
    out = tmp_path / "run"

    def arguments(steps: int) -> list[str]:
        return [
            *["--data.path", str(store), "--out", str(out), "--model.preset", "tiny", "--loop.global_batch", "8"],
            *["--loop.steps", str(steps), "--checkpoint.every", "2", "--eval.generate", "0", *QUIET],
        ]

    def wait_for(state: str, seconds: float = 40) -> status.RunStatus:
        end = time.monotonic() + seconds
        while (found := read_status(out)).state != state and time.monotonic() < end:
            time.sleep(0.2)
        assert found.state == state, status_text(found)
        return found

    job = Job(tmp_path, arguments(5000), ranks=2)
    try:
        job.wait_for_step(out, 3)
        end = time.monotonic() + 40
        while (running := read_status(out)).checkpoint is None and time.monotonic() < end:
            time.sleep(0.2)  # a checkpoint is complete only some steps after it was begun
        assert running.state == "running", status_text(running)
        assert running.hosts == {socket.gethostname(): [0, 1]}
        assert running.total_steps == 5000 and running.checkpoint.startswith("step-")
        assert 0 < running.seconds_per_step < 60
        # Everything at once, as when the host goes: nobody is left to say it.
        for pid in [rank["guard_pid"] for rank in running.ranks] + [rank["pid"] for rank in running.ranks]:
            os.kill(pid, signal.SIGKILL)
        job.wait()
        dead = wait_for("dead", 15)
        assert all("no sign of life" in rank["error"] for rank in dead.ranks)

        step = last_step(out)
        job = Job(tmp_path, arguments(5000), ranks=2)
        job.wait_for_step(out, step + 1)
        os.kill(read_status(out).ranks[1]["pid"], signal.SIGKILL)  # its guard says it
        failed = wait_for("failed")
        assert f"rank 1 on host {socket.gethostname()}" in status_text(failed)
        job.wait()
    finally:
        job.kill()
    run_to_end(tmp_path, arguments(last_step(out) + 1), ranks=2)
    finished = read_status(out)
    assert (finished.state, finished.step) == ("finished", finished.total_steps)
    assert finished.checkpoint == f"step-{finished.step:08d}"
