"""Disks, files, clocks and helper processes that fail during a real training: it ends with a clear error or continues, and its
results never change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.launching import QUIET, Job, losses, records, run_to_end

pytestmark = pytest.mark.slow
FAULTY = "tests/helpers/faulty.py"
STEPS = 16
JPEG = b"\xff\xd8\xff\xe0"  # what each picture begins with


def arguments(store: Path, out: Path, *more: str) -> list[str]:
    small = ["--model.preset", "tiny", "--precision", "fp32", "--loop.global_batch", "8", "--checkpoint.every", "4"]
    how = ["--eval.generate", "0", "--eval.examples", "8", "--guard.hang_timeout", "20", "--loop.steps", str(STEPS)]
    return ["--data.path", str(store), "--out", str(out), *small, *how, *QUIET, *more]


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory) -> Path:
    """A finished run on two ranks with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_to_end(folder, arguments(store, folder / "run", "--checkpoint.keep_last", "9"), ranks=2)
    return folder / "run"


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A separate file system of 2 GB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "none", folder], capture_output=True, text=True)
    if made.returncode:
        reason = f"needs root, to mount a file system: {made.stderr.strip()}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def error_of(job: Job) -> str:
    """Return the one line that gives the reason why the job ended."""
    lines = {line for log in job.logs for line in log.read_text().splitlines() if line.startswith("error: ")}
    assert len(lines) == 1 and "Traceback" not in job.output(), job.output()
    return lines.pop()


