"""Foreign weights under our names; nothing is dropped in silence."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import BENCHMARKS

from cromic_ds.errors import UserError
from cromic_ds.models.cmt.weights import cmt_name, load_cmt_state_dict, translate_cmt
from cromic_ds.models.registry import build_config, build_model


@pytest.fixture(scope="module")
def baseline():
    """`benchmarks/published.py`: the published model, with the published names."""
    spec = importlib.util.spec_from_file_location("benchmarks_published", BENCHMARKS / "published.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_published_name_has_its_place(baseline):
    with torch.device("meta"):
        ours, theirs = build_model(build_config("cmt", "paper")), baseline.Published()
    weights, extra = translate_cmt(theirs.state_dict())
    own = ours.state_dict()
    assert not extra
    assert weights.keys() == own.keys()
    assert all(weights[name].shape == own[name].shape for name in own)
    assert sum(p.numel() for p in theirs.parameters()) == 119_026_120


def test_the_reference_lists_the_same_names(shared: Path, baseline):
    shapes = json.loads((shared / "golden" / "reference_state_dict.json").read_text())
    with torch.device("meta"):
        theirs = {name: list(t.shape) for name, t in baseline.Published().state_dict().items()}
    left = {name: shape for name, shape in theirs.items() if not name.endswith("num_batches_tracked")}
    head = {name for name in shapes if name.startswith("vqa_classifier.")}
    assert {name: shape for name, shape in shapes.items() if name not in head} == left
    assert {cmt_name(name) for name in head} == {
        f"answer_head.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("encoder.layers.3.self_attn.in_proj_weight", "encoder_layers.3.attention.qkv.weight"),
        ("decoder.layers.0.linear2.bias", "decoder_layers.0.feed_forward.down.bias"),
        ("decoder.layers.5.norm3.weight", "decoder_layers.5.norm3.weight"),
        ("encoder.norm.bias", "encoder_norm.bias"),
        (
            "image_encoder.backbone.5.2.conv3.weight",
            "image_encoder.backbone.encoder.stages.1.layers.2.layer.2.convolution.weight",
        ),
        (
            "image_encoder.backbone.4.0.downsample.1.running_var",
            "image_encoder.backbone.encoder.stages.0.layers.0.shortcut.normalization.running_var",
        ),
        ("optimizer.state", None),
    ],
)
def test_names(published, ours):
    assert cmt_name(published) == ours


def test_report_names_what_did_not_fit(smallest):
    model = smallest()
    weights = {
        "module.generator.bias": torch.full((120,), 2.0),
        "module.decoder.layers.1.multihead_attn.in_proj_bias": torch.arange(96.0),
        "token_embed.embedding.weight": torch.zeros(7, 32),
        "module.lr_scheduler": torch.zeros(1),
        "encoder.layers.9.linear1.bias": torch.zeros(48),
    }
    report = load_cmt_state_dict(model, weights)
    q, kv = model.decoder_layers[1].cross_attention.q, model.source_projections[1].kv
    assert (model.generator.bias == 2).all()
    assert torch.equal(torch.cat([q.bias, kv.bias]), torch.arange(96.0))
    assert sorted(report.extra) == ["encoder_layers.9.feed_forward.up.bias", "module.lr_scheduler"]
    assert report.mismatched == ["token_embedding.weight: (7, 32) there, (120, 32) here"]
    assert "generator.weight" in report.missing
    assert "generator.bias" not in report.missing
    assert "1 mismatched:\n  token_embedding.weight" in str(report)


def test_foreign_files_are_refused(smallest):
    with pytest.raises(UserError, match="no tensor fits the published CroMIC-CMT model; the weights contain: fc"):
        load_cmt_state_dict(smallest(), {"fc": torch.zeros(1)})


@pytest.mark.long
def test_the_baseline_of_the_benchmarks_computes_the_same(shared: Path, baseline):
    """What the benchmarks compare with is the same function: loss, greedy tokens and beams on two seed posts."""
    from cromic_ds.data.loader import DataSettings, eval_batches
    from cromic_ds.data.open_dataset import open_dataset

    settings = DataSettings(workers=0, eval_comments_per_post=None)
    dataset = open_dataset(shared / "seed_data", "train")
    batch = next(eval_batches(dataset, settings, image_size=224, micro_batch=2, rank=0, world_size=1))
    torch.manual_seed(0)
    theirs, ours = baseline.Published().eval(), build_model(build_config("cmt", "paper")).eval()
    load_cmt_state_dict(ours, theirs.state_dict())
    inputs = baseline.padded_inputs(batch)
    with torch.no_grad():
        assert (ours(batch) / batch.n_targets).item() == pytest.approx(theirs(*inputs).item(), rel=1e-5)
    forced = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
    given = {"input_ids": batch.post_ids, "pixel_values": batch.images}
    posts, images, *_ = inputs
    assert torch.equal(ours.generate(**given, **forced), theirs.greedy(posts, images, 8))
    assert torch.equal(ours.generate(**given, **forced, num_beams=5), theirs.beam(posts, images, 8, 5))
