"""ViLT: the encoder is transformers', sharing a post among its comments is exact, losses and masks are as defined."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.paths import BENCHMARKS
from torch import Tensor, nn
from transformers import ViltModel
from transformers.models.vilt.modeling_vilt import ViltEncoder

from cromic_ds.batch import Batch
from cromic_ds.data.collate import LoadedExample, SpecialTokens, blank_batch, collate
from cromic_ds.errors import UserError
from cromic_ds.models.common.kernels import IGNORE
from cromic_ds.models.registry import build_config
from cromic_ds.models.vilt.config import ViLTConfig
from cromic_ds.models.vilt.layers import normalize_symmetric
from cromic_ds.models.vilt.model import ViLTModel
from cromic_ds.models.vilt.weights import load_vilt_state_dict, vilt_name

SPECIAL = SpecialTokens(pad=0, cls=101, sep=102)
SMALLEST = {
    **{"vocab_size": 120, "d_model": 32, "encoder_layers": 2, "n_heads": 4, "ffn": 48, "dropout": 0.0},
    **{"image_size": 96, "position_grid": 2, "text_positions": 40, "embedding_std": 0.3},
    **{"decoder_layers": 2, "decoder_heads": 4, "decoder_ffn": 48},
}
both = pytest.mark.parametrize("decoder", ["cmt", "prefix"])


def vilt(**overrides) -> ViLTModel:
    """In evaluation mode, the same weights each time, with biases and norms that are not the initial ones."""
    torch.manual_seed(0)
    model = ViLTModel(ViLTConfig(**{**SMALLEST, **overrides})).eval()
    for p in model.parameters():
        if p.dim() == 1:
            p.data.add_(0.1 * torch.randn_like(p))
    return model


def drawn(model: ViLTModel, batch: Batch, seed: int = 0) -> Batch:
    """As before a training step, with so much drawn that each kind occurs."""
    model.config.mask_rate, model.config.swap_rate = 0.5, 0.7
    return model.draw(batch, seed)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerances) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=lambda m, name=name: f"{name}: {m}", **tolerances)


# ---- the encoder is the library's


@pytest.fixture
def in_order(monkeypatch):
    """transformers' ViLT draws the order of its patches; here it is left as it is."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, n, replacement=False: torch.arange(n))


@torch.no_grad()
@pytest.mark.parametrize("grid", [2, 3, 5], ids=lambda n: f"positions of {n}x{n} for 3x3 patches")
def test_encoder_is_transformers_vilt(make_batch, in_order, grid):
    model, batch = vilt(position_grid=grid, itm_weight=1.0), make_batch()
    theirs = ViltModel(model.config.library()).eval()
    for p in theirs.parameters():
        p.add_(0.1 * torch.randn_like(p))
    report = load_vilt_state_dict(model, theirs.state_dict())
    assert not report.extra and not report.mismatched
    pixels = normalize_symmetric(batch.images)
    assert model.post_mask(batch)[0].all() and not model.post_mask(batch)[1].all()  # without and with text padding
    for n in (1, 3):
        ids, mask = batch.post_ids[:n], model.post_mask(batch)[:n]
        expected = theirs(ids, attention_mask=mask.long(), pixel_values=pixels[:n])
        hidden, visible, _ = model.encode_source(ids, mask, batch.images[:n])
        torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.pooler(hidden), expected.pooler_output, rtol=0, atol=1e-5)
        assert torch.equal(visible[:, 0, 0], torch.cat([mask, torch.ones(n, 10, dtype=torch.bool)], dim=1))


def test_pixels_and_positions():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    torch.testing.assert_close(normalize_symmetric(images), (images / 255 - 0.5) / 0.5)
    encoder = vilt(position_grid=5).image_encoder
    learned = encoder.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (5, 5))
    for size in ((3, 3), (7, 7), (4, 9), (1, 1)):
        expected = F.interpolate(learned, size=size, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder.positions(*size)[:, 1:], expected)
        assert torch.equal(encoder.positions(*size)[:, :1], encoder.position_embeddings[:, :1])
    assert encoder.positions(5, 5) is encoder.position_embeddings


# ---- comments share their post's encoding, and it is exact


