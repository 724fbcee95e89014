"""Ten real posts, in the published layout, through DeepSpeed's own launcher and ZeRO-3: the model can learn them by heart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launching import QUIET, environment, records
from helpers.paths import REPOSITORY

from cromic_ds.ranks.launcher import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def deepspeed(out: Path, seed_data: Path, *more: str) -> None:
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command = [*launcher, "pretrain.py", "--data.path", str(seed_data), "--out", str(out), *QUIET, *more]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.long
def test_small_learns_the_ten_posts_by_heart(shared, tmp_path):
    out = tmp_path / "run"
    how = [
        "--model.preset",
        "small",
        "--loop.global_batch",
        "10",
        "--loop.steps",
        "140",
        "--data.comments_per_post",
        "null",
    ]
    learn = ["--optim.lr", "5e-4", "--optim.warmup_fraction", "0.1", "--checkpoint.every", "null"]
    look = ["--eval.every", "null", "--eval.generate", "10", "--eval.pictures", "10", "--eval.beams", "5"]
    deepspeed(out, shared / "seed_data", *how, *learn, *look)
    [evaluation] = records(out, "eval")
    assert evaluation["posts"] == 10
    assert evaluation["loss"] <= 0.4  # nats per target token; six comments a post leave about 0.2
    rows = [json.loads(line) for line in (out / "samples" / "step-00000140.jsonl").read_text().splitlines()]
    literal = [row["generated"][0] in row["references"] for row in rows]
    assert len(rows) == 10 and sum(literal) >= 8


@pytest.mark.long
def test_paper_takes_steps_under_zero_3(shared, tmp_path):
    out = tmp_path / "run"
    how = ["--model.preset", "paper", "--loop.global_batch", "4", "--loop.micro_batch", "2", "--loop.steps", "2"]
    deepspeed(
        out,
        shared / "seed_data",
        *how,
        "--data.comments_per_post",
        "2",
        "--eval.generate",
        "0",
        "--checkpoint.every",
        "null",
    )
    losses = [r["loss"] for r in records(out)]
    assert len(losses) == 2 and all(9 < loss < 13 for loss in losses)
    assert (out / "export" / "model.safetensors").stat().st_size > 119_026_120 * 4
