"""A real table of one model and one task, killed in the middle with all its processes, and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.launching import environment, last_step, records
from helpers.paths import REPOSITORY

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
COMMON = {
    "ds_config": "zero0",
    "precision": "fp32",
    "eval": {"every": None, "generate": 8},
    "tracking": {"wandb": "off", "log_every": 1},
}
RECIPE = {
    "models": {"cmt": {"preset": "tiny", "batch_norm": "batch"}},
    "tasks": ["vqa2"],
    "seeds": [0],
    "data": {"sample_posts": 300, "sample_pictures": 40, "sample_val_pictures": 8},
    "prepare": {"all": {"workers": 1, "min_answer_count": 1}},
    "pretrain": {
        "all": COMMON | {"loop": {"steps": 60, "global_batch": 8, "micro_batch": 8}, "checkpoint": {"every": 10}}
    },
    "finetune": {"all": COMMON | {"loop": {"steps": 5, "global_batch": 8, "micro_batch": 8}}},
    "evaluate": {"all": {"meteor": False, "limit": 16, "resamples": 10}},
}


def start(recipe: Path, out: Path) -> subprocess.Popen:
    program = Path(sys.executable).parent / "cromic-ds"
    command = [str(program), "table", "--recipe", str(recipe), "--out", str(out), "--jobs", "2"]
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(), stdout=log, stderr=log, start_new_session=True
        )


def end_of(process: subprocess.Popen, out: Path) -> str:
    assert process.wait(900) == 0, out.with_suffix(".log").read_text()[-4000:]
    return out.with_suffix(".log").read_text()


def starts(out: Path) -> dict[str, int]:
    return {log.parent.name: log.read_text().count("\n===") + 1 for log in sorted(out.glob("jobs/*/log.txt"))}


def test_a_table_that_is_killed_in_the_middle_goes_on(tmp_path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "table"
    recipe.write_text(yaml.safe_dump(RECIPE))
    process = start(recipe, out)
    run, until = out / "runs/pretrain-cmt-0", time.monotonic() + 600
    while last_step(run) < 25:
        assert process.poll() is None and time.monotonic() < until, out.with_suffix(".log").read_text()[-4000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    for path in out.glob("jobs/*/state.json"):
        state = json.loads(path.read_text())
        if state["state"] == "started":
            os.killpg(state["pid"], signal.SIGKILL)
    process.wait()
    assert not (out / "runs/pretrain-cmt-0/export").exists()

    text = end_of(start(recipe, out), out)
    assert "8 of 8 jobs done" in text
    assert [record["step"] for record in records(run)] == list(range(1, 61))  # gone on from a checkpoint, no step lost
    begun = starts(out)
    assert begun["pretrain-cmt-0"] == 2 and begun["sample-posts"] == begun["sample-official"] == 1
    assert len(begun) == 8

    table = json.loads((out / "results.json").read_text())
    assert [(row["model"], row["start"]) for row in table["rows"]] == [("cmt", "pretrained"), ("cmt", "scratch")]
    for row in table["rows"]:
        result = json.loads((out / f"results/cmt-vqa2-{row['start']}-0.json").read_text())
        assert row["cells"]["vqa2"]["scores"]["accuracy"]["seeds"] == {"0": result["scores"]["accuracy"]}
    assert table["evaluated"]["vqa2"][0]["items"] == 16
    assert "| CroMIC-CMT | with comments |" in (out / "results.md").read_text() and (out / "results.png").stat().st_size

    before = {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/*")}
    end_of(start(recipe, out), out)
    assert {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/*")} == before  # nothing is run again

    recipe.write_text(yaml.safe_dump(RECIPE | {"evaluate": {"all": RECIPE["evaluate"]["all"] | {"limit": 8}}}))
    assert start(recipe, out).wait(60) == 2
    assert "was made with other settings (was --limit 16, is --limit 8)" in out.with_suffix(".log").read_text()
