"""CroMIC-CMT's training path: ragged tokens, masks, weights, modes, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel

from cromic_ds.data.collate import LoadedExample, SpecialTokens, blank_batch, collate
from cromic_ds.errors import UserError
from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.cmt.model import CMTModel, Memory
from cromic_ds.models.common.transformer import DenseLayout
from cromic_ds.models.registry import build_config, build_model


def dense_loss(model: CMTModel, batch) -> Tensor:
    """The loss with one padded row per comment, each with its own copy of its post's memory."""
    memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
    copies = Memory(
        last_hidden_state=memory.last_hidden_state[batch.owner],
        mask=memory.mask[batch.owner],
        source=tuple((k[batch.owner], v[batch.owner]) for k, v in memory.source),
    )
    n, length = batch.comment_ids.shape[0], batch.comment_ids.shape[1] - 1
    positions = torch.arange(length).repeat(n)
    hidden = model.decode(batch.comment_ids[:, :-1].flatten(), positions, DenseLayout(n, n), copies)
    targets = batch.comment_ids[:, 1:].flatten()
    return F.cross_entropy(model.generator(hidden), targets, ignore_index=0, reduction="sum")


def gradients(model: CMTModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], **tolerances) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=lambda m, name=name: f"{name}: {m}", **tolerances)


def test_ragged_decoder_is_the_dense_one(smallest, make_batch):
    model, batch = smallest(), make_batch()
    ragged, dense = model(batch), dense_loss(model, batch)
    torch.testing.assert_close(ragged, dense, rtol=1e-6, atol=0)
    assert_same(gradients(model, ragged), gradients(model, dense), rtol=1e-4, atol=1e-5)


def test_padding_and_neighbors_change_nothing(smallest, make_batch):
    model, batch = smallest(), make_batch()
    padded = make_batch()
    padded.post_ids = F.pad(padded.post_ids, (0, 5))
    alone = sum(model(make_batch(i)) for i in range(3))
    torch.testing.assert_close(model(padded), model(batch), rtol=1e-6, atol=0)
    torch.testing.assert_close(alone, model(batch), rtol=1e-6, atol=0)


def test_a_token_reads_only_its_own_past(smallest, make_batch):
    """Gradients of one hidden state reach exactly the inputs up to its own, in its own comment."""
    model, batch = smallest(), make_batch()
    memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
    embedded = []
    model.token_embedding.register_forward_hook(lambda *call: embedded.append(call[2]))
    hidden, _ = model.decode_comments(batch, memory)
    length = batch.comment_ids.shape[1] - 1
    comment, time = batch.rows // length, batch.rows % length
    direction = torch.linspace(-1, 1, hidden.shape[1])  # a layer norm's plain sum has no gradient
    for i in range(len(hidden)):
        [gradient] = torch.autograd.grad(hidden[i] @ direction, embedded, retain_graph=True)
        reached = gradient.abs().sum(1) > 0
        assert torch.equal(reached, (comment == comment[i]) & (time <= time[i]))


def test_posts_of_weight_zero_do_not_count(smallest, make_batch):
    model, batch = smallest(), make_batch()
    batch.weights[1] = 0
    counted = make_batch(0, 2)
    torch.testing.assert_close(model(batch), model(counted), rtol=1e-6, atol=0)
    assert_same(gradients(model, model(batch)), gradients(model, model(counted)), rtol=1e-4, atol=1e-6)


def test_answer_loss_is_summed_over_answers_and_weighted_by_post(smallest, make_batch):
    model, batch = smallest(n_answers=7), make_batch()
    batch.answer_targets = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    batch.weights[2] = 0
    logits = model.answer_logits(batch)
    by_hand = F.softplus(logits) - batch.answer_targets * logits
    torch.testing.assert_close(model(batch), by_hand[:2].sum())


def test_modes_read_what_they_say(smallest, make_batch):
    batch, other = make_batch(), make_batch()
    for mode, n_source in (("t+v", 6 + 4), ("t", 6), ("v", 4)):
        model = smallest(mode=mode)
        memory = model.encode(batch.post_ids, model.post_mask(batch), batch.images)
        assert memory.last_hidden_state.shape == (3, n_source, 32)
        other.post_ids = batch.post_ids.clone()
        other.post_ids[:, 1] = 50
        other.images = batch.images
        assert (model(other) == model(batch)) == (mode == "v")
        other.post_ids = batch.post_ids
        other.images = 255 - batch.images
        assert (model(other) == model(batch)) == (mode == "t")


