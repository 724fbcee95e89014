"""Unified VLP: the same numbers as transformers' BERT on one sequence for each comment, masks, draws, losses."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.paths import REPOSITORY
from torch import Tensor
from transformers import DynamicCache

from cromic_ds.batch import Batch
from cromic_ds.data.collate import LoadedExample, SpecialTokens, blank_batch, collate
from cromic_ds.errors import UserError
from cromic_ds.models.vlp.config import VLPConfig
from cromic_ds.models.vlp.model import VLPModel
from cromic_ds.models.vlp.packing import draw_masks, targets_of, token_stream
from cromic_ds.models.vlp.weights import translate_vlp

SPECIAL = SpecialTokens(pad=0, cls=101, sep=102)
SMALLEST = {
    "vocab_size": 120,  # [CLS], [SEP] and [MASK] are 101 to 103
    **{"d_model": 32, "encoder_layers": 3, "n_heads": 4, "ffn": 48, "dropout": 0.0, "max_positions": 128},
    **{"image_size": 96, "image_ffn": 40},  # 3×3 image tokens
    "resnet": {"embedding_size": 16, "hidden_sizes": [16] * 4, "depths": [1] * 4, "layer_type": "basic"},
    "initializer_range": 0.3,  # large enough for untrained logits to differ
    "batch_norm": "frozen",
}
both_objectives = pytest.mark.parametrize("objective", ["masked", "causal"])


def vlp(**overrides) -> VLPModel:
    """In evaluation mode, the same weights each time."""
    torch.manual_seed(0)
    return VLPModel(VLPConfig(**{**SMALLEST, **overrides})).eval()


@pytest.fixture(scope="module")
def plain():
    """`benchmarks/plain_vlp.py`"""
    path = REPOSITORY / "benchmarks" / "plain_vlp.py"
    spec = importlib.util.spec_from_file_location("benchmarks_plain_vlp", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pair(plain):
    """pair(field=value, …): ours and the plain model, with the same weights."""

    def build(**overrides):
        ours = vlp(**overrides)
        torch.manual_seed(1)
        theirs = plain.PlainVLP(ours.config).eval()
        for name, p in theirs.named_parameters():  # biases and norms that are not the initial ones
            if p.dim() == 1:
                torch.nn.init.normal_(p, mean=float(name.endswith("weight")), std=0.2)
        plain.same_weights(theirs, ours)
        return ours, theirs

    return build


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def without_images(batch: Batch) -> Batch:
    return dataclasses.replace(batch, images=None)


def test_layer_normed_image_tokens_and_their_positions_start_as_large_as_each_other():
    encoder = vlp(image_layer_norm=True).image_encoder
    images = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
    content = encoder(images) - encoder.positions
    torch.testing.assert_close(content.std(-1), torch.ones(4, 9), rtol=0.05, atol=0)
    assert 0.8 < float(encoder.positions.detach().std()) < 1.2


# ---- against transformers' BertModel, each comment a sequence of its own


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.5])
def test_states_are_those_of_bert_with_the_same_mask(pair, plain, make_batch, rate):
    ours, theirs = pair(mask_rate=1.0, bidirectional_rate=rate)
    batch = make_batch()
    draw, prepared = draw_masks(batch, 1, ours.config), ours.draw(batch, 1)
    assert draw.bidirectional.tolist() == {0.0: [False] * 6, 1.0: [True] * 6}.get(rate, draw.bidirectional.tolist())
    packed = token_stream(prepared, prepared.drawn)
    given = plain.sequences(batch, draw, ours.config, 9)
    with torch.no_grad():
        states = ours.run(ours.embed_stream(packed, batch.images), packed)
        expected = theirs.states(given.ids, given.types, given.mask, theirs.grid(batch.images)[batch.owner])
    expected = expected.flatten(0, 1)[given.masked][packed.tokens]
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)
    logits = F.linear(ours.head(states), *ours.output_layer())
    torch.testing.assert_close(logits, theirs.cls(expected), rtol=0, atol=2e-5)


def test_shared_source_is_the_plain_computation(pair, plain, make_batch):
    """Losses, and the gradient of every weight."""
    ours, theirs = pair(bidirectional_rate=0.5, mask_rate=0.4)
    batch = make_batch()
    for seed in range(3):
        draw, prepared = draw_masks(batch, seed, ours.config), ours.draw(batch, seed)
        given = plain.sequences(batch, draw, ours.config, 9, padded=seed > 0)
        assert prepared.n_targets == len(given.targets)
        loss, expected = ours(prepared), theirs.loss(given, batch.images, batch.owner, image_per_comment=seed == 2)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        ours_grad, grad = gradients(ours, loss), gradients(theirs, expected)
        translated, _ = translate_vlp({n: g for n, g in grad.items() if n.startswith(("bert.", "cls.", "vis_embed."))})
        translated |= {f"image_encoder.{n}": g for n, g in grad.items() if n.startswith("backbone.")}
        translated["image_encoder.positions"] = grad["vis_positions"]
        # the plain model takes its positions off the image tokens again, and so gives them a gradient of its own
        assert ours_grad.keys() == translated.keys()
        for name, g in ours_grad.items():
            scale = g.abs().max().item()
            torch.testing.assert_close(
                g, translated[name], rtol=1e-4, atol=1e-5 * scale + 1e-6, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_text_alone_is_bert_too(pair, plain, make_batch):
    ours, theirs = pair(mode="t")
    batch = without_images(make_batch())
    given = plain.sequences(batch, draw_masks(batch, 5, ours.config), ours.config, 0)
    torch.testing.assert_close(ours(ours.draw(batch, 5)), theirs.loss(given, None, batch.owner), rtol=1e-6, atol=0)


def test_image_positions_can_be_the_sequences_own(pair, plain, make_batch):
    ours, theirs = pair()
    shared = vlp(image_positions=False)
    shared.load_state_dict({n: t for n, t in ours.state_dict().items() if n != "image_encoder.positions"})
    theirs.vis_positions.data = theirs.bert.embeddings.position_embeddings.weight.data[1:10].clone()
    batch = make_batch()
    given = plain.sequences(batch, draw_masks(batch, 5, ours.config), ours.config, 9)
    expected = theirs.loss(given, batch.images, batch.owner)
    torch.testing.assert_close(shared(shared.draw(batch, 5)), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("mode", "segment"), [("seq2seq", 4), ("bidirectional", 0)])
def test_answers_come_from_the_product_of_two_states(pair, make_batch, mode, segment):
    ours, theirs = pair(n_answers=7, answer_segments=mode)
    batch = make_batch()
    expected = []
    for post in range(3):
        text = batch.post_ids[post, 1 : batch.post_lengths[post]]
        ids = torch.cat([torch.tensor([101, *[0] * 9, 102]), text])[None]
        mask = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool)
        grid = theirs.grid(batch.images)[post : post + 1]
        states = theirs.states(ids, torch.full_like(ids, segment), mask, grid)[0]
        expected.append(ours.answer_head(states[0] * states[-1]))
    torch.testing.assert_close(ours.answer_logits(batch), torch.stack(expected), rtol=1e-5, atol=1e-5)
    batch.answer_targets = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    batch.weights[2] = 0
    logits = torch.stack(expected)
    by_hand = F.softplus(logits) - batch.answer_targets * logits
    for given in (batch, ours.draw(batch, 3)):
        torch.testing.assert_close(ours(given), by_hand[:2].sum())


# ---- the masks, by gradient


def sources_of(states: Tensor, x: Tensor) -> Tensor:
    """(X, X) bool: from the state of each token, the tokens of the stream that it depends on."""
    direction = torch.linspace(-1, 1, states.shape[1])  # a layer norm's plain sum has no gradient
    rows = [torch.autograd.grad(state @ direction, x, retain_graph=True)[0].abs().sum(1) > 0 for state in states]
    return torch.stack(rows)


def test_seq2seq_and_bidirectional_masks_by_gradient(make_batch):
    model, batch = vlp(bidirectional_rate=0.5), make_batch()
    prepared = model.draw(batch, 1)
    draw = draw_masks(batch, 1, model.config)
    assert set(draw.bidirectional.tolist()) == {False, True}
    packed = token_stream(prepared, prepared.drawn)
    x = model.embed_stream(packed, batch.images).detach().requires_grad_()
    seen = sources_of(model.run(x, packed, last=False), x)
    row = packed.slots // packed.mask.shape[1]
    n_rows, length = len(row), batch.comment_ids.shape[1] - 1
    comment, time = packed.rows // length, packed.rows % length
    assert len(x) == n_rows + len(comment)
    # within rows everything sees everything, and nothing else: no source sees a target
    assert torch.equal(seen[:n_rows, :n_rows], row[:, None] == row)
    assert not seen[:n_rows, n_rows:].any()
    # a target sees its post's source, and of its own comment what is to its left, and itself
    assert torch.equal(seen[n_rows:, :n_rows], batch.owner[comment][:, None] == row)
    assert torch.equal(seen[n_rows:, n_rows:], (comment[:, None] == comment) & (time[:, None] >= time))
    # a row of its own for each bidirectional comment, as long as source and target together
    counts = torch.bincount(batch.rows // length)
    image = model.image_encoder.n_tokens + 1
    two_way = [
        int(batch.post_lengths[batch.owner[i]]) + image + int(counts[i]) for i in range(6) if draw.bidirectional[i]
    ]
    assert torch.bincount(row).tolist() == [n + image for n in batch.post_lengths.tolist()] + two_way


def test_queries_see_what_decoding_sees(make_batch):
    model, batch = vlp(), make_batch()
    packed = token_stream(batch, model.pack(batch))
    x = model.embed_stream(packed, batch.images).detach().requires_grad_()
    states = model.run(x, packed)
    seen = sources_of(states, x)
    row, targets = packed.slots // packed.mask.shape[1], targets_of(batch)
    n_rows, n = len(row), len(targets.ids)
    read = x.shape[0] - n_rows - n
    assert read == n - 6  # the last token of a comment is never read
    comment, time = packed.rows // (2 * targets.length), packed.rows % (2 * targets.length)
    assert torch.equal(seen[:, :n_rows], targets.owner[:, None] == row)
    committed = (targets.comment[:, None] == comment[:read]) & (targets.time[:, None] > time[:read])
    assert torch.equal(seen[:, n_rows : n_rows + read], committed)
    assert torch.equal(seen[:, n_rows + read :], torch.eye(n, dtype=torch.bool))
    assert torch.equal(packed.ids[n_rows + read :], torch.full((n,), 103))


# ---- exact left-to-right likelihood


@torch.no_grad()
def decoded_nll(model: VLPModel, batch: Batch) -> list[float]:
    """-Σ log p of each comment, one decoding step with a cache for each token."""
    memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
    losses = []
    lengths = torch.bincount(batch.rows // (batch.comment_ids.shape[1] - 1))
    for comment, post in enumerate(batch.owner.tolist()):
        alone = type(memory)(
            last_hidden_state=memory.last_hidden_state[post : post + 1],
            mask=memory.mask[post : post + 1],
            source=tuple((k[post : post + 1], v[post : post + 1]) for k, v in memory.source),
        )
        cache, total = DynamicCache(), 0.0
        ids = batch.comment_ids[comment : comment + 1]
        for time in range(lengths[comment]):
            given = ids[:, max(time - 1, 0) : time + 1]
            logits = model(decoder_input_ids=given, encoder_outputs=alone, past_key_values=cache).logits
            total -= logits[0, -1].log_softmax(-1)[ids[0, time + 1]].item()
        losses.append(total)
    return losses


@both_objectives
def test_the_loss_in_evaluation_is_that_of_decoding(make_batch, objective):
    model, batch = vlp(objective=objective), make_batch()
    expected = decoded_nll(model, batch)
    assert model(batch).item() == pytest.approx(sum(expected), rel=1e-5)
    batch.weights[1] = 0
    counted = [loss for loss, post in zip(expected, batch.owner.tolist()) if post != 1]
    assert model(batch).item() == pytest.approx(sum(counted), rel=1e-5)
    # self-critical training: the same, each comment with its factor, whatever is drawn
    batch.comment_weights = torch.tensor([0.5, -1.0, 7.0, 0.0, 2.0, 1.0])
    weighted = sum(w * e for w, e in zip(batch.comment_weights.tolist(), expected))
    prepared = model.train().draw(batch, 4)
    assert prepared.n_targets == batch.n_targets
    assert model(prepared).item() == pytest.approx(weighted - 7.0 * expected[2], rel=1e-5)


def test_the_causal_objective_trains_on_every_token(make_batch):
    model, batch = vlp(objective="causal").train(), make_batch()
    prepared = model.draw(batch, 1)
    assert prepared.n_targets == batch.n_targets
    torch.testing.assert_close(model(prepared), model(batch), rtol=0, atol=0)


def test_causal_is_a_language_model_under_the_seq2seq_mask(pair, plain, make_batch):
    ours, theirs = pair(objective="causal")
    batch, draw = make_batch(), draw_masks(make_batch(), 0, ours.config)
    targets = targets_of(batch)
    everything = draw._replace(
        bidirectional=torch.zeros(6, dtype=torch.bool), masked=torch.ones_like(draw.masked), inputs=targets.ids
    )
    given = plain.sequences(batch, everything, ours.config, 9)
    states = theirs.states(given.ids, given.types, given.mask, theirs.grid(batch.images)[batch.owner]).flatten(0, 1)
    logits = theirs.cls(states[given.masked - 1])  # one place to the left
    expected = F.cross_entropy(logits, targets.ids, reduction="sum")
    torch.testing.assert_close(ours(batch), expected, rtol=1e-6, atol=0)


# ---- draws


def many_posts(n: int = 200) -> Batch:
    rng = np.random.default_rng(0)

    def comment() -> np.ndarray:
        return np.array([101, *rng.integers(1, 100, rng.integers(1, 24)), 102])

    examples = [
        LoadedExample(str(i), i, np.array([101, 7, 102]), [comment() for _ in range(10)], None) for i in range(n)
    ]
    return collate(examples, special=SPECIAL, image_size=0)


def test_rates():
    batch, config = many_posts(), VLPConfig()
    targets, draw = targets_of(batch), draw_masks(batch, 3, config)
    counts = torch.bincount(targets.comment)
    assert torch.equal(torch.bincount(targets.comment[draw.masked]), (0.15 * counts).round().clamp(min=1).long())
    assert draw.bidirectional.float().mean().item() == pytest.approx(0.25, abs=0.03)
    last = targets.time == counts[targets.comment] - 1  # the final [SEP] is masked like any other token
    share = ((0.15 * counts).round().clamp(min=1) / counts).mean().item()
    assert draw.masked[last].float().mean().item() == pytest.approx(share, abs=0.02)
    assert torch.equal(draw.inputs[~draw.masked], targets.ids[~draw.masked])
    inputs, ids = draw.inputs[draw.masked], targets.ids[draw.masked]
    assert (inputs == 103).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (inputs == ids).float().mean().item() == pytest.approx(0.1, abs=0.015)
    other = inputs[(inputs != 103) & (inputs != ids)]
    assert len(other) / len(inputs) == pytest.approx(0.1, abs=0.015)
    assert other.float().mean().item() == pytest.approx(config.vocab_size / 2, rel=0.1)


def test_draws_follow_the_seed_and_not_the_batch(make_batch):
    model, batch = vlp(mask_rate=0.4, bidirectional_rate=0.5), make_batch()
    first, again, other = (draw_masks(batch, seed, model.config) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.masked, other.masked)
    for seed in range(4):  # a post's loss is the same whatever stands beside it
        prepared, alone = model.draw(batch, seed), [model.draw(make_batch(i), seed) for i in range(3)]
        torch.testing.assert_close(model(prepared), sum(map(model, alone)), rtol=1e-6, atol=0)
        assert prepared.n_targets == sum(one.n_targets for one in alone)


def test_posts_of_weight_zero_do_not_count(make_batch):
    model, batch = vlp(), make_batch()
    batch.weights[1] = 0
    prepared, counted = model.draw(batch, 3), model.draw(make_batch(0, 2), 3)
    assert prepared.n_targets == counted.n_targets
    torch.testing.assert_close(model(prepared), model(counted), rtol=1e-6, atol=0)


@both_objectives
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_every_rank_touches_the_same_weights(make_batch, objective, rate):
    """With a blank post, with no comment in one of the directions: gradients reach the same parameters."""
    model = vlp(objective=objective, bidirectional_rate=rate).train()
    used = {name for name, _ in model.named_parameters()}
    assert gradients(model, model(model.draw(make_batch(), 1))).keys() == used
    blank = model.draw(blank_batch(SPECIAL, 96), 1)
    loss = model(blank)
    assert loss == 0
    assert blank.n_targets == 0
    grads = gradients(model, loss)
    assert grads.keys() == used
    assert not any(g.any() for g in grads.values())


def test_what_is_not_trained_is_named(make_batch):
    def named(**overrides) -> set[str]:
        model = vlp(**overrides).train()
        batch = make_batch()
        if model.config.n_answers:
            batch.answer_targets = torch.ones(3, 5)
        reached = gradients(model, model(model.draw(batch if model.image_size else without_images(batch), 1)))
        unused = {id(p) for module in model.unused() for p in module.parameters()}
        assert {name for name, p in model.named_parameters() if id(p) not in unused} == reached.keys()
        return {name.split(".")[0] for name, p in model.named_parameters() if id(p) in unused}

    assert named() == set()
    assert named(mode="t") == {"image_encoder"}
    assert named(n_answers=5) == {"head"}


# ---- inputs of every kind


def test_modes_read_what_they_say(make_batch):
    for mode, length in (("t+v", 10 + 6), ("t", 6), ("v", 11)):
        model, batch, other = vlp(mode=mode), make_batch(), make_batch()
        memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
        assert memory.last_hidden_state.shape == (3, length, 32)
        other.post_ids = batch.post_ids.clone()
        other.post_ids[:, 1] = 50
        assert (model(other) == model(batch)) == (mode == "v")
        other.post_ids, other.images = batch.post_ids, 255 - batch.images
        assert (model(other) == model(batch)) == (mode == "t")


def test_images_without_posts(make_batch):
    """L = 0, as captions are."""
    model, batch = vlp(), make_batch()
    captions = dataclasses.replace(
        batch, post_ids=batch.post_ids[:, :0], post_lengths=torch.zeros(3, dtype=torch.int64)
    )
    only_images = vlp(mode="v")
    for given in (captions, model.draw(captions, 1)):
        assert model(given) == only_images(given)
    tokens = [
        model.generate(captions.post_ids, None, batch.images, max_new_tokens=5, min_new_tokens=5),
        model.generate(None, None, batch.images, max_new_tokens=5, min_new_tokens=5),
        only_images.generate(batch.post_ids, None, batch.images, max_new_tokens=5, min_new_tokens=5),
    ]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])


def test_inputs_that_cannot_be_read_are_named(make_batch):
    batch = make_batch()
    with pytest.raises(ValueError, match="mode 'v' needs an image"):
        vlp(mode="v").encode(batch.post_ids)
    with pytest.raises(ValueError, match="mode 't' needs post tokens"):
        vlp(mode="t").encode(None, None, batch.images)
    too_long = vlp(max_positions=21)
    with pytest.raises(UserError, match=r"up to 2\d tokens .* is longer than model\.max_positions 21: raise that"):
        too_long(batch)
    with pytest.raises(UserError, match="up to 22 tokens"):
        too_long.generate(batch.post_ids, None, batch.images, min_new_tokens=8, max_new_tokens=8)


def test_padding_and_neighbors_change_nothing(make_batch):
    model, batch, padded = vlp(), make_batch(), make_batch()
    padded.post_ids = F.pad(padded.post_ids, (0, 5))
    torch.testing.assert_close(model(padded), model(batch), rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(model(make_batch(i)) for i in range(3)), model(batch), rtol=1e-6, atol=0)


# ---- a model of transformers, in training


def test_dropout_and_label_smoothing_are_for_training_alone(make_batch):
    model, batch = vlp(dropout=0.2, label_smoothing=0.1).train(), make_batch()
    prepared = model.draw(batch, 1)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model(prepared).item()

    assert loss(1) == loss(1) != loss(2)
    assert model.eval()(prepared) == vlp()(prepared)
    assert vlp(label_smoothing=0.1).train()(prepared) != vlp()(prepared)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_gradients(make_batch, dropout):
    model = vlp(dropout=dropout).train()
    prepared = model.draw(make_batch(), 1)
    torch.manual_seed(1)
    plain_gradients = gradients(model, model(prepared))
    calls = []
    model.encoder_layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(1)
    checkpointed = gradients(model, model(prepared))
    assert len(calls) == 2  # forward, and again in the backward pass
    assert all(torch.equal(checkpointed[name], g) for name, g in plain_gradients.items())


def test_saved_and_loaded_again(make_batch, tmp_path):
    model, batch = vlp(n_answers=5, segments={"seq2seq": [2, 3, 5], "bidirectional": [0, 0, 1]}), make_batch()
    model.image_encoder.backbone.embedder.embedder.normalization.running_mean.fill_(0.25)
    model.save_pretrained(tmp_path)
    again = VLPModel.from_pretrained(tmp_path)
    assert again.config.segments == model.config.segments
    assert again(batch) == model(batch)
    assert torch.equal(again.answer_logits(batch), model.answer_logits(batch))
    assert model(batch) != vlp(n_answers=5)(batch)  # the segments are read


def test_sizes_of_the_presets():
    def size(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in VLPModel(VLPConfig(**VLPConfig.presets[name])).parameters())

    assert [*VLPConfig.presets] == ["tiny", "small", "paper"]
    assert size("tiny") < size("small") < size("paper")
    bert = 21128 * 768 + 512 * 768 + 6 * 768 + 2 * 768 + 12 * (12 * 768**2 + 13 * 768)
    head = 768**2 + 3 * 768 + 21128
    image = 23_508_032 + 2048 * 1536 + 1536 + 1536 * 768 + 768 + 49 * 768
    assert size("paper") == bert + head + image == 130_166_728


def test_depth_counts_layers_from_the_input():
    model = vlp(n_answers=5)
    depths = {name: model.depth(name) for name, _ in model.named_parameters()}
    assert depths["encoder_layers.0.norm1.weight"] == 1
    assert depths["encoder_layers.2.attention.kv.bias"] == 3
    assert depths["head.bias"] == depths["answer_head.2.weight"] == 4
    assert depths["position_embedding.weight"] == depths["image_encoder.mlp.0.weight"] == 0


@both_objectives
def test_learns_a_handful_of_posts(make_batch, objective):
    model = vlp(objective=objective, initializer_range=0.1).train()
    batch = make_batch()
    first = [0, 2, 3]  # a comment for each post, to be said again
    with_one = collate(
        [
            LoadedExample(
                str(i),
                i,
                batch.post_ids[i, : batch.post_lengths[i]].numpy(),
                [c[c > 0].numpy()],
                p.permute(1, 2, 0).numpy(),
            )
            for i, (c, p) in enumerate(zip(batch.comment_ids[first], batch.images))
        ],
        special=SPECIAL,
        image_size=96,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(120):
        prepared = model.draw(with_one, step)
        optimizer.zero_grad()
        (model(prepared) / prepared.n_targets).backward()
        optimizer.step()
    model.eval()
    assert model(with_one).item() / with_one.n_targets < 0.1
    tokens = model.generate(with_one.post_ids, None, with_one.images, max_new_tokens=8, do_sample=False)
    assert torch.equal(tokens, with_one.comment_ids[:, : tokens.shape[1]])
