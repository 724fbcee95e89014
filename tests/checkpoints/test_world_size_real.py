"""Runs that resume on other numbers of ranks or at other ZeRO stages, compared with an uninterrupted run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.launching import QUIET, Job, records, run_to_end
from safetensors.torch import load_file

from cromic_ds.files import file_digest
from cromic_ds.run_folder import EMA_FILE, MANIFEST

pytestmark = pytest.mark.slow
WORKER = "tests/helpers/world_size_worker.py"
POSTS, BATCH, STEPS, EVERY = 32, 8, 8, 2  # two epochs of four steps; a change of ranks or stage after every second
SYNC = ["--model.batch_norm", "sync"]  # with an accumulation of 1 it does not see how the batch is split


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """32 training posts, so that epochs end with a step."""
    from cromic_ds.world.sample import sample
    from cromic_ds.world.settings import SampleSettings

    out = tmp_path_factory.mktemp("world") / "store"
    sample(SampleSettings(out=str(out), posts=POSTS + 8, seed=3, val_fraction=8 / (POSTS + 8)))
    return out


@pytest.fixture
def resume(store, tmp_path, monkeypatch):
    """resume(ranks, "zero2", stop_after, …): start or resume tmp_path/run; the worker writes its notes to tmp_path/notes."""
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    run = tmp_path / "run"

    def start(ranks: int, ds_config: str, stop_after: int = 0, *more: str) -> None:
        monkeypatch.setenv("STOP_AFTER", str(stop_after))
        monkeypatch.setenv("SPOIL", "yes" if (run / "checkpoints").exists() else "")
        run_to_end(tmp_path, arguments(store, run, ds_config, *more), ranks, script=WORKER, timeout=400)

    return start


def arguments(store: Path, run: Path, ds_config: str, *more: str) -> list[str]:
    """Return the arguments of a run.

    At a higher rate, Adam's first steps would turn rounding differences of near-zero gradients into whole steps of weights.
    """
    return [
        *["--data.path", str(store), "--out", str(run), "--ds_config", ds_config, "--precision", "fp32", *QUIET],
        *["--model.preset", "tiny", "--loop.global_batch", str(BATCH)],
        *["--loop.steps", str(STEPS), "--checkpoint.every", str(EVERY), "--checkpoint.keep_last", "9"],
        *["--loop.ema_decay", "0.6", "--optim.lr", "3e-6", "--eval.generate", "0", "--eval.micro_batch", "4", *more],
    ]


def ids_by_step(notes: Path) -> dict[int, list[str]]:
    steps: dict[int, list[str]] = {}
    for file in notes.glob("*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(line["step"], []).extend(line["ids"])
    return steps


def assert_loaded_as_saved(notes: Path, step: int) -> None:
    """Compare weights, moments, Adam's step, buffers and averages bit for bit."""
    saved, loaded = (torch.load(notes / f"{what}-{step}" / "state.pt") for what in ("saved", "loaded"))
    assert saved.keys() == loaded.keys()
    assert [name for name, value in saved.items() if not torch.equal(value, loaded[name])] == []
    saved, loaded = (load_file(notes / f"{what}-{step}" / EMA_FILE) for what in ("saved", "loaded"))
    assert [name for name, value in saved.items() if not torch.equal(value, loaded[name])] == []