@pytest.fixture(scope="module")
def plain():
    """`benchmarks/plain_vilt.py`"""
    spec = importlib.util.spec_from_file_location("benchmarks_plain_vilt", BENCHMARKS / "plain_vilt.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_decoder_on_a_shared_source_is_the_plain_way(make_batch, plain):
    """With masked words and wrong images: the loss, and every gradient that has one name on both sides."""
    model, batch = vilt(decoder="cmt"), make_batch()
    theirs = plain.PlainViLT(model.config).eval()
    plain.same_weights(theirs, model)
    batch = drawn(model, batch)
    assert len(batch.drawn["swapped"]) and len(batch.drawn["masked_rows"]) > 3
    ours, expected = model(batch), theirs.loss(batch)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    found = {vilt_name(name): g for name, g in gradients(theirs, expected).items()}
    here = gradients(model, ours)
    common = here.keys() & found.keys()
    assert len(common) == 51  # all of the encoder, the pooler and the masked-word head
    assert_same({n: here[n] for n in common}, {n: found[n] for n in common}, rtol=1e-4, atol=1e-4)


def plain_prefix(model: ViLTModel, batch: Batch, post: int, comment: Tensor) -> Tensor:
    """[post ‖ image ‖ comment] as one sequence through transformers' encoder: logits (T, V) of the comment's tokens."""
    text = batch.post_ids[post : post + 1, : batch.post_lengths[post]]
    places = (torch.arange(text.shape[1])[None], torch.arange(len(comment))[None])
    parts = [model.embed_text(text, places[0], 0)] if "t" in model.config.mode else []
    if "v" in model.config.mode:
        parts.append(model.image_encoder(batch.images[post : post + 1]) + model.type_embedding.weight[1])
    n_source = sum(part.shape[1] for part in parts)
    x = torch.cat([*parts, model.embed_text(comment[None], places[1], 1)], dim=1)
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    seen[:n_source, :n_source] = True
    encoder = ViltEncoder(model.config.library()).eval()
    weights = {f"layer.{n}": p for n, p in model.encoder_layers.named_parameters()}
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None]
    states = torch.func.functional_call(encoder, weights, (x, mask)).last_hidden_state[0, n_source:]
    hidden = model.masked_word_head(model.encoder_norm(states))
    return F.linear(hidden, model.text_embeddings.word_embeddings.weight, model.masked_word_head.bias)


