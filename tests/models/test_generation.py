"""`generate` in every mode of search, against decoding without a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cromic_ds.models.common.kernels import FEW_QUERIES, install, select


def inputs(batch) -> dict[str, Tensor]:
    return {"input_ids": batch.post_ids, "pixel_values": batch.images}


@torch.no_grad()
def greedy_by_hand(model, batch, steps: int) -> Tensor:
    """The whole prefix again at each step, one post at a time, no cache."""
    rows = []
    for post in range(batch.n_posts):
        length = batch.post_lengths[post]
        memory = model.encode(batch.post_ids[post : post + 1, :length], None, batch.images[post : post + 1])
        ids = torch.tensor([[101]])
        for _ in range(steps):
            logits = model(decoder_input_ids=ids, encoder_outputs=memory).logits[0, -1]
            logits[102] = -torch.inf
            ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
        rows.append(ids)
    return torch.cat(rows)


def test_greedy_with_cache_is_greedy_without(smallest, make_batch):
    model, batch = smallest(), make_batch()
    torch.nn.init.normal_(model.generator.weight, generator=torch.Generator().manual_seed(3))  # else it repeats itself
    tokens = model.generate(**inputs(batch), do_sample=False, num_beams=1, min_new_tokens=12, max_new_tokens=12)
    assert torch.equal(tokens, greedy_by_hand(model, batch, 12))
    assert len(tokens.unique()) > 5


@pytest.mark.parametrize("seed", range(3))
def test_beam_search_with_cache_is_beam_search_without(smallest, make_batch, seed):
    model, batch = smallest(), make_batch()
    torch.nn.init.normal_(model.generator.weight, generator=torch.Generator().manual_seed(seed))
    search = {"num_beams": 5, "num_return_sequences": 3, "max_new_tokens": 12, "do_sample": False}
    cached = model.generate(**inputs(batch), **search)
    plain = model.generate(**inputs(batch), **search, use_cache=False)
    assert torch.equal(cached, plain)
    assert cached.shape[0] == 9
    for post in range(3):  # and no post reads another's memory
        alone = {name: value[post : post + 1] for name, value in inputs(batch).items()}
        one = model.generate(**alone, **search)
        for row, expected in zip(one, cached[3 * post : 3 * post + 3]):
            assert torch.equal(row[row != 0], expected[expected != 0])


def test_sampling(smallest, make_batch):
    model, batch = smallest(), make_batch()
    common = {**inputs(batch), "min_new_tokens": 8, "max_new_tokens": 8}
    greedy = model.generate(**common, do_sample=False)
    assert torch.equal(model.generate(**common, do_sample=True, top_k=1), greedy)
    assert torch.equal(model.generate(**common, do_sample=True, top_k=0, top_p=1e-6), greedy)

    def sampled(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.generate(**common, do_sample=True, top_k=20, top_p=0.9, num_return_sequences=4)

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))
    assert sampled(1).shape == (12, 9)


def test_the_post_is_encoded_once(smallest, make_batch):
    model, batch = smallest(), make_batch()
    calls = []
    model.image_encoder.register_forward_hook(lambda *_: calls.append("image"))
    for projection in model.source_projections:
        projection.register_forward_hook(lambda *_: calls.append("kv"))
    model.generate(**inputs(batch), num_beams=4, max_new_tokens=6, min_new_tokens=6)
    assert calls == ["image", "kv", "kv"]  # two decoder layers


def test_image_alone_and_text_alone(smallest, make_batch):
    model, batch = smallest(), make_batch()
    for given in (inputs(batch).items(), [("input_ids", batch.post_ids)], [("pixel_values", batch.images)]):
        tokens = model.generate(**dict(given), do_sample=False, max_new_tokens=4, min_new_tokens=4)
        assert tokens.shape == (3, 5)


def test_plain_products_for_few_queries_are_the_fused_attention():
    """In bf16 on a CPU a decoding step leaves torch's fused kernel."""
    attention = select(torch.device("cpu")).attention
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 16, generator=draw) for n in (FEW_QUERIES, 20, 20))
    mask = torch.rand(2, 1, 1, 20, generator=draw) > 0.3
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    short = attention(*(x.bfloat16() for x in (q, k, v)), attn_mask=mask)
    torch.testing.assert_close(short.float(), exact, rtol=2e-2, atol=2e-2)
    assert torch.equal(attention(q, k, v, attn_mask=mask), exact)


def test_bf16_decoding_stays_close(smallest, make_batch):
    model, batch = smallest(), make_batch()
    install(model, select(torch.device("cpu")))
    memory = model.encode(batch.post_ids, None, batch.images)
    ids = torch.tensor([[101, 30, 31]]).repeat(3, 1)
    exact = model(decoder_input_ids=ids, encoder_outputs=memory).logits
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        memory = model.encode(batch.post_ids, None, batch.images)
        rough = model(decoder_input_ids=ids, encoder_outputs=memory).logits
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.05 * exact.abs().max().item())
