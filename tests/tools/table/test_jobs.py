"""Jobs that run, fail, stop, are killed and are resumed: stand-ins for the commands, in real processes."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.stand_ins import check, job, run, runner, starts, states, wait_for

from cromic_ds.errors import UserError
from cromic_ds.tools.table import jobs, local
from cromic_ds.tools.table.folder import TableFolder
from cromic_ds.tools.table.jobs import Slot, Stop, last_lines, run_job, started_command
from cromic_ds.tools.table.settings import TableSettings


def folder_of(path: Path, *jobs) -> TableFolder:
    return TableFolder(path, list(jobs), {})


def test_jobs_run_after_what_they_need_and_never_again(tmp_path):
    jobs = (job("a"), job("b", needs=("a",)), job("c", needs=("a",)), job("d", needs=("b", "c")))
    folder = folder_of(tmp_path, *jobs)
    assert run(folder) == dict.fromkeys("abcd", "done")
    assert starts(folder) == ["a", "b", "c", "d"]
    state = folder.state(jobs[0])
    assert state.result == {"records": 1} and state.command == list(jobs[0].command) and state.seconds > 0
    assert run(folder) == dict.fromkeys("abcd", "done")
    assert starts(folder) == ["a", "b", "c", "d"]


def test_two_slots_run_two_jobs_at_a_time(tmp_path):
    # Each waits until the other has started.
    folder = folder_of(tmp_path, *(job(id, "until [ $(wc -l < starts) = 2 ]; do sleep .02; done") for id in "ab"))
    assert run(folder, slots=2) == {"a": "done", "b": "done"}


def test_a_failure_stops_nothing_but_what_needs_it(tmp_path, capsys):
    jobs = (job("a", "echo no such file; exit 3"), job("b", needs=("a",)), job("c", needs=("b",)), job("d"))
    folder = folder_of(tmp_path, *jobs)
    assert run(folder) == {"a": "failed", "b": "", "c": "", "d": "done"}
    assert folder.skipped(folder.states()) == {"b": "a", "c": "a"}
    printed = capsys.readouterr().out
    assert "[0/4] a failed after 0:00:00" in printed and "[1/4] d done after 0:00:00  (0 running, 1 failed" in printed
    assert f"    exit code 3; its log {tmp_path}/jobs/a/log.txt ends with\n    | ===" in printed
    assert "\n    | no such file\n" in printed

    assert run(folder)["a"] == "failed"  # not tried again unasked
    assert starts(folder) == ["a", "d"]
    folder.retry()
    assert states(folder)["a"] == "stopped"
    assert run(folder)["a"] == "failed"
    assert starts(folder) == ["a", "d", "a"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", "it exited with code 0, but {}/a.made is missing"),
        ("kill -9 $$", "ended by signal 9 (Killed)"),
    ],
)
def test_why_a_job_failed(tmp_path, script, reason):
    folder = folder_of(tmp_path, job("a", script))
    run(folder)
    assert folder.state(folder.jobs[0]).reason == reason.format(tmp_path)


def test_a_command_that_is_not_there_fails_alone(tmp_path):
    folder = folder_of(tmp_path, replace(job("a"), command=("no-such-command",)), job("b"))
    assert run(folder) == {"a": "failed", "b": "done"}
    assert folder.state(folder.jobs[0]).reason == "no-such-command: no such command"


SLOW = "until [ -e go ]; do sleep .02; done"


def test_a_job_that_outlives_its_killed_runner_is_not_started_twice(tmp_path):
    folder = folder_of(tmp_path, job("a", SLOW), job("b", needs=("a",)))
    first = runner(folder)
    wait_for(lambda: starts(folder) == ["a"])
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = runner(folder)
    with pytest.raises(AssertionError):
        wait_for(lambda: starts(folder) != ["a"], seconds=0.8)  # the second finds it held
    (tmp_path / "go").touch()
    assert second.wait(30) == 0
    assert states(folder) == {"a": "done", "b": "done"}
    assert starts(folder) == ["a", "b"]


def test_a_killed_runner_and_job_are_resumed(tmp_path):
    folder = folder_of(tmp_path, job("a", SLOW), job("b", needs=("a",)))
    for _ in range(2):
        process = runner(folder)
        wait_for(lambda: states(folder)["a"] == "started" and folder.state(folder.jobs[0]).pid)
        process.send_signal(signal.SIGKILL)
        os.killpg(folder.state(folder.jobs[0]).pid, signal.SIGKILL)
        process.wait()
        folder.write(folder.jobs[0], replace(folder.state(folder.jobs[0]), pid=0))
    (tmp_path / "go").touch()
    assert run(folder) == {"a": "done", "b": "done"}
    assert starts(folder)[-1] == "b" and set(starts(folder)) == {"a", "b"}


def test_two_runners_share_the_jobs(tmp_path):
    folder = folder_of(tmp_path, *(job(f"j{i}", "sleep .05") for i in range(12)))
    runners = [runner(folder, slots=2) for _ in range(2)]
    assert [process.wait(60) for process in runners] == [0, 0]
    assert set(states(folder).values()) == {"done"}
    assert sorted(starts(folder)) == sorted(states(folder))


def test_a_stopped_table_stops_its_jobs_and_is_resumed(tmp_path):
    careful = "trap 'touch saved; exit 0' TERM; until [ -e go ]; do sleep .02; done"
    folder = folder_of(tmp_path, job("a", careful), job("b", needs=("a",)))
    process = runner(folder)
    wait_for(lambda: starts(folder) == ["a"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert (tmp_path / "saved").exists() and states(folder) == {"a": "stopped", "b": ""}
    (tmp_path / "go").touch()
    assert run(folder) == {"a": "done", "b": "done"}
    assert starts(folder) == ["a", "a", "b"]


def test_a_second_interrupt_kills(tmp_path):
    folder = folder_of(tmp_path, job("a", "trap '' TERM; until [ -e go ]; do sleep .02; done"))
    process = runner(folder)
    wait_for(lambda: starts(folder) == ["a"])
    process.send_signal(signal.SIGINT)
    with pytest.raises(AssertionError):
        wait_for(lambda: process.poll() is not None, seconds=0.7)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert states(folder) == {"a": "stopped"}


def test_a_job_is_over_when_all_that_it_started_is(tmp_path):
    folder = folder_of(tmp_path, job("a", "(sleep .5; touch late) & :"))
    run(folder)
    assert (tmp_path / "late").exists()


def test_finished_but_not_written_down(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, job("a"))
    run(folder)
    state = folder.state(folder.jobs[0])
    state.state = "started"  # as if the runner was killed just before
    folder.write(folder.jobs[0], state)
    monkeypatch.setattr(jobs, "check_product", check)
    assert run_job(folder, folder.jobs[0], Slot({}), Stop()).state == "done"
    assert starts(folder) == ["a"]


def test_what_was_made_with_other_settings_is_refused_until_removed(tmp_path):
    run(folder_of(tmp_path, job("a"), job("b", needs=("a",))))
    changed = folder_of(tmp_path, job("a", "sleep 0"), job("b", needs=("a",)))
    with pytest.raises(UserError, match=r"a was made with other settings \(was .*\): restore the recipe") as error:
        changed.refuse_changed()
    assert f"remove {tmp_path}/a.made (" in str(error.value)
    (tmp_path / "a.made").unlink()
    with pytest.raises(UserError, match=r"b was made with other settings \(the recipe it names has changed, or a\)"):
        changed.refuse_changed()
    (tmp_path / "b.made").unlink()
    changed.refuse_changed()
    assert states(changed) == {"a": "", "b": ""}
    assert run(changed) == {"a": "done", "b": "done"}
    assert starts(changed) == ["a", "b", "a", "b"]


def test_a_change_of_a_named_recipe_is_a_change_and_a_comment_in_it_is_not(tmp_path):
    jobs = [replace(job("a"), command=(*job("a").command, "recipes/x.yaml"))]
    run(TableFolder(tmp_path, jobs, {"recipes/x.yaml": "loop: {steps: 3}"}))
    TableFolder(tmp_path, jobs, {"recipes/x.yaml": "loop:\n  steps: 3 # three\n"}).refuse_changed()
    with pytest.raises(UserError, match="the recipe it names has changed"):
        TableFolder(tmp_path, jobs, {"recipes/x.yaml": "loop: {steps: 4}"}).refuse_changed()


def test_new_jobs_join_finished_ones(tmp_path):
    run(folder_of(tmp_path, job("a")))
    assert run(folder_of(tmp_path, job("a"), job("b", needs=("a",)))) == {"a": "done", "b": "done"}
    assert starts(folder_of(tmp_path)) == ["a", "b"]


def test_a_damaged_state_is_named(tmp_path):
    folder = folder_of(tmp_path, job("a"))
    run(folder)
    (tmp_path / "jobs/a/state.json").write_text("{")
    with pytest.raises(UserError, match=r"jobs/a/state.json: damaged .*; remove it"):
        folder.states()


def test_slots(monkeypatch):
    settings = TableSettings(out="x", models={"cmt": {}})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(local, "usable_cores", lambda: 8)

    def slots(gpus: int, **changes):
        monkeypatch.setattr(local, "visible_gpus", lambda: [str(i + 4) for i in range(gpus)])
        made = local.make_slots(TableSettings(**vars(settings) | changes))
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "DS_ACCELERATOR")
        return [tuple(slot.environment.get(name) for name in names) for slot in made]

    assert slots(0) == [(None, "8", "cpu")]
    assert slots(0, jobs=2) == [(None, "4", "cpu")] * 2
    assert slots(0, jobs=2, processes=2) == [(None, "2", "cpu")] * 2
    assert slots(3) == [("4", "2", None), ("5", "2", None), ("6", "2", None)]
    assert slots(5, processes=2) == [("4,5", "2", None), ("6,7", "2", None)]
    assert slots(2, jobs=3) == [("4", "2", None), ("5", "2", None), ("4", "2", None)]
    assert slots(2, jobs=1) == [("4", "8", None)]
    with pytest.raises(UserError, match="processes 4: a training needs as many GPUs, and there are 2"):
        slots(2, processes=4)


def test_the_command_that_is_started():
    sampling = replace(job("a"), command=("cromic-ds", "sample"))
    pretraining = replace(job("b", stage="pretrain"), command=("cromic-ds", "pretrain", "--seed", "1"))
    assert started_command(sampling, Slot({}, 4)) == [sys.executable, "-m", "cromic_ds", "sample"]
    assert started_command(pretraining, Slot({})) == [sys.executable, "-m", "cromic_ds", "pretrain", "--seed", "1"]
    on_cpu = started_command(pretraining, Slot({}, 2))
    assert on_cpu[:2] == ["deepspeed", "--master_port"] and on_cpu[3:7] == ["--log_level", "error", "--num_gpus", "2"]
    assert on_cpu[7:] == ["--no_local_rank", "--module", "cromic_ds", "pretrain", "--seed", "1"]
    # With --num_gpus the launcher would take the first GPUs and ignore CUDA_VISIBLE_DEVICES.
    assert "--num_gpus" not in started_command(pretraining, Slot({"CUDA_VISIBLE_DEVICES": "2,3"}, 2))


def test_the_end_of_a_log(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("first\n" + "x" * 30_000 + "\n\n10%\r20%\rbad 错\n")
    assert last_lines(log, 3) == ["10%", "20%", "bad 错"]
