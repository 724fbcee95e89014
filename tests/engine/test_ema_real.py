"""Averaged weights in real processes: the average of every step's weights, at every ZeRO stage, resumed bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.launching import QUIET, records, run_to_end
from safetensors.torch import load_file

from cromic_ds.engine.zero import full_state_dict
from cromic_ds.run_folder import EMA_FILE

pytestmark = pytest.mark.slow
DECAY = 0.6


def arguments(store: Path, out: Path, ds_config: str, *more: str) -> list[str]:
    return [
        *["--data.path", str(store), "--out", str(out), "--ds_config", ds_config, "--model.preset", "tiny"],
        *["--loop.ema_decay", str(DECAY), "--loop.steps", "4", "--loop.global_batch", "4", "--optim.lr", "1e-3"],
        *[
            "--checkpoint.every",
            "1",
            "--checkpoint.keep_last",
            "9",
            "--precision",
            "fp32",
            "--eval.generate",
            "0",
            *QUIET,
            *more,
        ],
    ]


def own_weights(checkpoint: Path, aside: Path) -> dict[str, torch.Tensor]:
    """Return the weights that training continues with, without the averages."""
    copy = aside / checkpoint.name
    shutil.copytree(checkpoint, copy)
    (copy / EMA_FILE).unlink()
    return full_state_dict(copy)


@pytest.mark.parametrize(
    ("ds_config", "ranks"), [("zero3", 2), pytest.param("zero2", 2, marks=pytest.mark.long), ("zero0", 1)]
)
def test_the_export_is_the_average_of_every_steps_weights(store, tmp_path, ds_config, ranks):
    out = tmp_path / "run"
    run_to_end(tmp_path, arguments(store, out, ds_config), ranks)
    checkpoints = sorted((out / "checkpoints").glob("step-*"))
    averages = [load_file(checkpoint / EMA_FILE) for checkpoint in checkpoints]
    weights = [own_weights(checkpoint, tmp_path / "own") for checkpoint in checkpoints]
    for before, after, own in zip(averages, averages[1:], weights[1:]):
        for name, average in after.items():
            expected = DECAY * before[name] + (1 - DECAY) * own[name]
            torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
    exported = load_file(out / "export" / "model.safetensors")
    assert all(torch.equal(exported[name], average) for name, average in averages[-1].items())
    assert not torch.equal(exported["generator.weight"], weights[-1]["generator.weight"])


@pytest.mark.long
def test_a_resumed_average_is_the_uninterrupted_one_bit_for_bit(store, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_to_end(tmp_path / "w", arguments(store, whole, "zero3"), 2)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "export")
    for step in (3, 4):
        shutil.rmtree(parts / "checkpoints" / f"step-{step:08d}")
    run_to_end(tmp_path / "p", arguments(store, parts, "zero3"), 2)
    a, b = (load_file(run / "export" / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
    evaluations = [json.dumps({k: r[k] for k in ("step", "loss", "perplexity")}) for r in records(parts, "eval")]
    assert evaluations[-1] == json.dumps({k: records(whole, "eval")[-1][k] for k in ("step", "loss", "perplexity")})
