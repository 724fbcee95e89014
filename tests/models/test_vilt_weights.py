"""Checkpoints of transformers' ViLT: what fits is taken and computes the same, what does not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, ViltConfig, ViltForMaskedLM, ViltForQuestionAnswering, ViltModel

from cromic_ds.errors import UserError
from cromic_ds.models.vilt.config import ViLTConfig
from cromic_ds.models.vilt.model import ViLTModel as OurViLT
from cromic_ds.models.vilt.weights import load_pretrained_vilt

SIZES = {
    **{"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"image_size": 96, "max_position_embeddings": 12},
}


def ours(**overrides) -> OurViLT:
    sizes = {
        **{"vocab_size": 120, "d_model": 32, "encoder_layers": 2, "n_heads": 4, "ffn": 48, "dropout": 0.0},
        **{"position_grid": 3, "image_size": 96, "text_positions": 12, "decoder": "prefix"},
    }
    torch.manual_seed(1)
    return OurViLT(ViLTConfig(**{**sizes, **overrides})).eval()


def saved(kind: type, folder: Path, **sizes):
    """A model of transformers with weights far from zero, and its folder."""
    torch.manual_seed(0)
    model = kind(ViltConfig(**{**SIZES, **sizes})).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.tensor([[101, 7, 8, 9, 102], [101, 11, 12, 102, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
        "pixel_values": torch.randn(2, 3, 96, 96, generator=draw),
    }


@torch.no_grad()
def test_a_vilt_model(tmp_path, inputs):
    theirs, model = saved(ViltModel, tmp_path), ours()
    report = load_pretrained_vilt(model, tmp_path)
    assert not report.extra and not report.mismatched
    assert {name.split(".")[0] for name in report.missing} == {"masked_word_head", "match_head"}
    hidden, *_ = model.encode_source(**inputs)
    torch.testing.assert_close(model.pooler(hidden), theirs(**inputs).pooler_output, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_masked_language_model(tmp_path, inputs):
    theirs, model = saved(ViltForMaskedLM, tmp_path), ours()
    report = load_pretrained_vilt(model, tmp_path)
    assert report.missing == ["match_head.weight", "match_head.bias"]
    assert not report.extra and not report.mismatched
    hidden, *_ = model.encode_source(**inputs)
    logits = torch.nn.functional.linear(model.masked_word_head(hidden[:, :5]), *model.word_output())
    torch.testing.assert_close(logits, theirs(**inputs).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_question_answering(tmp_path, make_batch):
    theirs, model = saved(ViltForQuestionAnswering, tmp_path, num_labels=7), ours(n_answers=7)
    report = load_pretrained_vilt(model, tmp_path)
    assert {name.split(".")[0] for name in report.missing} == {"masked_word_head", "match_head"}
    batch = make_batch()
    pixels = (batch.images.float() / 255 - 0.5) / 0.5
    logits = theirs(batch.post_ids, attention_mask=model.post_mask(batch).long(), pixel_values=pixels).logits
    torch.testing.assert_close(model.answer_logits(batch), logits, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_named(tmp_path):
    theirs = saved(ViltForMaskedLM, tmp_path, vocab_size=130, max_position_embeddings=8, modality_type_vocab_size=3)
    model = ours()
    before = model.text_embeddings.position_embeddings.weight.detach().clone()
    report = load_pretrained_vilt(model, tmp_path)
    assert report.mismatched == [
        "text_embeddings.word_embeddings.weight: (130, 32) there, (120, 32) here",
        "masked_word_head.bias: (130,) there, (120,) here",
        "text_embeddings.position_embeddings.weight: the first 8 rows of 8 there, 12 here",
        "type_embedding.weight: the first 2 rows of 3 there, 2 here",
    ]
    theirs = theirs.vilt.embeddings
    positions = model.text_embeddings.position_embeddings.weight
    assert torch.equal(positions[:8], theirs.text_embeddings.position_embeddings.weight)
    assert torch.equal(positions[8:], before[8:])
    assert torch.equal(model.type_embedding.weight, theirs.token_type_embeddings.weight[:2])


def test_foreign_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read as a ViLT"):
        load_pretrained_vilt(ours(), tmp_path / "nothing")
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no ViLT of transformers but a model of type 'bert'"):
        load_pretrained_vilt(ours(), tmp_path)
