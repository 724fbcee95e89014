"""TableJob arrays: scripts and arguments, what is submitted when, and what becomes of tasks that Slurm ends. sbatch and squeue
are stand-ins here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.stand_ins import job, states

from cromic_ds.errors import UserError
from cromic_ds.ranks.launcher import number_ranges
from cromic_ds.tools.table import slurm
from cromic_ds.tools.table.folder import JobState, TableFolder
from cromic_ds.tools.table.jobs import Stop
from cromic_ds.tools.table.slurm import MOST_LOST, Slurm, array_arguments, array_script

SBATCH = """#!/bin/bash
printf '%s\\n' "$@" > FOLDER/called.$(ls FOLDER | grep -c called)
[ -e FOLDER/refuse ] && { echo 'sbatch: error: invalid partition specified: x' >&2; exit 1; }
echo $(( 100 + $(ls FOLDER | grep -c called) ))
"""
SQUEUE = """#!/bin/bash
[ -e FOLDER/silent ] && { echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1; }
cat FOLDER/queue
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """A folder with the stand-ins on the path: `queue` is what squeue prints, `called.N` what sbatch was called with."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(text.replace("FOLDER", str(folder)))
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    return folder


def finish(folder: TableFolder, id: str, what: str = "done") -> None:
    job = folder.by_id[id]
    folder.write(job, JobState(what, folder.fingerprints[id], list(job.command), "node1", 1, 0.0, 1.0))
    (folder.path / job.makes).touch()


def called(cluster: Path) -> list[list[str]]:
    return [path.read_text().splitlines() for path in sorted(cluster.glob("called.*"))]


def executor(folder: TableFolder, arguments: str = "--partition=gpu --gpus=1") -> Slurm:
    folder.path.mkdir(exist_ok=True)
    return Slurm(folder, arguments, None, Stop())


def cells(path: Path) -> TableFolder:
    jobs = [job("data")]
    for cell in "ab":
        jobs += [job(f"tune-{cell}", needs=("data",), stage="finetune"), job(f"eval-{cell}", needs=(f"tune-{cell}",))]
    return TableFolder(path / "table", jobs, {})


def test_what_is_ready_is_one_array_and_what_waits_for_each_another(tmp_path, cluster):
    folder = cells(tmp_path)
    queue = executor(folder)
    queue.start(folder.ready(folder.states()))
    assert [arguments[1] for arguments in called(cluster)] == ["--array=0"]  # two jobs wait for it: neither follows

    finish(folder, "data")
    assert [ended.id for ended in queue.wait()] == ["data"]
    queue.start(folder.ready(folder.states()))
    scripts = [str(folder.path / "slurm" / f"array-{i:04d}.sh") for i in (2, 3)]
    common = [f"--output={folder.path}/slurm/%A_%a.log", "--open-mode=append", "--requeue", "--signal=B:USR1@120"]
    user = ["--partition=gpu", "--gpus=1"]
    assert called(cluster)[1:] == [
        ["--parsable", "--array=0-1", "--job-name=table-finetune", *common, *user, scripts[0]],
        [
            *("--parsable", "--array=0-1", "--job-name=table-prepare", *common),
            *("--dependency=aftercorr:102", "--kill-on-invalid-dep=yes", *user, scripts[1]),
        ],
    ]
    assert sorted(queue.queued) == ["eval-a", "eval-b", "tune-a", "tune-b"]
    (cluster / "queue").write_text("102_0 RUNNING\n102_1 PENDING\n103_0 PENDING\n103_1 PENDING\n")
    assert queue.wait() == []
    assert queue.running == ["tune-a"] and sorted(queue.queued) == ["eval-a", "eval-b", "tune-b"]

    # Another process can watch the same jobs; it submits nothing twice.
    again = executor(folder)
    assert again.running == ["tune-a"] and sorted(again.queued) == ["eval-a", "eval-b", "tune-b"]


def test_the_script_of_an_array(tmp_path):
    jobs = {0: job("tune-a", stage="finetune"), 2: job("tune-c", stage="finetune")}
    assert array_script(Path("/shared/my table"), jobs) == (
        "#!/bin/bash\n"
        "jobs=([0]=tune-a [2]=tune-c)\n"
        f"exec {sys.executable} -m cromic_ds table --recipe '/shared/my table/table.yaml' --out '/shared/my table' "
        '--job "${jobs[$SLURM_ARRAY_TASK_ID]}"\n'
    )
    assert array_arguments(Path("/f"), jobs, 4, "")[0] == "--array=0,2%4"


def test_ranges():
    assert number_ranges([0]) == "0" and number_ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_a_task_that_slurm_ends_is_submitted_again_a_limited_number_of_times(tmp_path, cluster):
    folder = TableFolder(tmp_path / "table", [job("a")], {})
    queue = executor(folder)
    for attempt in range(MOST_LOST):
        assert states(folder)["a"] == ""
        queue.start(folder.ready(folder.states()))
        queue.wait()
        assert [ended.id for ended in queue.wait()] == ["a"], attempt
    assert queue.queued == [] and states(folder) == {"a": "failed"}
    assert folder.state(folder.jobs[0]).reason == (
        f"Slurm ended it 3 times without an error of the job; its output is in {folder.path}/slurm"
    )


def test_a_job_that_was_asked_to_stop_is_resumed_every_time(tmp_path, cluster):
    folder = TableFolder(tmp_path / "table", [job("a")], {})
    queue = executor(folder)
    for _ in range(MOST_LOST + 2):
        queue.start(folder.ready(folder.states()))
        finish(folder, "a", "stopped")
        queue.wait()
        assert [ended.id for ended in queue.wait()] == ["a"]
    assert len(called(cluster)) == MOST_LOST + 2 and states(folder) == {"a": "stopped"}


def test_a_task_that_waited_for_a_failed_one_is_only_forgotten(tmp_path, cluster):
    folder = cells(tmp_path)
    queue = executor(folder)
    finish(folder, "data")
    queue.start(folder.ready(folder.states()))
    finish(folder, "tune-a", "failed")
    finish(folder, "tune-b")
    finish(folder, "eval-b")
    ended = [job.id for _ in range(2) for job in queue.wait()]
    assert ended == ["tune-a", "tune-b", "eval-b"] and queue.queued == []
    assert folder.skipped(folder.states()) == {"eval-a": "tune-a"}


def test_slurm_may_be_silent_for_a_while(tmp_path, cluster, capsys):
    folder = TableFolder(tmp_path / "table", [job("a")], {})
    queue = executor(folder)
    queue.start(folder.jobs)
    (cluster / "silent").touch()
    for _ in range(3):
        assert queue.wait() == []
    assert "warning: squeue: slurm_load_jobs error: Unable to contact" in capsys.readouterr().err
    assert queue.queued == ["a"]


def test_a_refusal_ends_it_only_where_nothing_is_queued(tmp_path, cluster, capsys):
    folder = TableFolder(tmp_path / "table", [job("a"), job("b")], {})
    (cluster / "refuse").touch()
    queue = executor(folder, "--partition=x")
    with pytest.raises(
        UserError, match=r"^sbatch: sbatch: error: invalid partition specified: x; it was called as sbatch"
    ):
        queue.start(folder.jobs[:1])
    (cluster / "refuse").unlink()
    queue.start(folder.jobs[:1])
    (cluster / "refuse").touch()
    queue.start(folder.jobs[1:])
    assert "warning: sbatch: " in capsys.readouterr().err and queue.queued == ["a"]


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--slurm: there is no sbatch on this machine"):
        executor(TableFolder(tmp_path / "table", [job("a")], {})).start([job("a")])


def test_a_stop_leaves_the_queue_alone(tmp_path, cluster):
    folder = TableFolder(tmp_path / "table", [job("a")], {})
    queue = executor(folder)
    queue.start(folder.jobs)
    queue.stop.asked = True
    assert queue.running == queue.queued == []
    assert json.loads(folder.job_file(folder.jobs[0], "slurm.json").read_text()) == {"task": "101_0"}
