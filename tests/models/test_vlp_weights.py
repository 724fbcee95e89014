"""BERT's weights and published checkpoints' under Unified VLP's names; nothing is dropped in silence."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from cromic_ds.errors import UserError
from cromic_ds.models.common.weights import renamed
from cromic_ds.models.vlp.config import VLPConfig
from cromic_ds.models.vlp.model import VLPModel
from cromic_ds.models.vlp.weights import RULES, load_pretrained_vlp, load_vlp_state_dict

SIZES = {"vocab_size": 120, "d_model": 32, "encoder_layers": 2, "n_heads": 4, "ffn": 48, "max_positions": 40}
RESNET = {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"}
BERT = BertConfig(
    vocab_size=120,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
)
HEAD = ["head.bias", "head.dense.bias", "head.dense.weight", "head.norm.bias", "head.norm.weight"]


def vlp(**overrides) -> VLPModel:
    return VLPModel(VLPConfig(**SIZES, image_size=96, image_ffn=40, resnet=RESNET, **overrides)).eval()


def bert(kind: type, seed: int = 0):
    torch.manual_seed(seed)
    model = kind(BERT).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def text_names(model: VLPModel) -> set[str]:
    return {name for name in model.state_dict() if not name.startswith(("image_encoder.", "answer_head."))}


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_folders_of_transformers(tmp_path, kind, safe):
    theirs, ours = bert(kind), vlp()
    if safe:
        theirs.save_pretrained(tmp_path)
    else:
        theirs.config.save_pretrained(tmp_path)
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    before = ours.head.dense.weight.clone()
    report = load_pretrained_vlp(ours, tmp_path)
    head = set(HEAD) if kind is BertModel else set()
    assert set(report.taken) == text_names(ours) - head
    assert {name for name in report.missing if not name.startswith("image_encoder.")} == head
    assert not report.mismatched
    assert torch.equal(ours.head.dense.weight, before) == (kind is BertModel)

    # the same states: [CLS] post [SEP] comment in the segments 0 and 1 of that BERT
    base = getattr(theirs, "bert", theirs)
    ids, mask = torch.tensor([[101, 7, 8, 102, 9, 103]]), torch.ones(1, 6, 6).tril().bool()
    mask[:, :, :4] = True
    states = base(ids, token_type_ids=torch.tensor([[0] * 4 + [1] * 2]), attention_mask=mask[:, None])[0]
    logits = ours(decoder_input_ids=torch.tensor([[101, 9]]), input_ids=ids[:, :4]).logits[0, 0]
    expected = torch.nn.functional.linear(ours.head(states[0, -1]), *ours.output_layer())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    if kind is BertForMaskedLM:
        torch.testing.assert_close(logits, theirs.cls(states)[0, -1], rtol=0, atol=1e-5)


def published_names() -> dict[str, torch.Tensor]:
    """A state dict in the published layout: six segments, regions of 40 inner features, an answer head."""
    weights = {n: t for n, t in bert(BertForMaskedLM, 1).state_dict().items() if n != "cls.predictions.decoder.bias"}
    draw = torch.Generator().manual_seed(2)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    weights["bert.embeddings.token_type_embeddings.weight"] = new(6, 32)
    weights |= {"bert.pooler.dense.weight": new(32, 32), "bert.pooler.dense.bias": new(32)}
    weights |= {"vis_embed.0.weight": new(40, 16), "vis_embed.0.bias": new(40)}
    weights |= {"vis_embed.2.weight": new(32, 40), "vis_embed.2.bias": new(32)}
    weights |= {"vis_pe_embed.0.weight": new(32, 1607), "vis_pe_embed.0.bias": new(32)}
    weights |= {"ans_classifier.0.weight": new(64, 32), "ans_classifier.0.bias": new(64)}
    weights |= {"ans_classifier.2.weight": new(7, 64), "ans_classifier.2.bias": new(7)}
    return weights


def test_published_layout(tmp_path):
    weights, ours = published_names(), vlp(n_answers=7)
    torch.save({f"module.{name}": t for name, t in weights.items()}, tmp_path / "model.30.bin")
    report = load_pretrained_vlp(ours, tmp_path / "model.30.bin")
    assert report.extra == [
        f"module.{part}.{kind}" for part in ("bert.pooler.dense", "vis_pe_embed.0") for kind in ("weight", "bias")
    ]
    assert not report.mismatched
    heads = {f"answer_head.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    mlp = {f"image_encoder.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert set(report.taken) == text_names(ours) | heads | mlp
    assert torch.equal(ours.type_embedding.weight, weights["bert.embeddings.token_type_embeddings.weight"])
    assert torch.equal(ours.image_encoder.mlp[2].weight, weights["vis_embed.2.weight"])
    assert torch.equal(ours.answer_head[2].bias, weights["ans_classifier.2.bias"])
    layer, kv = "bert.encoder.layer.1.attention.self.", ours.encoder_layers[1].attention.kv
    assert torch.equal(kv.weight, torch.cat([weights[layer + "key.weight"], weights[layer + "value.weight"]]))
    assert torch.equal(ours.position_embedding.weight, weights["bert.embeddings.position_embeddings.weight"][:40])


def test_sizes_that_differ_are_named():
    weights = published_names()
    weights["vis_embed.0.weight"] = torch.zeros(48, 16)
    del weights["bert.encoder.layer.0.attention.self.key.bias"]
    weights["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    report = load_vlp_state_dict(vlp(), weights)
    assert report.mismatched == ["image_encoder.mlp.0.weight: (48, 16) there, (40, 16) here"]
    assert "encoder_layers.0.attention.kv.bias" in report.missing
    assert {"bert.encoder.layer.0.attention.self.value.bias", "cls.seq_relationship.weight"} <= set(report.extra)
    assert {"answer_head.0.weight", "answer_head.2.bias"} <= set(report.extra)  # this model has none


def test_segments_of_a_plain_bert_serve_every_mode():
    theirs, ours = bert(BertModel), vlp()
    load_vlp_state_dict(ours, theirs.state_dict())
    two = theirs.embeddings.token_type_embeddings.weight
    assert torch.equal(ours.type_embedding.weight, two[[0, 1, 0, 0, 0, 1]])


def test_old_names_and_projections_by_task():
    weights, ours = published_names(), vlp()
    norm = "bert.embeddings.LayerNorm."
    weights[norm + "gamma"], weights[norm + "beta"] = weights.pop(norm + "weight"), weights.pop(norm + "bias")
    blocks = torch.arange(4.0).repeat_interleave(32)
    of_task = {"dense.weight": blocks[:, None].expand(-1, 32), "dense.bias": blocks, "LayerNorm.bias": blocks}
    for name, tensor in of_task.items():
        weights[f"cls.predictions.transform.{name}"] = tensor
    load_vlp_state_dict(ours, weights)
    assert torch.equal(ours.embedding_norm.weight, weights[norm + "gamma"])
    assert torch.equal(ours.embedding_norm.bias, weights[norm + "beta"])
    assert (ours.head.dense.weight == 3).all()
    assert (ours.head.norm.bias == 3).all()


def test_an_output_layer_that_is_not_tied_is_reported():
    weights = published_names()
    weights["cls.predictions.decoder.weight"] = torch.zeros(120, 32)
    assert "cls.predictions.decoder.weight" in load_vlp_state_dict(vlp(), weights).extra


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("bert.embeddings.word_embeddings.weight", "token_embedding.weight"),
        ("embeddings.LayerNorm.bias", "embedding_norm.bias"),
        ("bert.encoder.layer.11.attention.self.query.bias", "encoder_layers.11.attention.q.bias"),
        ("encoder.layer.3.attention.output.LayerNorm.weight", "encoder_layers.3.norm1.weight"),
        ("bert.encoder.layer.0.intermediate.dense.weight", "encoder_layers.0.feed_forward.up.weight"),
        ("bert.encoder.layer.0.output.dense.bias", "encoder_layers.0.feed_forward.down.bias"),
        ("cls.predictions.bias", "head.bias"),
        ("vis_pe_embed.0.weight", None),
        ("optimizer.state", None),
    ],
)
def test_names(foreign, ours):
    assert renamed(foreign, RULES) == ours


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no tensor fits a Unified VLP of these sizes; the weights contain: fc"):
        load_vlp_state_dict(vlp(), {"fc": torch.zeros(1)})
    (tmp_path / "text.bin").write_text("no weights")
    with pytest.raises(UserError, match="not a file of plain tensors"):
        load_pretrained_vlp(vlp(), tmp_path / "text.bin")
    torch.save({"step": 3}, tmp_path / "state.bin")
    with pytest.raises(UserError, match="holds no state dict"):
        load_pretrained_vlp(vlp(), tmp_path / "state.bin")
    with pytest.raises(UserError, match="cannot be read as a BERT"):
        load_pretrained_vlp(vlp(), tmp_path / "nowhere")