@pytest.mark.parametrize("mode", ["t+v", "t", "v"])
def test_prefix_on_a_shared_source_is_the_plain_way(make_batch, mode):
    model, batch = vilt(decoder="prefix", mode=mode), make_batch()
    expected = torch.zeros(())
    for comment, post in zip(batch.comment_ids, batch.owner.tolist()):
        comment = comment[comment != 0]
        logits = plain_prefix(model, batch, post, comment[:-1])
        expected = expected + F.cross_entropy(logits, comment[1:], reduction="sum")
    loss = model(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert_same(gradients(model, loss), gradients(model, expected), rtol=1e-4, atol=1e-4)


@both
def test_a_comment_token_reads_its_post_and_its_own_past(make_batch, decoder):
    """Gradients of one hidden state reach the real tokens of its post, its image, and its own comment up to itself; those of
    the encoded posts reach no comment at all."""
    model, batch = vilt(decoder=decoder), make_batch()
    texts, images = [], []
    model.get_input_embeddings().register_forward_hook(lambda *call: texts.append(call[2]))
    model.image_encoder.register_forward_hook(lambda *call: images.append(call[2]))
    memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
    hidden, _ = model.decode_comments(batch, memory)
    posts, comments = texts
    length = batch.comment_ids.shape[1] - 1
    comment, time = batch.rows // length, batch.rows % length
    direction = torch.linspace(-1, 1, hidden.shape[1])  # a layer norm's plain sum has no gradient
    for i in range(len(hidden)):
        grads = torch.autograd.grad(hidden[i] @ direction, [comments, posts, images[0]], retain_graph=True)
        of_comments, of_posts, of_images = (g.flatten(0, -2).abs().sum(-1) > 0 for g in grads)
        own = torch.arange(batch.n_posts) == batch.owner[comment[i]]
        assert torch.equal(of_comments, (comment == comment[i]) & (time <= time[i]))
        assert torch.equal(of_posts.view(3, -1), model.post_mask(batch) & own[:, None])
        assert torch.equal(of_images.view(3, -1), own[:, None].expand(3, 10))
    sources = [memory.last_hidden_state, *itertools.chain.from_iterable(memory.source)]
    total = sum(s.square().sum() for s in sources)
    assert torch.autograd.grad(total, comments, allow_unused=True) == (None,)


@both
def test_padding_and_neighbors_change_nothing(make_batch, decoder):
    model, batch, padded = vilt(decoder=decoder), make_batch(), make_batch()
    padded.post_ids = F.pad(padded.post_ids, (0, 5))
    alone = sum(model(make_batch(i)) for i in range(3))
    torch.testing.assert_close(model(padded), model(batch), rtol=1e-6, atol=0)
    torch.testing.assert_close(alone, model(batch), rtol=1e-6, atol=0)


# ---- decoding


def inputs(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.post_ids, "pixel_values": batch.images}


@torch.no_grad()
def test_prefix_with_cache_is_greedy_without(make_batch):
    """Against the whole sequence through transformers' encoder again at each step."""
    model, batch = vilt(decoder="prefix"), make_batch()
    tokens = model.generate(**inputs(batch), do_sample=False, num_beams=1, min_new_tokens=12, max_new_tokens=12)
    for post in range(3):
        ids = torch.tensor([101])
        for _ in range(12):
            logits = plain_prefix(model, batch, post, ids)[-1]
            logits[102] = -torch.inf
            ids = torch.cat([ids, logits.argmax().view(1)])
        assert torch.equal(tokens[post], ids)
    assert len(tokens.unique()) > 5


@both
@pytest.mark.parametrize("seed", range(2))
def test_beam_search_with_cache_is_beam_search_without(make_batch, decoder, seed):
    model, batch = vilt(decoder=decoder), make_batch()
    if decoder == "cmt":
        nn.init.normal_(model.generator.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.normal_(model.get_input_embeddings().weight, std=0.5, generator=torch.Generator().manual_seed(seed))
    search = {"num_beams": 5, "num_return_sequences": 3, "max_new_tokens": 12, "do_sample": False}
    cached = model.generate(**inputs(batch), **search)
    assert torch.equal(cached, model.generate(**inputs(batch), **search, use_cache=False))
    assert cached.shape[0] == 9
    for post in range(3):  # and no post reads another's memory
        alone = {name: value[post : post + 1] for name, value in inputs(batch).items()}
        for row, expected in zip(model.generate(**alone, **search), cached[3 * post : 3 * post + 3]):
            assert torch.equal(row[row != 0], expected[expected != 0])


@both
def test_teacher_forcing_is_what_decoding_sees(make_batch, decoder):
    """In steps of two tokens, with a cache: the logits behind the evaluation loss."""
    from transformers import DynamicCache

    model, batch = vilt(decoder=decoder), make_batch()
    comment = torch.tensor([[101, 22, 23, 24, 25, 26, 102], [101, 30, 31, 32, 33, 34, 102], [101, 7, 8, 9, 6, 5, 102]])
    picked = dataclasses.replace(make_batch(), comment_ids=comment, owner=torch.arange(3), rows=torch.arange(18))
    picked = dataclasses.replace(picked, post_rows=torch.arange(18), tokens_per_post=6)
    memory, cache = model.encode(**inputs(batch)), DynamicCache()
    steps = [
        model(decoder_input_ids=comment[:, i : i + 2], encoder_outputs=memory, past_key_values=cache) for i in (0, 2, 4)
    ]
    logits = torch.cat([step.logits for step in steps], dim=1)
    loss = F.cross_entropy(logits.flatten(0, 1), comment[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(model(picked), loss, rtol=1e-6, atol=0)


# ---- the loss


@both
def test_the_loss_is_what_it_says(make_batch, decoder):
    """Comments + mlm_weight · masked words + itm_weight · matches, each by hand, one post at a time."""
    model, batch = vilt(decoder=decoder, mlm_weight=0.5, itm_weight=3.0), make_batch()
    step = drawn(model, batch, seed=1)
    assert step.n_targets == batch.n_targets
    masked, matches = torch.zeros(()), torch.zeros(())
    image_of = torch.arange(3)
    image_of[step.drawn["swapped"]] = step.drawn["partners"]
    assert (image_of != torch.arange(3)).any() and (image_of == torch.arange(3)).any()
    for post in range(3):
        n, image = batch.post_lengths[post], batch.images[post : post + 1]
        hidden, *_ = model.encode_source(step.drawn["masked_ids"][post : post + 1, :n], None, image)
        logits = F.linear(model.masked_word_head(hidden[0, :n]), *model.word_output())
        for row, target in zip(step.drawn["masked_rows"], step.drawn["masked_targets"]):
            if row // batch.post_ids.shape[1] == post:
                masked = masked - logits.log_softmax(-1)[row % batch.post_ids.shape[1], target]
        hidden, *_ = model.encode_source(batch.post_ids[post : post + 1, :n], None, batch.images[image_of[post]][None])
        match = model.match_head(model.pooler(hidden))[0].log_softmax(-1)
        matches = matches - match[int(image_of[post] == post)]
    torch.testing.assert_close(model(step), model(batch) + 0.5 * masked + 3.0 * matches, rtol=1e-6, atol=0)


@both
def test_no_split_of_the_batch_changes_it(make_batch, decoder):
    """No split into pieces of even size: neighbors lend each other their images."""
    model = vilt(decoder=decoder)
    step = drawn(model, make_batch(), seed=5)
    assert len(step.drawn["swapped"])
    whole = model(step)
    parts = [model(drawn(model, make_batch(*posts), seed=5)) for posts in ((0, 1), (2,))]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=0)
    assert whole != model(make_batch())


@both
def test_evaluation_and_other_objectives_draw_nothing(make_batch, decoder):
    model, batch = vilt(decoder=decoder, n_answers=4, label_smoothing=0.1), make_batch()
    assert not batch.drawn
    weighted = dataclasses.replace(batch, comment_weights=torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 1.0]))
    assert model.draw(weighted, 0) is weighted
    answered = dataclasses.replace(batch, answer_targets=torch.rand(3, 4))
    assert model.draw(answered, 0) is answered
    exact, smoothed = model(batch), model.train()(batch)
    assert smoothed != exact
    ones = dataclasses.replace(batch, comment_weights=torch.ones(6))
    torch.testing.assert_close(model(ones), exact)
    model.eval()
    each = [model(dataclasses.replace(batch, comment_weights=row)) for row in torch.eye(6)]
    torch.testing.assert_close(model(weighted), sum(w * loss for w, loss in zip(weighted.comment_weights, each)))


def test_answers(make_batch):
    model, batch = vilt(n_answers=7), make_batch()
    batch.answer_targets = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    batch.weights[2] = 0
    logits = model.answer_logits(batch)
    by_hand = F.softplus(logits) - batch.answer_targets * logits
    torch.testing.assert_close(model(batch), by_hand[:2].sum())
    assert model.answer_head[0].out_features == 2 * model.config.d_model


@both
def test_posts_of_weight_zero_do_not_count(make_batch, decoder):
    model, batch = vilt(decoder=decoder), make_batch()
    batch.weights[2] = 0
    counted = make_batch(0, 1)
    batch, counted = drawn(model, batch, 3), drawn(model, counted, 3)
    torch.testing.assert_close(model(batch), model(counted), rtol=1e-6, atol=0)
    assert_same(gradients(model, model(batch)), gradients(model, model(counted)), rtol=1e-4, atol=1e-4)


# ---- what may be missing


def captions(n: int) -> Batch:
    pictures = np.random.default_rng(0).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)
    nothing = np.zeros(0, dtype=np.int64)
    return collate(
        [LoadedExample(str(i), i, nothing, [np.array([101, 20 + i, 21, 102])], pictures[i]) for i in range(n)],
        special=SPECIAL,
        image_size=96,
    )


