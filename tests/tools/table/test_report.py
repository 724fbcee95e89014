"""The report from hand-made results: exact numbers, exact Markdown, and the picture."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from cromic_ds.errors import UserError
from cromic_ds.tools.table.folder import JobState, TableFolder
from cromic_ds.tools.table.jobs import check_product
from cromic_ds.tools.table.plan import TableJob, plan_jobs
from cromic_ds.tools.table.report import COMMENTS_COLUMN, summarize_table, write_table_report
from cromic_ds.tools.table.settings import TableSettings

SETTINGS = TableSettings(
    out="x",
    models={"cmt": {}, "vlp": {}, "cmt_wide": {"name": "cmt", "d_model": 256}},
    tasks=["vqa2", "muge", "fmiqa"],
    seeds=[0, 1],
)


def result(task: str, more: float) -> dict:
    scores = (
        {"accuracy": 0.5 + more} if task == "vqa2" else {"cider": 1.0 + more, "bleu_4": 0.25, "rouge_l": 0.5 + more}
    )
    if task == "fmiqa":
        scores |= {"exact_match": 0.125}
    how = {"tokenization": "vqa" if task == "vqa2" else "char", "decoding": None if task == "vqa2" else {"beams": 5}}
    return {"scores": scores, "counts": {"items": 1200}, "notes": [], "split": "val", **how}


def state(folder: TableFolder, job: TableJob, what: str, **about) -> None:
    made = JobState(what, folder.fingerprints[job.id], list(job.command), "here", 1, 0.0, 60.0)
    folder.write(job, JobState(**vars(made) | about))
    if what == "done":
        product = folder.path / job.makes
        product.parent.mkdir(parents=True, exist_ok=True)
        product.touch()


@pytest.fixture
def folder(tmp_path: Path) -> TableFolder:
    """All but: cmt_wide on nothing; vlp failed on muge from scratch with both seeds, and has one seed on vqa2."""
    folder = TableFolder(tmp_path, plan_jobs(SETTINGS), {})
    for job in folder.jobs:
        if job.model == "cmt_wide":
            continue
        if (job.model, job.task, job.start) == ("vlp", "muge", "scratch"):
            if job.stage == "finetune":
                state(folder, job, "failed", reason="exit code 1")
        elif (job.model, job.task, job.seed) == ("vlp", "vqa2", 1):
            continue
        elif job.stage == "evaluate":
            more = 0.2 * (job.start == "pretrained") + 0.1 * job.seed
            state(folder, job, "done", result=result(job.task, more))
        else:
            state(folder, job, "done")
    return folder


VLP = "Unified VLP (our interpretation)"
MARKDOWN = f"""# Results

Scores × 100, mean ± standard deviation over 2 seeds; 20 of 36 evaluations done.

| Model | Comments | MUGE C | MUGE B@4 | MUGE R | FM-IQA C | FM-IQA B@4 | FM-IQA EM | VQA v2.0 Acc |
|---|---|---:|---:|---:|---:|---:|---:|---:|
| CroMIC-CMT | with comments | 125.0 ± 7.1 | 25.0 ± 0.0 | 75.0 ± 7.1 | 125.0 ± 7.1 | 25.0 ± 0.0 | 12.5 ± 0.0 | 75.0 ± 7.1 |
| CroMIC-CMT | without | 105.0 ± 7.1 | 25.0 ± 0.0 | 55.0 ± 7.1 | 105.0 ± 7.1 | 25.0 ± 0.0 | 12.5 ± 0.0 | 55.0 ± 7.1 |
| {VLP} | with comments | 125.0 ± 7.1 | 25.0 ± 0.0 | 75.0 ± 7.1 | 125.0 ± 7.1 | 25.0 ± 0.0 | 12.5 ± 0.0 | \
70.0 (1 of 2 seeds) |
| {VLP} | without | failed | failed | failed | 105.0 ± 7.1 | 25.0 ± 0.0 | 12.5 ± 0.0 | \
50.0 (1 of 2 seeds) |
| CroMIC-CMT cmt_wide | with comments | – | – | – | – | – | – | – |
| CroMIC-CMT cmt_wide | without | – | – | – | – | – | – | – |

