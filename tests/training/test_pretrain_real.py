"""The training script in real processes: splits of the global batch, kills, signals, bad records, export."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.launching import QUIET, Job, last_step, losses, records, run_to_end
from safetensors.torch import load_file

from cromic_ds.models.registry import MODELS

pytestmark = pytest.mark.slow


def arguments(store: Path, out: Path, *more: str) -> list[str]:
    small = ["--model.preset", "tiny", "--optim.lr", "1e-3", "--loop.global_batch", "8", "--precision", "fp32"]
    short = ["--eval.generate", "4", "--eval.micro_batch", "4"]
    return ["--data.path", str(store), "--out", str(out), *small, *short, *QUIET, *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def relative_difference(a: dict, b: dict) -> float:
    """Norm of the difference of all weights together, relative to their norm."""
    squares = [((a[k] - b[k]).square().sum(), b[k].square().sum()) for k in b if b[k].is_floating_point()]
    return float((sum(d for d, _ in squares) / sum(n for _, n in squares)).sqrt())


SIXTEEN = ["--loop.steps", "16", "--checkpoint.every", "4"]  # 2.4 epochs
others_long = ["cmt", *(pytest.param(model, marks=pytest.mark.long) for model in MODELS if model != "cmt")]
every_model = pytest.mark.parametrize("model", others_long)


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory) -> Callable[[str], Path]:
    """runs("cmt"): `SIXTEEN` steps without an interruption, on two ranks under ZeRO-3."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run(model: str) -> Path:
        run_to_end(folder / model, arguments(store, folder / model / "run", "--model.name", model, *SIXTEEN), ranks=2)
        return folder / model / "run"

    return run


@pytest.fixture(scope="module")
def uninterrupted(runs) -> Path:
    return runs("cmt")


@pytest.mark.parametrize(
    ("ds_config", "model"),
    [
        ("zero3", "cmt"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [("zero0", "cmt"), ("zero2", "cmt")]
            + [("zero3", model) for model in ("vlp", "vilt", "vilt --model.decoder prefix")]
        ),
    ],
)
def test_the_split_of_the_global_batch_changes_neither_loss_nor_weights(store, tmp_path, ds_config, model):
    splits = {"1x8": (1, 8), "2x4": (2, 4), "2x2x2": (2, 2)}
    for name, (ranks, micro) in splits.items():
        # A small rate: Adam's first steps turn the last digits of near-zero gradients into whole steps of single weights.
        more = ["--loop.steps", "3", "--loop.micro_batch", str(micro), "--ds_config", ds_config, "--optim.lr", "1e-5"]
        more += ["--model.name", *model.split()]
        run_to_end(tmp_path / name, arguments(store, tmp_path / name / "run", *more), ranks)
    reference = tmp_path / "1x8" / "run"
    for name in ("2x4", "2x2x2"):
        run = tmp_path / name / "run"
        assert losses(run) == pytest.approx(losses(reference), rel=2e-6)
        norms = [r["grad_norm"] for r in records(run)]
        assert norms == pytest.approx([r["grad_norm"] for r in records(reference)], rel=1e-5)
        assert relative_difference(weights(run), weights(reference)) < 1e-4


@every_model
def test_a_run_killed_twice_repeats_the_uninterrupted_one_bit_for_bit(store, tmp_path, runs, model):
    out = tmp_path / "run"
    command = arguments(store, out, "--model.name", model, *SIXTEEN)
    for step in (9, 14):  # both beyond the first epoch, and between two checkpoints
        job = Job(tmp_path, command, ranks=2)
        job.wait_for_step(out, step)
        job.kill()
    run_to_end(tmp_path, command, ranks=2)
    assert [r["step"] for r in records(out)] == list(range(1, 17))
    assert losses(out) == losses(runs(model))
    assert all(torch.equal(value, weights(runs(model))[name]) for name, value in weights(out).items())


def test_early_stopping_keeps_the_best_checkpoint_and_finishes_the_run(store, tmp_path):
    out = tmp_path / "run"
    often = ["--loop.steps", "30", "--loop.patience", "2", "--eval.every", "1", "--eval.generate", "0"]
    ruinous = ["--optim.lr", "0.03", "--optim.schedule", "constant", "--optim.warmup_fraction", "0"]
    command = arguments(store, out, *often, *ruinous, "--ds_config", "zero0", "--checkpoint.in_background", "false")
    for _ in range(2):  # the second time there is nothing left to do
        run_to_end(tmp_path, command)
        perplexities = [record["perplexity"] for record in records(out, "eval")]
        best = 1 + perplexities.index(min(perplexities))
        assert last_step(out) == len(perplexities) == best + 2 < 30
        assert (out / "checkpoints" / "best").read_text() == f"step-{best:08d}"
        assert "stopped: no better perplexity in 2 evaluations" in (out / "log.txt").read_text()
        assert (out / "finished.json").exists()
    # Without `in_background`, training waits for the writing of each checkpoint.
    saves = records(out, "checkpoint")
    assert len(saves) >= 2
    assert all(record["seconds_blocked"] >= record["seconds_writing"] for record in saves)