@both
def test_captions_have_no_post(make_batch, decoder):
    model, batch = vilt(decoder=decoder), captions(3)
    assert batch.post_ids.shape == (3, 0)
    step = drawn(model, batch)
    assert "masked_ids" not in step.drawn and not len(step.drawn["swapped"])
    torch.testing.assert_close(model(step), model(batch), rtol=1e-6, atol=0)
    of_images = model.encode(pixel_values=batch.images)
    hidden, _ = model.decode_comments(batch, of_images)
    logits = F.linear(hidden, *model.output_layer())
    targets = batch.comment_ids[:, 1:].flatten()
    torch.testing.assert_close(model(batch), F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-6, atol=0)
    options = {"max_new_tokens": 5, "do_sample": False}
    images_alone = model.generate(pixel_values=batch.images, **options)
    assert torch.equal(model.generate(**inputs(batch), **options), images_alone)


@both
@pytest.mark.parametrize("mode", ["t+v", "t", "v"])
def test_every_batch_calls_the_same_modules_in_the_same_order(make_batch, decoder, mode):
    """What ZeRO-3 needs: each rank gathers the same weights, be its micro-batch blank, without text, or full."""
    model = vilt(decoder=decoder, mode=mode).train()
    batches = [make_batch(), make_batch(1), blank_batch(SPECIAL, 96)] + ([] if mode == "t" else [captions(2)])
    called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    orders, sets = [], []
    for batch in batches:
        called.clear()
        batch = dataclasses.replace(batch, images=None) if mode == "t" else batch
        step = model.draw(batch, 0)
        loss = model(step)
        orders.append(tuple(called))
        sets.append(frozenset(gradients(model, loss)))
        assert (loss == 0) == (batch.n_targets == 0)
    assert len(set(orders)) == len(set(sets)) == 1
    trained = {
        n for n, p in model.named_parameters() if not any(p is q for m in model.unused() for q in m.parameters())
    }
    assert sets[0] == trained