- With comments: pretrained on posts' comments, then fine-tuned on the task. Without: fine-tuned alone.
- C: CIDEr, B@4: BLEU-4, R: ROUGE-L, over the whole split and on text.
- FM-IQA: automatic scores (EM: answers equal to the reference). The PassRate of the literature is a human Turing test, \
which none of them can be compared with.
- Acc: the accuracy of the official tool.
- What the paper changed in Unified VLP is not public: their rows are our interpretation.
- Scored on: MUGE val (1,200 items, by char, 5 beams); FM-IQA val (1,200 items, by char, 5 beams); VQA v2.0 val (1,200 items).
- Data: the sample world (seed 0), 20,000 posts with comments and 300 labeled training pictures a task.
- Jobs: 49 of 83 done, 0:51:00 in all.
- Failed: finetune-vlp-muge-scratch-0 (exit code 1).
- Failed: finetune-vlp-muge-scratch-1 (exit code 1).
"""


def test_markdown_json_and_picture(folder):
    from PIL import Image

    write_table_report(folder, SETTINGS)
    assert (folder.path / "results.md").read_text(encoding="utf-8") == MARKDOWN
    written = json.loads((folder.path / "results.json").read_text(encoding="utf-8"))
    cell = written["rows"][0]["cells"]["vqa2"]
    accuracy = cell["scores"].pop("accuracy")
    assert cell == {"status": "done", "seeds": [0, 1], "scores": {}}
    assert accuracy.pop("seeds") == pytest.approx({"0": 0.7, "1": 0.8})
    assert accuracy == pytest.approx({"mean": 0.75, "std": statistics.stdev([0.7, 0.8])})
    assert written["rows"][3]["cells"]["muge"] == {"status": "failed", "seeds": [], "scores": {}}
    assert written["failed"] == dict.fromkeys([f"finetune-vlp-muge-scratch-{seed}" for seed in (0, 1)], "exit code 1")
    with Image.open(folder.path / "results.png") as picture:
        assert picture.width > 800 and picture.height > 400
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert not list(folder.path.glob(".results*"))


def test_an_empty_table_is_a_table(tmp_path):
    folder = TableFolder(tmp_path, plan_jobs(SETTINGS), {})
    report = write_table_report(folder, SETTINGS)
    assert report["jobs"]["evaluated"] == 0
    assert "| CroMIC-CMT | with comments | – | – |" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_no_automatic_score_is_called_passrate(folder):
    header = next(line for line in MARKDOWN.splitlines() if line.startswith("| Model"))
    assert "Pass" not in header
    names = {
        name for row in summarize_table(folder, SETTINGS)["rows"] for c in row["cells"].values() for name in c["scores"]
    }
    assert not any("pass" in name.lower() for name in names)
    assert set(COMMENTS_COLUMN) == set(SETTINGS.starts)


def test_published_numbers_are_marked_as_such(folder):
    settings = replace(SETTINGS, published={"CroMIC-CMT": {"muge": {"cider": 51.25}, "vqa2": {"accuracy": 60.0}}})
    settings._check_published()
    write_table_report(folder, settings)
    text = (folder.path / "results.md").read_text(encoding="utf-8")
    assert "| *CroMIC-CMT* | *published* | 51.2 | – | – | – | – | – | 60.0 |" in text
    assert "- Published: as given in the recipe, measured by others on their own data and models." in text


def test_grounded_accuracy_has_a_table_of_its_own(folder):
    job = next(job for job in folder.jobs if job.id == "evaluate-cmt-muge-scratch-0")
    made = result("muge", 0)
    state(folder, job, "done", result=made | {"scores": made["scores"] | {"grounded": 0.9}})
    write_table_report(folder, SETTINGS)
    text = (folder.path / "results.md").read_text(encoding="utf-8")
    table = text[text.index("Answers and captions that name") :].splitlines()
    assert table[2:6] == [
        "| Model | Comments | MUGE | FM-IQA | VQA v2.0 |",
        "|---|---|---:|---:|---:|",
        "| CroMIC-CMT | with comments | – | – | – |",
        "| CroMIC-CMT | without | 90.0 (1 of 2 seeds) | – | – |",
    ]


def test_what_an_evaluation_must_have_left(tmp_path):
    job = TableJob("evaluate-x", "evaluate", (), "x.json", task="muge")
    with pytest.raises(UserError, match=r"x.json is missing"):
        check_product(job, tmp_path)
    (tmp_path / "x.json").write_text('{"task": "mu')
    with pytest.raises(UserError, match="not JSON"):
        check_product(job, tmp_path)
    whole = {
        "task": "muge",
        "scores": {"cider": 1.5},
        "intervals": {},
        "counts": {"items": 1},
        "tokenization": "char",
        "notes": [],
        "data": {"path": "s", "split": "val", "fingerprint": "f"},
        "decoding": {"beams": 5},
        "items": {"ids": ["a"], "images": ["a"], "means": {}, "groups": []},
    }
    (tmp_path / "x.json").write_text(json.dumps(whole))
    assert check_product(job, tmp_path)["scores"] == {"cider": 1.5}
    with pytest.raises(UserError, match="a result of muge, not of vqa2"):
        check_product(TableJob("evaluate-x", "evaluate", (), "x.json", task="vqa2"), tmp_path)


def test_what_the_other_jobs_must_have_left(tmp_path, store):
    export = tmp_path / "runs/r/export"
    export.mkdir(parents=True)
    training = TableJob("pretrain-r", "pretrain", (), "runs/r/export")
    with pytest.raises(UserError, match="an export without weights"):
        check_product(training, tmp_path)
    (export / "model.safetensors").touch()
    assert check_product(training, tmp_path) == {}
    (tmp_path / "posts").symlink_to(store)
    assert check_product(TableJob("sample-posts", "sample", (), "posts"), tmp_path) == {
        "records": {"train": 54, "val": 10}
    }
    with pytest.raises(UserError, match=r"stores/muge is missing"):
        check_product(TableJob("prepare-muge", "prepare", (), "stores/muge"), tmp_path)
