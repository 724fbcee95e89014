"""Every kind of damage to a checkpoint is found. test_pretrain_real.py saves and resumes with real ranks."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cromic_ds.checkpoints.reader import damage, newest_good, restore_buffers
from cromic_ds.checkpoints.writer import retire_old
from cromic_ds.errors import UserError
from cromic_ds.files import file_digest, write_atomically
from cromic_ds.run_folder import MANIFEST, RunFolder, step_name


@pytest.fixture
def run(tmp_path) -> RunFolder:
    (tmp_path / "checkpoints").mkdir()
    return RunFolder(tmp_path)


def make_checkpoint(folder: Path, step: int) -> Path:
    """Write files like DeepSpeed's, with their manifest."""
    checkpoint = folder / step_name(step)
    (checkpoint / "sub").mkdir(parents=True)
    (checkpoint / "shard.pt").write_bytes(bytes(range(256)) * 40)
    (checkpoint / "sub" / "state.json").write_text(json.dumps({"step": step}))
    files = ["shard.pt", "sub/state.json"]
    (checkpoint / MANIFEST).write_text(json.dumps({name: file_digest(checkpoint / name) for name in files}))
    return checkpoint


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_the_digest_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    # `printf abc | b2sum -l 128`
    assert file_digest(tmp_path / "f") == {"bytes": 3, "blake2b": "cf4ab791c62b8d2b2109c90275287816"}


def test_a_whole_checkpoint_has_no_damage(tmp_path):
    assert damage(make_checkpoint(tmp_path, 5)) is None


def test_every_kind_of_damage_is_named(tmp_path):
    good = make_checkpoint(tmp_path, 5)

    def broken(change) -> str:
        copy = tmp_path / "copy"
        shutil.copytree(good, copy)
        change(copy)
        problem = damage(copy)
        shutil.rmtree(copy)
        return problem

    assert broken(lambda c: (c / "shard.pt").unlink()) == "shard.pt is missing"
    assert broken(lambda c: (c / "sub" / "state.json").unlink()) == "sub/state.json is missing"
    truncated = broken(lambda c: (c / "shard.pt").write_bytes((c / "shard.pt").read_bytes()[:-1]))
    assert truncated == "shard.pt has 10239 bytes instead of 10240"
    assert broken(lambda c: flip_bit(c / "shard.pt", 5000)) == "shard.pt does not match its checksum"
    assert broken(lambda c: (c / MANIFEST).unlink()).startswith("manifest.json: [Errno 2] No such file")
    assert broken(lambda c: (c / MANIFEST).write_text('{"shard.pt": ')).startswith("manifest.json: Expecting value")
    assert broken(lambda c: (c / MANIFEST).write_bytes(b"\xff")).startswith("manifest.json: 'utf-8' codec")


def test_no_single_flipped_bit_passes(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 5)
    for name in (MANIFEST, "sub/state.json"):
        content = (checkpoint / name).read_bytes()
        for position in range(len(content)):
            flip_bit(checkpoint / name, position)
            still_the_same = name == MANIFEST and same_json(content, (checkpoint / name).read_bytes())
            assert damage(checkpoint) or still_the_same, (name, position)
            (checkpoint / name).write_bytes(content)


def same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def test_a_rank_can_check_its_share_of_the_files(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 5)
    flip_bit(checkpoint / "shard.pt", 0)
    assert damage(checkpoint, ["sub/state.json"]) is None
    assert damage(checkpoint, ["shard.pt"]) == "shard.pt does not match its checksum"


def test_the_newest_undamaged_checkpoint_is_found_and_the_others_reported(run, caplog):
    for step in (10, 20, 30):
        make_checkpoint(run.checkpoints, step)
    (run.checkpoints / "damaged-step-00000030").mkdir()  # of an earlier damage
    assert newest_good(run).name == "step-00000030"
    flip_bit(run.checkpoints / "step-00000030" / "shard.pt", 7)
    (run.checkpoints / "step-00000020" / MANIFEST).unlink()
    with caplog.at_level(logging.WARNING):
        assert newest_good(run).name == "step-00000010"
    messages = [record.getMessage() for record in caplog.records]
    assert (
        "step-00000030 is damaged (shard.pt does not match its checksum); set aside, trying the one before"
        in messages[0]
    )
    assert "step-00000020 is damaged (manifest.json: " in messages[1]
    assert run.step_names() == ["step-00000010"]  # the steps after it can be saved again
    assert sorted(p.name for p in run.checkpoints.glob("damaged-*")) == [
        "damaged-step-00000020",
        "damaged-step-00000030",
    ]
    assert (run.checkpoints / "damaged-step-00000030" / "shard.pt").is_file()
    assert newest_good(RunFolder("nowhere")) is None


def test_without_a_whole_checkpoint_the_run_does_not_start_over(run):
    for step in (10, 20):
        (make_checkpoint(run.checkpoints, step) / "shard.pt").unlink()
    for _ in range(2):  # the second time they are set aside already
        with pytest.raises(
            UserError, match=r"no checkpoint in .* is whole \(damaged-step-00000010, damaged-step-00000020\)"
        ):
            newest_good(run)
    (run.checkpoints / "damaged-step-00000010").rename(run.checkpoints / "step-00000010")
    (run.checkpoints / "step-00000010" / "shard.pt").write_bytes(bytes(range(256)) * 40)
    assert newest_good(run).name == "step-00000010"


def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    checkpoint = make_checkpoint(tmp_path, 5)

    def broken_disk(path: Path) -> dict:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("cromic_ds.checkpoints.reader.file_digest", broken_disk)
    assert damage(checkpoint) == "shard.pt: [Errno 5] Input/output error"


def test_a_left_over_folder_is_no_checkpoint(run):
    make_checkpoint(run.checkpoints, 10)
    for left_over in (".writing-step-00000020", ".writing-old-step-00000005", "step-00000020.tmp", "step-3"):
        shutil.copytree(run.checkpoints / "step-00000010", run.checkpoints / left_over)
    assert run.step_names() == ["step-00000010"]
    assert newest_good(run).name == "step-00000010"


def test_the_last_and_the_best_are_kept(run):
    for step in (100, 200, 300, 400, 500):
        make_checkpoint(run.checkpoints, step)
    write_atomically(run.checkpoints / "best", "step-00000200")
    old = retire_old(run, 2)
    assert [p.name for p in old] == [".writing-old-step-00000100", ".writing-old-step-00000300"]
    assert sorted(p.name for p in run.checkpoints.glob("[!.]*")) == ["best", *map(step_name, (200, 400, 500))]
    retire_old(run, 0)  # never the newest one
    assert run.step_names() == [step_name(200), step_name(500)]


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path, monkeypatch):
    target = tmp_path / "latest"
    write_atomically(target, "step-00000001")
    write_atomically(target, "step-00000002")
    assert target.read_text() == "step-00000002"
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]

    def killed(self, other):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, "step-00000003")
    assert target.read_text() == "step-00000002"


def test_buffers_are_restored(tmp_path):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    saved = {
        "0.running_mean": torch.tensor([1.0, 2.0]),
        "0.running_var": torch.tensor([3.0, 4.0]),
        "0.num_batches_tracked": torch.tensor(9),
    }
    save_file(saved, tmp_path / "buffers.safetensors")
    restore_buffers(model, tmp_path)
    assert all(torch.equal(dict(model.named_buffers())[name], value) for name, value in saved.items())
