"""Exporting a checkpoint of stage 0. test_pretrain_real.py exports the ZeRO shards of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, GenerationConfig

from cromic_ds.checkpoints.export import ExportSettings, export
from cromic_ds.checkpoints.reader import find_checkpoint
from cromic_ds.data.loader import DataSettings
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.files import file_digest, write_atomically
from cromic_ds.inference.exports import load_export, write_export
from cromic_ds.run_folder import BUFFERS, MANIFEST, STATE, RunFolder
from cromic_ds.training.startup import write_model_folder


def save_checkpoint(run: Path, model, step: int) -> Path:
    """Write a checkpoint as a run at stage 0 does."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    torch.save({"module": dict(model.named_parameters())}, folder / "mp_rank_00_model_states.pt")
    save_file(dict(model.named_buffers()), folder / BUFFERS)
    (folder / STATE).write_text(json.dumps({"step": step}))
    (folder / MANIFEST).write_text(json.dumps({p.name: file_digest(p) for p in sorted(folder.iterdir())}))
    write_atomically(folder.parent / "latest", folder.name)
    return folder


def shifted(model, by: float):
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(by)
    return model


@pytest.fixture
def run(tmp_path, smallest, tokenizer) -> Path:
    """A run folder with checkpoints of steps 4 (the best) and 8."""
    folder = tmp_path / "run"
    write_model_folder(folder, smallest(), tokenizer, DataSettings(max_post_tokens=30), "comments", None)
    save_checkpoint(folder, shifted(smallest(), 0.25), 4)
    save_checkpoint(folder, shifted(smallest(), 0.5), 8)
    write_atomically(folder / "checkpoints" / "best", "step-00000004")
    return folder


@pytest.mark.parametrize(("name", "by"), [("latest", 0.5), ("best", 0.25), ("step-00000004", 0.25)])
def test_the_chosen_checkpoint_is_exported(run, tmp_path, smallest, tokenizer, capsys, name, by):
    out = tmp_path / "out"
    export(ExportSettings(run=str(run), out=str(out), checkpoint=name))
    assert capsys.readouterr().out == f"exported to {out}\n"
    expected = shifted(smallest(), by).state_dict()
    model, own_tokenizer, facts = load_export(out)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert model.training is False
    assert tokenizer_fingerprint(own_tokenizer) == tokenizer_fingerprint(tokenizer) == facts["tokenizer_fingerprint"]
    assert (facts["max_post_tokens"], facts["max_comment_tokens"]) == (30, 25)
    assert facts["step"] == (8 if by == 0.5 else 4)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_export_stands_alone_for_transformers(run, tmp_path, smallest):
    """Logits and generation settings need no training code."""
    export(ExportSettings(run=str(run), out=str(tmp_path / "out")))
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    inputs = {
        "input_ids": torch.tensor([[2, 7, 8, 3]]),
        "pixel_values": torch.zeros(1, 3, 96, 96, dtype=torch.uint8),
        "decoder_input_ids": torch.tensor([[2, 9]]),
    }
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, shifted(smallest(), 0.5)(**inputs).logits)
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert (generation.num_beams, generation.eos_token_id) == (5, tokenizer.sep_token_id)


def test_an_export_replaces_an_older_one(run, tmp_path):
    out = tmp_path / "out"
    export(ExportSettings(run=str(run), out=str(out), checkpoint="best"))
    (out / "evaluation-val.json").write_text("of the older weights")
    export(ExportSettings(run=str(run), out=str(out)))
    assert json.loads((out / "cromic_ds.json").read_text())["step"] == 8
    assert not (out / "evaluation-val.json").exists()


def test_a_failure_leaves_the_older_export(smallest, tokenizer, tmp_path, monkeypatch):
    out = write_export(smallest(), tokenizer, {"step": 1}, tmp_path / "out")
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_export(smallest(), tokenizer, {"step": 2}, out)
    assert json.loads((out / "cromic_ds.json").read_text()) == {"step": 1}
    monkeypatch.undo()
    assert load_export(write_export(smallest(), tokenizer, {"step": 3}, out))[2] == {"step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_no_checkpoint(run, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no checkpoint in it; is it a run folder, and has the run saved yet"):
        find_checkpoint(RunFolder(tmp_path / "nowhere"), "latest")
    with pytest.raises(UserError, match=r"no checkpoint 'step-00000005'; there are step-00000004, step-00000008"):
        find_checkpoint(RunFolder(run), "step-00000005")
    (run / "checkpoints" / "best").unlink()
    with pytest.raises(UserError, match=r"no 'best' checkpoint; there are step-00000004, step-00000008"):
        find_checkpoint(RunFolder(run), "best")


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    shard = run / "checkpoints" / "step-00000008" / "mp_rank_00_model_states.pt"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"step-00000008 is damaged: mp_rank_00_model_states.pt has \d+ bytes instead"):
        export(ExportSettings(run=str(run), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_or_file_is_not_overwritten(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(UserError, match=r"exists and is no export: name another folder with --out"):
            export(ExportSettings(run=str(run), out=str(out)))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
