"""Unified VLP's `generate`: [MASK] after [MASK] with a cache, against computing everything again."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from helpers.paths import REPOSITORY
from torch import Tensor

from cromic_ds.models.vlp.config import VLPConfig
from cromic_ds.models.vlp.model import VLPModel

SMALLEST = {
    **{"vocab_size": 120, "d_model": 32, "encoder_layers": 3, "n_heads": 4, "ffn": 48, "dropout": 0.0},
    **{"max_positions": 128, "image_size": 96, "image_ffn": 40, "initializer_range": 0.3},
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8, 8, 16], "depths": [1] * 4, "layer_type": "basic"},
}
both_objectives = pytest.mark.parametrize("objective", ["masked", "causal"])


def vlp(seed: int = 0, **overrides) -> VLPModel:
    torch.manual_seed(seed)
    return VLPModel(VLPConfig(**{**SMALLEST, **overrides})).eval()


def inputs(batch) -> dict[str, Tensor]:
    return {"input_ids": batch.post_ids, "pixel_values": batch.images}


def varied(model: VLPModel, seed: int = 3) -> VLPModel:
    """A model that does not say the same token again and again."""
    torch.nn.init.normal_(model.head.dense.weight, generator=torch.Generator().manual_seed(seed))
    return model


def test_greedy_is_that_of_bert_on_the_whole_sequence(make_batch):
    path = REPOSITORY / "benchmarks" / "plain_vlp.py"
    spec = importlib.util.spec_from_file_location("benchmarks_plain_vlp_generation", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    ours, batch = vlp(), make_batch()
    torch.manual_seed(1)
    theirs = module.PlainVLP(ours.config).eval()
    torch.nn.init.normal_(theirs.cls.predictions.transform.dense.weight)
    module.same_weights(theirs, ours)
    tokens = ours.generate(**inputs(batch), do_sample=False, min_new_tokens=12, max_new_tokens=12)
    assert torch.equal(tokens, theirs.greedy(batch, ours.config, 12))
    assert len(tokens.unique()) > 5


@both_objectives
@pytest.mark.parametrize("beams", [1, 5])
def test_with_cache_is_without(make_batch, objective, beams):
    for seed in range(3):
        model, batch = varied(vlp(seed, objective=objective), seed), make_batch()
        search = {"num_beams": beams, "num_return_sequences": beams // 2 + 1, "max_new_tokens": 12, "do_sample": False}
        cached = model.generate(**inputs(batch), **search)
        assert torch.equal(cached, model.generate(**inputs(batch), **search, use_cache=False))
        assert len(cached.unique()) > 3
        n = search["num_return_sequences"]
        for post in range(3):  # and no post reads another's source
            alone = {name: value[post : post + 1] for name, value in inputs(batch).items()}
            one = model.generate(**alone, **search)
            for row, expected in zip(one, cached[n * post : n * post + n]):
                assert torch.equal(row[row != 0], expected[expected != 0])


@both_objectives
def test_sampling_and_a_given_memory(make_batch, objective):
    model, batch = varied(vlp(objective=objective)), make_batch()
    length = {"min_new_tokens": 8, "max_new_tokens": 8}
    greedy = model.generate(**inputs(batch), **length, do_sample=False)
    assert torch.equal(model.generate(**inputs(batch), **length, do_sample=True, top_k=1), greedy)
    memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
    assert torch.equal(model.generate(encoder_outputs=memory, **length, do_sample=False), greedy)

    def sampled(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.generate(**inputs(batch), **length, do_sample=True, top_k=20, num_return_sequences=4)

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))
    assert sampled(1).shape == (12, 9)


def test_the_post_is_encoded_once(make_batch):
    model, batch = vlp(), make_batch()
    calls, tokens = [], []
    model.image_encoder.register_forward_hook(lambda *_: calls.append("image"))
    model.encoder_layers[0].register_forward_pre_hook(lambda _, given: tokens.append(len(given[0])))
    model.generate(**inputs(batch), num_beams=4, max_new_tokens=6, min_new_tokens=6)
    assert calls == ["image"]
    source = int(batch.post_lengths.sum()) + 3 * 10
    assert tokens == [source, 12] + 5 * [24]  # then [MASK] alone, then the newest token and [MASK], for 12 beams


def test_bf16_decoding_stays_close(make_batch):
    model, batch = vlp(), make_batch()
    memory = model.encode(batch.post_ids, None, batch.images)
    ids = torch.tensor([[101, 30, 31]]).repeat(3, 1)
    exact = model(decoder_input_ids=ids, encoder_outputs=memory).logits
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        memory = model.encode(batch.post_ids, None, batch.images)
        rough = model(decoder_input_ids=ids, encoder_outputs=memory).logits
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.08 * exact.abs().max().item())
