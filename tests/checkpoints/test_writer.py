"""Checkpoints are complete or absent, and contain the state of their step although training continues while they are written.
test_pretrain_real.py and test_world_size_real.py save with real ranks."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cromic_ds.checkpoints import writer
from cromic_ds.checkpoints.reader import damage
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.checkpoints.writer import CheckpointWriter
from cromic_ds.errors import UserError
from cromic_ds.files import DigestedFile, file_digest
from cromic_ds.run_folder import RunFolder
from cromic_ds.tracking import Tracker


class Records(Tracker):
    def __init__(self):
        self.values = []

    def log(self, step, values, kind):
        self.values.append((step, values, kind))


class DeepSpeed:
    """The part of a DeepSpeed engine that `CheckpointWriter` calls."""

    def __init__(self, weight: torch.Tensor):
        self.weight = weight

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        assert not save_latest
        self.checkpoint_engine.save({"weight": self.weight}, f"{folder}/{tag}/shard.pt")


@pytest.fixture
def folder(tmp_path) -> Path:
    return RunFolder(tmp_path).checkpoints


@pytest.fixture(params=[True, False], ids=["background", "waiting"])
def background(request) -> bool:
    return request.param


@pytest.fixture
def make(folder, monkeypatch):
    """make(background): a `CheckpointWriter` of one weight, which is its `.weight`."""
    monkeypatch.setattr(writer.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(writer.dist, "get_world_size", lambda: 1)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))

    def build(background: bool = True, keep_last: int = 2) -> CheckpointWriter:
        weight = torch.arange(1000.0)
        engine = SimpleNamespace(model=model, stage=0, deepspeed=DeepSpeed(weight))
        checkpoints = CheckpointWriter(
            engine, RunFolder(folder.parent), keep_last, background=background, tracker=Records()
        )
        checkpoints.weight = weight
        return checkpoints

    return build


@pytest.fixture
def slow_disk(monkeypatch):
    """An event; nothing is written until it is set."""
    ready, write = threading.Event(), DigestedFile.write

    def wait(self, content):
        ready.wait(20)
        return write(self, content)

    monkeypatch.setattr(DigestedFile, "write", wait)
    yield ready
    ready.set()


def weight_of(folder: Path, step: int) -> torch.Tensor:
    return torch.load(folder / f"step-{step:08d}" / "shard.pt", mmap=True)["weight"]


def test_what_is_saved_is_whole_and_reported(make, background, folder):
    checkpoints = make(background)
    checkpoints.begin(TrainState(step=3, best_step=3))
    checkpoints.finish()
    checkpoint = folder / "step-00000003"
    assert damage(checkpoint) is None
    files = sorted(p.name for p in checkpoint.iterdir())
    assert files == ["buffers.safetensors", "manifest.json", "shard.pt", "state.json"]
    assert torch.equal(weight_of(folder, 3), checkpoints.weight)
    assert [(folder / name).read_text() for name in ("latest", "best")] == [checkpoint.name] * 2
    ((step, values, kind),) = checkpoints.tracker.values
    assert (step, kind) == (3, "checkpoint")
    assert values["bytes"] == sum(p.stat().st_size for p in checkpoint.iterdir() if p.name != "manifest.json")
    assert not list(folder.glob(".writing-*"))


def test_training_continues_without_changing_what_is_written(make, folder, slow_disk):
    checkpoints = make()
    before = checkpoints.weight.clone()
    checkpoints.begin(TrainState(step=1))
    assert checkpoints.writing
    checkpoints.weight.zero_()
    assert RunFolder(folder.parent).step_names() == []
    slow_disk.set()
    checkpoints.finish()
    assert torch.equal(weight_of(folder, 1), before)


def test_the_next_one_waits_for_the_one_before_and_uses_its_memory(make, folder, slow_disk):
    checkpoints, progress = make(), []
    checkpoints.begin(TrainState(step=1))
    threading.Timer(0.3, slow_disk.set).start()
    checkpoints.weight = checkpoints.engine.deepspeed.weight = torch.ones(10)
    checkpoints.begin(TrainState(step=2), lambda: progress.append(RunFolder(folder.parent).step_names()))
    assert RunFolder(folder.parent).step_names()[0] == "step-00000001"
    assert progress
    checkpoints.finish()
    assert torch.equal(weight_of(folder, 2), torch.ones(10))
    assert damage(folder / "step-00000002") is None
    assert checkpoints.tracker.values[0][1]["seconds_blocked"] >= 0.2


def test_old_ones_go_and_a_step_that_is_there_is_not_written_again(make, background, folder):
    checkpoints = make(background, keep_last=1)
    for step in (1, 2, 2):
        checkpoints.begin(TrainState(step=step))
    checkpoints.finish()
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000002"]
    assert len(checkpoints.tracker.values) == 2


def test_what_cannot_be_written_ends_the_run_and_leaves_the_one_before(make, background, folder, monkeypatch):
    checkpoints = make(background)
    checkpoints.begin(TrainState(step=1))
    checkpoints.finish()
    write = DigestedFile.write

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DigestedFile, "write", full)
    with pytest.raises(
        UserError, match=r"checkpoint of step 2 could not be written to .* \(host .*No space left on device"
    ):
        checkpoints.begin(TrainState(step=2))
        checkpoints.finish()
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000001"]
    monkeypatch.setattr(DigestedFile, "write", write)
    checkpoints.begin(TrainState(step=2))
    checkpoints.finish()
    assert damage(folder / "step-00000002") is None


def test_a_file_that_is_hashed_as_it_is_written_has_the_digest_of_the_file(tmp_path):
    file = DigestedFile(tmp_path / "f")
    for piece in (b"a", memoryview(b"bc")):
        file.write(piece)
    file.close()
    assert file.digest() == file_digest(tmp_path / "f")