def assert_same_losses(run: Path, reference: Path, steps: range) -> None:
    ours, expected = ([r["loss"] for r in records(of) if r["step"] in steps] for of in (run, reference))
    print([f"{a / b - 1:.0e}" for a, b in zip(ours, expected)])
    assert len(ours) == len(steps)
    assert ours == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory) -> Path:
    """An uninterrupted run on two ranks under ZeRO-3."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_to_end(folder, arguments(store, folder / "run", "zero3", *SYNC), ranks=2)
    return folder / "run"


@pytest.mark.long
def test_ranks_1_2_4_2_give_the_uninterrupted_run_and_every_example_once(uninterrupted, resume, tmp_path):
    run, notes = tmp_path / "run", tmp_path / "notes"
    for ranks, stop_after in ((1, 2), (2, 4), (4, 6), (2, 0)):
        resume(ranks, "zero3", stop_after, *SYNC)
    for step in (2, 4, 6):
        assert_loaded_as_saved(notes, step)
    assert_same_losses(run, uninterrupted, range(1, STEPS + 1))
    for file in ("buffers.safetensors", EMA_FILE):
        ours, expected = (load_file(of / "checkpoints" / "step-00000008" / file) for of in (run, uninterrupted))
        difference = sum((ours[name].double() - value.double()).square().sum() for name, value in expected.items())
        assert difference < 1e-10 * sum(value.double().square().sum() for value in expected.values())
    steps = ids_by_step(notes)
    assert sorted(steps) == list(range(1, STEPS + 1))
    for epoch in (range(1, 5), range(5, 9)):
        ids = [id for step in epoch for id in steps[step]]
        assert len(ids) == len(set(ids)) == POSTS
    log = (run / "log.txt").read_text()
    assert "was written by 2 ranks at ZeRO stage 3, this run has 4 ranks at ZeRO stage 3: converting" in log
    left = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert [name for name in left if not name.startswith("step-")] == ["best", "latest"]


def test_stages_2_3_2_give_the_uninterrupted_run(uninterrupted, resume, tmp_path):
    for ds_config, stop_after in (("zero2", 2), ("zero3", 4), ("zero2", 0)):
        resume(2, ds_config, stop_after, *SYNC)
    for step in (2, 4):
        assert_loaded_as_saved(tmp_path / "notes", step)
    assert_same_losses(tmp_path / "run", uninterrupted, range(1, STEPS + 1))


def test_what_cannot_be_converted_ends_with_2_and_leaves_nothing(uninterrupted, store, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / ".writing-universal-step-00000008" / "zero").mkdir(parents=True)  # as a kill leaves it
    newest = checkpoints / "step-00000008"
    shard = next(newest.glob("zero_pp_rank_1_*optim_states.pt"))
    shard.write_bytes(b"no shard")
    manifest = json.loads((newest / MANIFEST).read_text())
    (newest / MANIFEST).write_text(json.dumps({**manifest, shard.name: file_digest(shard)}))
    how = arguments(store, tmp_path / "run", "zero3", *SYNC, "--loop.steps", "20")
    job = Job(tmp_path, how, ranks=1)
    assert job.wait() == [2], job.output()
    message = (
        f"{newest} could not be converted for 1 rank at ZeRO stage 3 \\(shards: .*\\): start the run with 2 ranks at"
    )
    assert re.search(message, job.output()), job.output()
    assert not list(checkpoints.glob(".writing-*"))


@pytest.mark.long
@pytest.mark.parametrize("model", ["vlp --model.freeze_image_encoder true", "vilt"])
def test_frozen_and_tied_weights_groups_and_stages_0_and_1(store, resume, tmp_path, model):
    """Parameter groups with weight decay and a learning rate for each layer, through all pairs of stages not tested above."""
    more = ["--model.name", *model.split()]
    more += ["--optim.weight_decay", "0.1", "--optim.layer_decay", "0.8", "--loop.steps", "9"]
    alone = tmp_path / "alone"
    run_to_end(alone, arguments(store, alone / "run", "zero3", *more), ranks=1)
    changes = ((1, "zero0", 1), (2, "zero1", 2), (1, "zero0", 3), (2, "zero3", 4), (2, "zero1", 5), (1, "zero2", 6))
    for ranks, ds_config, stop_after in (*changes, (1, "zero0", 7), (2, "zero0", 8), (2, "zero3", 0)):
        resume(ranks, ds_config, stop_after, *more)
    for step in range(1, 9):
        assert_loaded_as_saved(tmp_path / "notes", step)
    assert_same_losses(tmp_path / "run", alone / "run", range(1, 10))
