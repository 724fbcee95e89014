"""Checkpoints of the published code (`benchmarks/published.py`); most tests use one of a thousandth of its size."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.paths import BENCHMARKS
from torch import nn

from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.tokenizer import train_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.inference.exports import load_export
from cromic_ds.inference.import_published import import_published
from cromic_ds.inference.settings import ImportSettings
from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.common.weights import read_state_dict

SMALL = {
    **{"d_model": 32, "n_heads": 4, "ffn": 48, "encoder_layers": 2, "decoder_layers": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 32, 2048], "depths": [1, 2, 1], "layer_type": "bottleneck"},
}


@pytest.fixture
def published() -> ModuleType:
    """`benchmarks/published.py`, a module of this test's own."""
    spec = importlib.util.spec_from_file_location("published_for_import", BENCHMARKS / "published.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(published, tokenizer, monkeypatch) -> nn.Module:
    """The published model with the sizes of SMALL, which preset `paper` then has as well."""
    monkeypatch.setitem(CMTConfig.presets, "paper", SMALL)
    sizes = {"VOCABULARY": len(tokenizer), "WIDTH": 32, "HEADS": 4, "FFN": 48, "LAYERS": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(published, name, value)

    def resnet() -> nn.Sequential:
        block = published.Bottleneck
        stem = [nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        stages = [[block(8, 4, 1)], [block(16, 8, 2), block(32, 8, 1)], [block(32, 512, 2)]]
        return nn.Sequential(*stem, *(nn.Sequential(*stage) for stage in stages))

    monkeypatch.setattr(published, "resnet50", resnet)
    torch.manual_seed(0)
    model = published.Published().eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


@pytest.fixture
def import_(tmp_path, store):
    """Return import_(content): the export folder of what torch.save wrote."""

    def run(content, **settings) -> Path:
        torch.save(content, tmp_path / "published.pt")
        files = {"state_dict": tmp_path / "published.pt", "tokenizer": store / "tokenizer", "out": tmp_path / "export"}
        import_published(ImportSettings(**{**{k: str(v) for k, v in files.items()}, **settings}))
        return tmp_path / "export"

    return run


@pytest.mark.parametrize("form", ["bare", "module.", "within"])
def test_the_export_computes_what_the_published_model_does(published, small, import_, store, capsys, form):
    weights = small.state_dict()
    if form == "module.":
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    if form == "within":
        weights = {"epoch": 4, "optimizer": {"state": {}}, "model": weights}
    model, tokenizer, facts = load_export(import_(weights))
    assert "0 missing\n0 extra\n0 mismatched\n" in capsys.readouterr().out
    assert (facts["max_post_tokens"], facts["max_comment_tokens"]) == (40, 25)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (model.config.image_norm, model.config.image_positions) == ("l2", False)

    data = DataSettings(workers=0)
    batch = next(
        eval_batches(open_dataset(store, "val"), data, image_size=224, micro_batch=3, rank=0, world_size=1, limit=3)
    )
    model.cpu()
    with torch.no_grad():
        ours, theirs = model(batch) / batch.n_targets, small(*published.padded_inputs(batch))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_an_extra_name_is_listed_and_left_out(small, import_, capsys):
    out = import_({**small.state_dict(), "scheduler.step": torch.zeros(1)})
    assert "1 extra:\n  scheduler.step\n" in capsys.readouterr().out
    assert (out / "model.safetensors").is_file()


def test_an_answer_head_is_taken_along(small, import_):
    modules = {"0": nn.Linear(32, 64), "1": nn.LayerNorm(64), "3": nn.Linear(64, 7)}
    head = {f"vqa_classifier.{name}": value for name, value in nn.ModuleDict(modules).state_dict().items()}
    model, *_ = load_export(import_({**small.state_dict(), **head}))
    assert model.config.n_answers == 7
    assert torch.equal(model.answer_head[3].weight.cpu(), head["vqa_classifier.3.weight"])


def test_a_missing_name_is_listed_and_refused(small, import_, tmp_path, capsys):
    weights = small.state_dict()
    del weights["decoder.layers.1.linear1.weight"]
    with pytest.raises(UserError, match=r"incomplete \(listed above\); nothing was written"):
        import_(weights)
    assert "1 missing:\n  decoder_layers.1.feed_forward.up.weight\n" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["published.pt"]


def test_a_shape_that_does_not_fit_is_refused(small, import_, tmp_path, capsys):
    with pytest.raises(UserError, match="incomplete"):
        import_({**small.state_dict(), "generator.bias": torch.zeros(3)})
    assert "1 mismatched:\n  generator.bias: (3,) there, (" in capsys.readouterr().out


def test_another_vocabulary_is_refused(small, import_, tmp_path):
    other = train_tokenizer(iter(["不同的词"]), 30)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=rf"other has {len(other)} tokens and the checkpoint \d+: name the tokenizer"):
        import_(small.state_dict(), tokenizer=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"tokenizer .* cannot be loaded"):
        import_(small.state_dict(), tokenizer=str(tmp_path / "missing"))


def test_an_unknown_mode_is_refused(small, import_):
    with pytest.raises(UserError, match=r"model.mode: 'vt'.*one of t\+v, v, t"):
        import_(small.state_dict(), mode="vt")


def test_other_weights_are_refused(import_):
    with pytest.raises(UserError, match=r"no published CroMIC-CMT checkpoint .*among 2 names, such as weight, bias"):
        import_(nn.Linear(2, 2).state_dict())


@pytest.mark.parametrize("content", [{}, [torch.zeros(1)], {"a": 1}, {"a": {"b": 1}}, torch.zeros(2)])
def test_what_holds_no_weights_is_refused(import_, content):
    with pytest.raises(UserError, match="holds no state dict"):
        import_(content)


def test_what_is_no_file_of_tensors_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing.pt: No such file or directory"):
        read_state_dict(tmp_path / "missing.pt")
    for name, content in {"text.pt": b"hello", "empty.pt": b"", "zip.pt": b"PK\x03\x04" + b"\0" * 50}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not a file of plain tensors"):
            read_state_dict(tmp_path / name)


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match=r"trap.pt: not a file of plain tensors"):
        read_state_dict(tmp_path / "trap.pt")
    assert not (tmp_path / "ran").exists()


def test_an_export_is_not_written_over_something(small, import_, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(UserError, match=r"is not an empty folder: name another one with --out"):
            import_(small.state_dict(), out=str(out))


@pytest.mark.slow
def test_the_real_size(published, import_, shared):
    """119,026,120 parameters under the published names, with the published vocabulary."""
    torch.manual_seed(0)
    theirs = published.Published()
    weights = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    model, *_ = load_export(import_(weights, tokenizer=str(shared / "seed_data" / "vocab.txt")))
    assert sum(p.numel() for p in model.parameters()) == 119_026_120
    assert torch.equal(model.generator.weight.cpu(), theirs.generator.weight)