@both
def test_modules_gathered_as_a_whole_are_called_once(make_batch, decoder):
    """DeepSpeed's ZeRO-3 fails in the backward pass where one is called twice."""
    model, calls = vilt(decoder=decoder), []
    for name, module in model.named_modules():
        if isinstance(module, model.gathered_whole):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(drawn(model, make_batch()))
    assert len(calls) == len(set(calls)) == (4 if decoder == "cmt" else 1)


@pytest.mark.parametrize("classifies", [False, True])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@both
@pytest.mark.parametrize("mode", ["t+v", "t", "v"])
def test_unused_is_what_gets_no_gradient(make_batch, mode, decoder, weight, classifies):
    model = vilt(decoder=decoder, mode=mode, mlm_weight=weight, itm_weight=weight, n_answers=4 * classifies)
    batch = make_batch()
    batch.images = None if mode == "t" else batch.images
    batch.answer_targets = torch.rand(3, 4) if classifies else None
    reached = gradients(model, model(drawn(model, batch))).keys()
    unused = {n for n, p in model.named_parameters() if any(p is q for m in model.unused() for q in m.parameters())}
    assert unused == dict(model.named_parameters()).keys() - reached


@both
def test_modes_read_what_they_say(make_batch, decoder):
    batch, other = make_batch(), make_batch()
    for mode, n_source in (("t+v", 6 + 10), ("t", 6), ("v", 10)):
        model = vilt(mode=mode, decoder=decoder)
        assert model.image_size == (0 if mode == "t" else 96)
        memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
        assert memory.last_hidden_state.shape == (3, n_source, 32)
        other.post_ids, other.images = batch.post_ids.clone(), batch.images
        other.post_ids[:, 1] = 50
        assert (model(other) == model(batch)) == (mode == "v")
        other.post_ids, other.images = batch.post_ids, 255 - batch.images
        assert (model(other) == model(batch)) == (mode == "t")
    with pytest.raises(ValueError, match="mode 't' needs post tokens"):
        vilt(mode="t").encode(None, None, batch.images)
    with pytest.raises(ValueError, match="mode 'v' needs an image"):
        vilt(mode="v").encode(batch.post_ids)


def test_one_post_alone_has_no_wrong_image(make_batch):
    model = vilt()
    step = drawn(model, make_batch(1))
    assert not len(step.drawn["swapped"]) and step.drawn["match_targets"].tolist() == [1]
    assert drawn(model, captions(2)).drawn["match_targets"].tolist() == [IGNORE, IGNORE]


# ---- the rest of a model's interface


