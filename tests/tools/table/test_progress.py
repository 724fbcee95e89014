"""The time left, estimated from jobs that are done."""

from __future__ import annotations

import pytest
from helpers.stand_ins import job

from cromic_ds.tools.table.folder import JobState, TableFolder
from cromic_ds.tools.table.progress import estimate, time_left


@pytest.fixture
def folder(tmp_path) -> TableFolder:
    about = {"stage": "finetune", "task": "muge", "start": "scratch"}
    jobs = [job(f"cmt{seed}", model="cmt", seed=seed, **about) for seed in (0, 1, 2)]
    jobs += [job("vlp0", model="vlp", **about), job("eval", stage="evaluate", model="cmt", needs=("cmt0",))]
    return TableFolder(tmp_path, jobs, {})


def states(folder: TableFolder, **known) -> dict:
    """known: seconds of a job that is done, or a JobState."""
    made = dict.fromkeys(folder.by_id)
    for id, value in known.items():
        made[id] = value if isinstance(value, JobState) else JobState("done", "", [], "", 0, 0.0, seconds=value)
    return made


def test_like_jobs_take_like_times(folder):
    # cmt1 and cmt2 as the same cell of another seed, vlp0 as the stage's mean; of evaluations nothing is known.
    assert estimate(folder, states(folder, cmt0=60.0), [], slots=1) == (180.0, 1)
    assert estimate(folder, states(folder, cmt0=60.0, vlp0=100.0), [], slots=2) == (60.0, 1)
    assert estimate(folder, states(folder, cmt0=60.0, vlp0=100.0, eval=5.0), [], slots=1) == (120.0, 0)
    assert estimate(folder, states(folder, cmt0=60.0, cmt1=80.0, vlp0=100.0, eval=5.0), [], slots=1) == (70.0, 0)


def test_what_is_running_is_partly_done(folder, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1020.0)
    started = JobState("started", "", [], "", 0, started=1000.0, seconds=10.0)
    known = states(folder, cmt0=60.0, cmt1=started, vlp0=1.0, eval=1.0)
    assert estimate(folder, known, ["cmt1"], slots=1) == (30.0 + 60.0, 0)
    assert estimate(folder, known, [], slots=1) == (50.0 + 60.0, 0)  # interrupted


def test_failed_and_skipped_jobs_take_no_time(folder):
    failed = JobState("failed", "", [], "", 0, 0.0, seconds=3.0)
    assert estimate(folder, states(folder, cmt0=failed, cmt1=60.0, vlp0=7.0), [], slots=1) == (60.0, 0)


def test_in_words(folder):
    assert time_left(folder, states(folder), [], 1) == "time left unknown"
    assert time_left(folder, states(folder, cmt0=60.0), [], 1) == "at least 0:03:00 left"
    assert time_left(folder, states(folder, cmt0=60.0, eval=1.0), [], 1) == "0:03:00 left"