def steps_of(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").glob("step-*"))


def check_resume(tmp_path: Path, store: Path, run: Path, undisturbed: Path) -> None:
    """Run the same command again: it ends with the losses of the undisturbed run."""
    run_to_end(tmp_path / "again", arguments(store, run), ranks=2)
    assert losses(run) == losses(undisturbed)


def test_a_full_disk_ends_the_run_and_the_next_start_resumes(store, tmp_path, undisturbed, disk):
    run = disk / "run"
    job = Job(tmp_path, arguments(store, run), ranks=2, script=FAULTY, FAULT="disk:0:6")
    codes = job.wait()
    assert codes[0] == 2 and 0 not in codes, job.output()
    assert "No space left on device" in error_of(
        job
    )  # for the checkpoint, or for the numbers of a step that came first
    assert steps_of(run) == ["step-00000004"]
    resize(disk, "2g")
    check_resume(tmp_path, store, run, undisturbed)
    assert "steps: 4 of" in (run / "log.txt").read_text()


@pytest.mark.long
def test_a_run_folder_that_becomes_read_only(store, tmp_path, undisturbed, disk):
    run = disk / "run"
    job = Job(tmp_path, arguments(store, run, "--checkpoint.every", "8"), ranks=2)
    job.wait_for_step(run, 2)
    bind = ["mount", "--bind", run / "checkpoints"] if (run / "checkpoints").exists() else ["mount", "--bind", run]
    subprocess.run([*bind, bind[-1]], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", bind[-1]], check=True)
    try:
        assert job.wait() == [2, 2], job.output()
        assert "cannot save a checkpoint: [Errno 30] Read-only file system" in error_of(job)
    finally:
        subprocess.run(["umount", bind[-1]], check=True)
    check_resume(tmp_path, store, run, undisturbed)


def spoil(file: Path, how: str) -> None:
    if how == "removed":
        file.unlink()
    elif how == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    else:
        with file.open("r+b") as f:
            f.seek(file.stat().st_size // 2)
            byte = f.read(1)[0]
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    "how", ["bit-flipped", *(pytest.param(how, marks=pytest.mark.long) for how in ("truncated", "removed"))]
)
def test_a_damaged_shard_is_never_loaded(store, tmp_path, undisturbed, how):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for name in steps_of(run)[3:]:
        shutil.rmtree(run / "checkpoints" / name)
    shard = next((run / "checkpoints" / "step-00000012").glob("*rank_1*optim_states.pt"))
    spoil(shard, how)
    check_resume(tmp_path, store, run, undisturbed)
    log = (run / "log.txt").read_text()
    assert f"step-00000012 is damaged ({shard.name} " in log
    assert "steps: 8 of" in log


def test_without_a_whole_checkpoint_the_run_does_not_start_over(store, tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for name in steps_of(run):
        spoil(run / "checkpoints" / name / "state.json", "truncated")
    for attempt in range(2):  # the damaged ones are out of the way by now
        job = Job(tmp_path / str(attempt), arguments(store, run, "--loop.steps", "20"), ranks=1)
        assert job.wait() == [2]
        assert f"no checkpoint in {run / 'checkpoints'} is whole" in error_of(job)
    assert losses(run) == losses(undisturbed)


def image_file(store: Path) -> Path:
    return next((store / "train").glob("image-*.lmdb")) / "data.mdb"


def damage_pictures(store: Path) -> None:
    """Change a byte of each of the first ten pictures, in place."""
    content, at = bytearray(image_file(store).read_bytes()), 0
    for _ in range(10):
        at = content.index(JPEG, at + 1)
        content[at + 300] ^= 1
    with image_file(store).open("r+b") as f:
        f.write(content)


def truncate_pictures(store: Path) -> None:
    os.truncate(image_file(store), 8192)


@pytest.mark.parametrize(
    ("fault", "most", "reason"),
    [
        (damage_pictures, "0.9", ""),
        pytest.param(damage_pictures, "0.01", "checksum", marks=pytest.mark.long),
        (truncate_pictures, "0.01", "it was cut off"),
    ],
    ids=["as many as there are", "more than may be", "the end of the file"],
)
def test_a_store_that_is_damaged_under_the_run(store, tmp_path, fault, most, reason):
    """Damaged records are skipped, named and counted; too many of them end the run. A truncated file causes no bus error."""
    own = tmp_path / "store"
    shutil.copytree(store, own)
    run = tmp_path / "run"
    job = Job(tmp_path, arguments(own, run, "--loop.steps", "40", "--data.max_skip_rate", most), ranks=2)
    job.wait_for_step(run, 2)
    fault(own)
    codes = job.wait()
    log = (run / "log.txt").read_text()
    if reason:
        assert codes == [2, 2], job.output()
        assert "examples could not be read" in error_of(job) and reason in log + error_of(job)
    else:
        assert codes == [0, 0], job.output()
        assert "left out: its image is damaged in" in log
        assert records(run)[-1]["skipped_records"] >= 1 and records(run)[-1]["step"] == 40


@pytest.mark.long
def test_a_store_that_is_replaced_under_the_run(store, tmp_path):
    """The run continues with the files that it has open; its next start refuses the other store."""
    from cromic_ds.world.sample import sample
    from cromic_ds.world.settings import SampleSettings

    own, run = tmp_path / "store", tmp_path / "run"
    shutil.copytree(store, own)
    job = Job(tmp_path, arguments(own, run, "--loop.steps", "4000"), ranks=2)
    job.wait_for_step(run, 2)
    own.rename(tmp_path / "old")
    sample(SampleSettings(out=str(own), posts=80, seed=9))
    job.wait_for_step(run, 8)
    job.processes[0].send_signal(signal.SIGTERM)
    assert job.wait() == [0, 0], job.output()
    assert records(run)[-1]["skipped_records"] == 0
    again = Job(tmp_path / "again", arguments(own, run, "--loop.steps", "4000"), ranks=2)
    assert again.wait() == [2, 2]
    assert "the data has changed since this run started" in error_of(again)


def test_a_spike_of_the_loss_on_one_rank_is_skipped_on_all(store, tmp_path):
    run = tmp_path / "run"
    limits = ["--guard.max_loss_ratio", "4"]
    run_to_end(tmp_path / "spike", arguments(store, run, *limits), ranks=2, script=FAULTY, FAULT="spike:1:5")
    assert [record["skipped_steps"] for record in records(run)] == [0] * 5 + [1] * (STEPS - 5)
    assert max(losses(run)[6:]) < losses(run)[0]


@pytest.mark.long
def test_a_clock_that_is_set_back_changes_nothing(store, tmp_path, undisturbed):
    run = tmp_path / "run"
    run_to_end(tmp_path / "clock", arguments(store, run), ranks=2, script=FAULTY, FAULT="clock:0:5")
    assert losses(run) == losses(undisturbed)
    assert all(r["seconds_per_step"] > 0 and r.get("seconds_left", 0) >= 0 for r in records(run))
    assert records(run)[8]["time"] < records(run)[2]["time"]
    run_to_end(tmp_path / "again", arguments(store, run, "--loop.steps", "20"), ranks=2)
    assert records(run)[-1]["step"] == 20


def loader_of(process: subprocess.Popen) -> int:
    """Return the number of a process that reads data for a rank."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if "pretrain.py" in command and "watcher.py" not in command:
                return int(pid)
        time.sleep(0.1)
    raise AssertionError("it reads its data by itself")


@pytest.mark.long
def test_a_killed_reader_of_data_ends_the_run_and_the_next_start_resumes(store, tmp_path, undisturbed):
    run = tmp_path / "run"
    command = arguments(store, run, "--data.workers", "1")
    job = Job(tmp_path, command, ranks=2)
    job.wait_for_step(run, 5)
    os.kill(loader_of(job.processes[1]), signal.SIGKILL)
    assert 0 not in job.wait(60)
    assert "DataLoader worker" in job.output() and "is killed by signal: Killed" in job.output()
    states = [json.loads((run / "ranks" / f"rank-000{r}.json").read_text()) for r in range(2)]
    assert "rank 1 on host" in states[1]["error"] and states[0]["error"] == "ended because rank 1 failed"
    run_to_end(tmp_path, command, ranks=2)
    assert losses(run) == losses(undisturbed)