def test_missing_inputs_are_named(smallest, make_batch):
    batch = make_batch()
    with pytest.raises(ValueError, match="mode 'v' needs an image"):
        smallest(mode="v").encode(batch.post_ids)
    with pytest.raises(ValueError, match="mode 't' needs post tokens"):
        smallest(mode="t").encode(None, None, batch.images)


def test_dropout_follows_the_seed(smallest, make_batch):
    model, batch = smallest(dropout=0.2).train(), make_batch()

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model(batch).item()

    assert loss(1) == loss(1) != loss(2)
    assert model.eval()(batch) == smallest()(batch)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_gradients(smallest, make_batch, dropout):
    model, batch = smallest(dropout=dropout).train(), make_batch()
    torch.manual_seed(1)
    plain = gradients(model, model(batch))
    calls = []
    model.decoder_layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(1)
    checkpointed = gradients(model, model(batch))
    assert len(calls) == 2  # forward, and again in the backward pass
    assert_same(plain, checkpointed, rtol=0, atol=0)


def test_saved_and_loaded_again(smallest, make_batch, tmp_path):
    model, batch = smallest(n_answers=5), make_batch()
    model.image_encoder.batch_norm.running_mean.fill_(0.25)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for again in (CMTModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(again) is CMTModel
        assert not again.training
        assert again.config.to_diff_dict().items() >= model.config.to_diff_dict().items()
        assert again(batch) == model(batch)
        assert_same(dict(again.named_buffers()), dict(model.named_buffers()), rtol=0, atol=0)


def test_sizes_of_the_presets():
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build_model(build_config("cmt", name)).parameters())
            for name in ("tiny", "small", "paper", "large", "xl")
        }
    assert sizes.keys() == CMTConfig.presets.keys()
    assert sizes["paper"] == 119_026_120
    assert sizes["xl"] >= 1_000_000_000
    assert list(sizes.values()) == sorted(sizes.values())


def test_paper_starts_as_published_and_the_others_balanced():
    paper, small = build_config("cmt", "paper"), build_config("cmt", "small")
    assert (paper.image_norm, paper.image_positions, paper.embedding_std, paper.batch_norm) == (
        "l2",
        False,
        1.0,
        "batch",
    )
    assert (small.image_norm, small.image_positions, small.embedding_std) == ("layer", True, 0.02)
    assert small.batch_norm == "frozen"
    with torch.device("meta"):
        assert build_model(paper).image_encoder.positions is None


def test_initial_embeddings(smallest):
    embedding = smallest(vocab_size=5000, embedding_std=0.5).token_embedding.weight
    assert embedding[0].abs().max() == 0
    assert embedding[1:].std().item() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cmd"}, "did you mean 'cmt'"),
        ({"preset": "papre"}, "did you mean 'paper'"),
        ({"mode": "v+t"}, r"model.mode: 'v\+t'"),
        ({"batch_norm": "synced"}, "did you mean 'sync'"),
        ({"d_modl": 3}, "no such setting"),
        ({"d_model": 130}, "130 is not divisible by n_heads 4"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        build_config(**{"name": "cmt", "preset": "tiny", **arguments})


def test_a_batch_without_text_uses_the_same_modules_in_the_same_order(smallest):
    # A rank whose micro-batch is blank has text where the others' captions have none: under ZeRO-3 both must gather alike.
    special, picture = SpecialTokens(pad=0, cls=101, sep=102), np.zeros((96, 96, 3), np.uint8)
    model = smallest()
    caption = LoadedExample("a", 0, np.empty(0, np.int64), [np.array([101, 7, 102])], picture)
    used: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: used.append(name))
    orders = []
    for batch in (collate([caption], special=special, image_size=96), blank_batch(special, 96)):
        used.clear()
        model(batch)
        orders.append(list(used))
    assert orders[0] == orders[1]
