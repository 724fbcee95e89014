"""Each task from its official files to scores and a submission: prepare, fine-tune (two ranks, ZeRO-3), evaluate, predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.launching import cromic_ds, records, run_to_end

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.tasks import TASKS

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]  # the first one waits for the backbone
STEPS = {"fmiqa": 300, "vqa2": 900, "aic_icc": 300, "flickr30k_cn": 300, "muge": 300}
# By how much the fine-tuned model must beat the untrained one in the task's best metric. CIDEr is at most 10.
MARGINS = {"fmiqa": 1.0, "vqa2": 0.5, "aic_icc": 1.0, "flickr30k_cn": 1.0, "muge": 1.0}
TEST_SPLIT = {"fmiqa": "val", "vqa2": "test-dev", "aic_icc": "test", "flickr30k_cn": "test", "muge": "test"}


def finetuning(task: str, store: Path, out: Path, *more: str) -> list[str]:
    return [
        *["--config", f"recipes/finetune_{task}.yaml", "--data.path", str(store), "--out", str(out)],
        *["--precision", "fp32", "--optim.lr", "0.001", "--optim.schedule", "linear", "--loop.global_batch", "32"],
        *["--loop.micro_batch", "16", "--data.comments_per_post", "3", "--tracking.wandb", "off"],
        *["--eval.every", "null", "--eval.generate", "100", "--eval.micro_batch", "50", *more],
    ]


@pytest.mark.parametrize("task", MARGINS)
def test_from_official_files_to_a_submission(task, backbone, posts, official, tmp_path):
    store, run, root = tmp_path / "store", tmp_path / "run", official / task
    cromic_ds(
        *["prepare", "--task", task, "--root", root, "--tokenizer", posts / "tokenizer", "--out", store],
        *["--extras", root / "grounding.jsonl"],
    )

    untrained = tmp_path / "untrained"
    scratch = ["--model.preset", "tiny", "--model.batch_norm", "batch", "--loop.steps", "1", "--optim.lr", "1e-9"]
    run_to_end(tmp_path / "u", finetuning(task, store, untrained, *scratch), ranks=2, script="finetune.py")
    trained = ["--backbone", str(backbone), "--loop.steps", str(STEPS[task])]
    run_to_end(tmp_path / "t", finetuning(task, store, run, *trained), ranks=2, script="finetune.py", timeout=900)
    assert "weights: from" in (run / "log.txt").read_text()
    assert records(run)[-1]["step"] == STEPS[task]

    scores = {}
    for name, folder in (("untrained", untrained), ("trained", run)):
        result = tmp_path / f"{name}.json"
        cromic_ds(
            *["evaluate", folder / "export", "--task", task, "--data", store, "--split", "val", "--out", result],
            *["--limit", 100, "--meteor", "false"],
        )
        scores[name] = json.loads(result.read_text())["scores"]
    best = TASKS[task].best_metric
    assert scores["trained"][best] >= scores["untrained"][best] + MARGINS[task], scores
    assert scores["trained"]["grounded"] >= 0.8, scores

    out, split = tmp_path / "submission", TEST_SPLIT[task]
    cromic_ds("predict", run / "export", "--task", task, "--data", store, "--split", split, "--out", out)
    dataset = open_dataset(store, split)
    predicted = [id for id, _ in TASKS[task].form.read(out)]
    assert sorted(predicted) == sorted(dataset.texts(i).id for i in range(len(dataset)))