@both
def test_saved_and_loaded_again(make_batch, tmp_path, decoder):
    model, batch = vilt(decoder=decoder, n_answers=5), make_batch()
    model.text_embeddings.word_embeddings.weight.data[0] = 0.5  # a checkpoint's padding need not be zero
    model.save_pretrained(tmp_path)
    again = ViLTModel.from_pretrained(tmp_path)
    assert not again.training and not list(again.buffers())
    assert again.config.to_diff_dict().items() >= model.config.to_diff_dict().items()
    assert_same(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert again(batch) == model(batch)


@both
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_gradients(make_batch, decoder, dropout):
    model = vilt(decoder=decoder, dropout=dropout).train()
    step = drawn(model, make_batch())
    torch.manual_seed(1)
    usual = gradients(model, model(step))
    calls = []
    for module in model.modules():
        if type(module).__name__ == "ViltIntermediate":
            module.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(1)
    loss = model(step)
    passes = 2 if decoder == "prefix" else 1
    assert len(calls) == 2 * passes
    assert_same(usual, gradients(model, loss), rtol=1e-5, atol=1e-6)
    assert len(calls) == 4 * passes  # and again in the backward pass


def test_every_norm_computes_with_the_chosen_kernel():
    assert not [name for name, module in vilt(n_answers=3).named_modules() if type(module) is nn.LayerNorm]


def test_sizes_of_the_presets():
    def size(preset: str, **overrides) -> int:
        with torch.device("meta"):
            model = ViLTModel(ViLTConfig(**{**ViLTConfig.presets[preset], **overrides}))
        return sum(p.numel() for p in model.parameters())

    assert size("paper") == 159_135_762
    assert size("paper", decoder="prefix") == 105_062_794
    assert size("tiny") < size("small") < size("paper")
    with torch.device("meta"):
        encoder = ViltModel(ViLTConfig(vocab_size=30522, text_positions=40).library())
    assert sum(p.numel() for p in encoder.parameters()) == 111_595_008  # as dandelin/vilt-b32-mlm has


def test_depth():
    model = vilt(n_answers=3)
    depths = {name: model.depth(name) for name, _ in model.named_parameters()}
    assert depths["text_embeddings.word_embeddings.weight"] == depths["image_encoder.cls_token"] == 0
    assert depths["encoder_layers.1.output.dense.weight"] == depths["encoder_norm.weight"] == 2
    assert depths["pooler.dense.weight"] == depths["answer_head.3.weight"] == depths["masked_word_head.bias"] == 3
    assert depths["source_projections.0.kv.weight"] == depths["decoder_layers.0.norm1.bias"] == 3
    assert depths["generator.weight"] == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decoder": "prefx"}, "did you mean 'prefix'"),
        ({"image_size": 100}, "give a multiple of 32"),
        ({"decoder_heads": 5}, "d_model 32 is not divisible by decoder_heads 5"),
        ({"mlm_weight": -1.0}, "mlm_weight is -1.0"),
        ({"mask_rate": 1.0}, "mask_rate is 1.0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        build_config("vilt", "tiny", **{**SMALLEST, **wrong})


def test_texts_longer_than_the_positions_are_named(make_batch):
    with pytest.raises(UserError, match="a text of 6 tokens, and the model has 5 positions"):
        vilt(text_positions=5)(make_batch())
    with pytest.raises(UserError, match="a text of 7 tokens, and the model has 6 positions"):
        vilt(text_positions=6, decoder="prefix").generate(**inputs(make_batch()), min_new_tokens=9, max_new_tokens=9)
    vilt(text_positions=6).generate(**inputs(make_batch()), min_new_tokens=9, max_new_tokens=9)


@both
def test_a_handful_of_posts_is_learned(decoder):
    """Pictures of one gray each, and a text that says nothing: the comment names the gray."""
    torch.manual_seed(0)
    model = ViLTModel(ViLTConfig(**ViLTConfig.presets["tiny"], vocab_size=120, decoder=decoder)).train()
    examples = [
        LoadedExample(
            *(str(i), i, np.array([101, 7, 8, 102]), [np.array([101, 20 + i, 30, 40 + i, 102])]),
            np.full((128, 128, 3), 60 * i, dtype=np.uint8),
        )
        for i in range(4)
    ]
    batch = collate(examples, special=SPECIAL, image_size=128)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(100):
        loss = model(model.draw(batch, step)) / batch.n_targets
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert model(batch).item() / batch.n_targets < 0.05
    tokens = model.generate(**inputs(batch), max_new_tokens=6, do_sample=False)
    assert torch.equal(tokens, batch.comment_ids)