def test_the_weights_of_a_backbone_have_a_learning_rate_of_their_own(store, tmp_path, uninterrupted):
    out = tmp_path / "run"
    deeper = ["--model.init_from", str(uninterrupted / "export"), "--model.decoder_layers", "3"]
    short = ["--loop.steps", "2", "--eval.generate", "0", "--ds_config", "zero0", "--optim.backbone_lr", "1e-12"]
    run_to_end(tmp_path, arguments(store, out, *deeper, *short))
    before, after = weights(uninterrupted), weights(out)
    learned = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert all((after[name] - before[name]).abs().max() < 1e-10 for name in learned)
    new_biases = [after[name] for name in after.keys() - before.keys() if name.endswith("bias")]
    assert new_biases
    assert all(bias.any() for bias in new_biases)  # they start at 0


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(store, tmp_path, uninterrupted):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    shard = next((out / "checkpoints" / "step-00000016").glob("*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    shard.write_bytes(content)
    command = arguments(store, out, *SIXTEEN)
    run_to_end(tmp_path, command, ranks=2)
    log = (out / "log.txt").read_text()
    assert f"{shard.name} does not match its checksum" in log
    assert "12 of 16 done" in log
    assert losses(out) == losses(uninterrupted)


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.long) for name in ("SIGUSR1", "SIGINT"))]
)
def test_a_signal_to_one_rank_saves_on_all_and_exits_0(store, tmp_path, name):
    out = tmp_path / "run"
    job = Job(tmp_path, arguments(store, out, *["--loop.steps", "500", "--checkpoint.every", "null"]), ranks=2)
    job.wait_for_step(out, 2)
    job.processes[1].send_signal(getattr(signal, name))
    assert job.wait(60) == [0, 0], job.output()
    stopped = records(out)[-1]["step"]
    assert (out / "checkpoints" / "latest").read_text() == f"step-{stopped:08d}"
    assert "the same command resumes here" in (out / "log.txt").read_text()


def test_a_second_sigint_exits_at_once(store, tmp_path):
    out = tmp_path / "run"
    job = Job(tmp_path, arguments(store, out, "--loop.steps", "5000"), ranks=1)
    job.wait_for_step(out, 1)
    os.kill(job.processes[0].pid, signal.SIGSTOP)  # so that no step ends between the two signals
    for _ in range(2):
        job.processes[0].send_signal(signal.SIGINT)
        os.kill(job.processes[0].pid, signal.SIGCONT)
        time.sleep(0.001)
    assert job.wait(30)[0] in (130, 0)


@every_model
def test_the_export_gives_the_evaluation_of_the_training_engine(store, runs, tmp_path, model):
    from cromic_ds.cli.commands import main

    run = runs(model)
    result = tmp_path / "result.json"
    how = ["--precision", "fp32", "--beams", "1", "--meteor", "false", "--batch", "4"]
    main(["evaluate", str(run / "export"), "--data", str(store), "--out", str(result), *how])
    scores = json.loads(result.read_text())["scores"]
    engine = records(run, "eval")[-1]
    assert scores["loss"] == pytest.approx(engine["loss"], rel=1e-5)
    assert json.loads(result.read_text())["counts"]["targets"] == engine["targets"]


def test_every_validation_example_counts_once_on_any_number_of_ranks(store, uninterrupted):
    evaluation = records(uninterrupted, "eval")[-1]
    assert evaluation["posts"] == 10  # not a multiple of 2 ranks × 4 posts
    assert evaluation["n_items"] == 4


def test_other_settings_on_the_same_run_folder_are_refused(store, uninterrupted, tmp_path):
    job = Job(tmp_path, arguments(store, uninterrupted, "--seed", "1"), ranks=1)
    assert job.wait() == [2]
    assert "seed = 0, and this command says 1" in job.output()


@pytest.mark.long
@pytest.mark.parametrize(
    ("ds_config", "setting"), [("zero0", "--loop.compile"), ("zero3", "--loop.activation_checkpointing")]
)
def test_compiling_and_recomputing_change_no_loss(store, tmp_path, ds_config, setting):
    how = ["--loop.steps", "2", "--eval.generate", "0", "--ds_config", ds_config]
    for name, more in (("plain", []), ("changed", [setting, "true", "--tracking.wandb", "offline"])):
        run_to_end(tmp_path / name, [*arguments(store, tmp_path / name / "run", *how), *more])
    assert losses(tmp_path / "changed" / "run") == pytest.approx(losses(tmp_path / "plain" / "run"), rel=1e-5)
    assert (tmp_path / "changed" / "run" / "wandb").is_dir()
