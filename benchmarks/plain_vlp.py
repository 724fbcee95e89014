"""Unified VLP the plain way: the baseline of benchmarks and tests. The product does not use it.

transformers' BERT on one padded sequence for each comment, image and post included, with a 3-D mask; the names are those of
the published checkpoints, so that `load_vlp_state_dict` carries the weights over and both sides compute the same function.
Written apart from the product: sequences are put together one by one, and nothing is shared between a post's comments.

Legend: N comments, K image tokens, S tokens of a sequence, W masked tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, ResNetConfig, ResNetModel

from cromic_ds.batch import Batch
from cromic_ds.models.common.image_encoder import normalize_imagenet, set_batch_norm
from cromic_ds.models.vlp.config import VLPConfig
from cromic_ds.models.vlp.model import VLPModel
from cromic_ds.models.vlp.packing import Draw
from cromic_ds.models.vlp.weights import load_vlp_state_dict

POST_TOKENS, COMMENT_TOKENS = 40, 25


class Sequences(NamedTuple):
    """One row for each comment."""

    ids: Tensor  # (N, S), 0 at image tokens and padding
    types: Tensor  # (N, S)
    mask: Tensor  # (N, S, S) bool: row = query, column = key
    masked: Tensor  # (W,) positions in the flattened (N, S)
    targets: Tensor  # (W,)


def sequences(batch: Batch, draw: Draw, config: VLPConfig, n_image: int, padded: bool = True) -> Sequences:
    """[CLS] image [SEP] post [SEP] comment [SEP] for each comment, padded to 40 and 25 tokens or to the longest here."""
    longest = (POST_TOKENS, COMMENT_TOKENS) if padded else (batch.post_ids.shape[1], batch.comment_ids.shape[1])
    n, size = len(batch.owner), sum(longest) - 1 + (n_image + 1 if n_image else 0)
    ids, types = torch.zeros(n, size, dtype=torch.int64), torch.zeros(n, size, dtype=torch.int64)
    mask = torch.zeros(n, size, size, dtype=torch.bool)
    masked, targets, token = [], [], 0
    lengths = torch.bincount(batch.rows // (batch.comment_ids.shape[1] - 1), minlength=n)
    for i, (post, length) in enumerate(zip(batch.owner.tolist(), lengths.tolist())):
        text = batch.post_ids[post, 1 : batch.post_lengths[post]].tolist()
        image = n_image * [0] + [config.eos_token_id] if n_image else []
        source = [config.bos_token_id, *image, *text]
        comment = draw.inputs[token : token + length].tolist()
        of_image, of_post, of_comment = config.segments["bidirectional" if draw.bidirectional[i] else "seq2seq"]
        start, end = len(source), len(source) + length
        ids[i, :end] = torch.tensor(source + comment)
        first = 1 + len(image) if n_image else 0
        types[i, :first], types[i, first:start], types[i, start:end] = of_image, of_post, of_comment
        mask[i, :, :start] = True
        mask[i, start:end, start:end] = torch.ones(length, length).tril().bool()
        if draw.bidirectional[i]:
            mask[i, :, :end] = True
        for j in range(length):
            if draw.masked[token + j]:
                masked.append(i * size + start + j)
                targets.append(int(batch.comment_ids[i, 1 + j]))
        token += length
    return Sequences(ids, types, mask, torch.tensor(masked), torch.tensor(targets))


class PlainVLP(BertForMaskedLM):
    """A model with the published names `bert`, `cls`, `vis_embed`; `backbone` and `vis_positions` replace the detector."""

    def __init__(self, ours: VLPConfig):
        config = BertConfig(
            vocab_size=ours.vocab_size,
            hidden_size=ours.d_model,
            num_hidden_layers=ours.encoder_layers,
            num_attention_heads=ours.n_heads,
            intermediate_size=ours.ffn,
            hidden_dropout_prob=ours.dropout,
            attention_probs_dropout_prob=ours.dropout,
            max_position_embeddings=ours.max_positions,
            type_vocab_size=ours.type_vocab_size,
            layer_norm_eps=ours.layer_norm_eps,
            initializer_range=ours.initializer_range,
            attn_implementation="sdpa",
        )
        super().__init__(config)
        self.backbone = ResNetModel(ResNetConfig(**ours.resnet))
        self.vis_embed = nn.Sequential(
            nn.Linear(ours.resnet["hidden_sizes"][-1], ours.image_ffn),
            nn.ReLU(),
            nn.Linear(ours.image_ffn, ours.d_model),
            nn.ReLU(),
            nn.Dropout(ours.dropout),
        )
        self.vis_positions = nn.Parameter(torch.zeros(math.ceil(ours.image_size / 32) ** 2, ours.d_model))
        set_batch_norm(self, ours.batch_norm)
        nn.init.normal_(self.vis_positions, std=ours.initializer_range)

    def grid(self, images: Tensor) -> Tensor:
        """(·, 3, H, W) -> (·, K, D), which replace word embeddings (BERT adds the sequence's positions)."""
        features = self.backbone(normalize_imagenet(images)).last_hidden_state.flatten(2).transpose(1, 2)
        places = self.bert.embeddings.position_embeddings.weight[1 : features.shape[1] + 1]
        return self.vis_embed(features) + self.vis_positions - places

    def embedded(self, ids: Tensor, grid: Tensor | None) -> Tensor:
        """(N, S) -> (N, S, D), with image tokens (N, K, D) behind [CLS]"""
        words = self.bert.embeddings.word_embeddings(ids)
        return words if grid is None else torch.cat([words[:, :1], grid, words[:, 1 + grid.shape[1] :]], dim=1)

    def states(self, ids: Tensor, types: Tensor, mask: Tensor, grid: Tensor | None) -> Tensor:
        return self.bert(
            inputs_embeds=self.embedded(ids, grid), token_type_ids=types, attention_mask=mask[:, None]
        ).last_hidden_state

    def loss(self, given: Sequences, images: Tensor | None, owner: Tensor, image_per_comment: bool = False) -> Tensor:
        """Σ cross-entropy of the masked tokens. The ResNet runs once for each post, or once for each comment."""
        grid = None
        if images is not None:
            grid = self.grid(images[owner]) if image_per_comment else self.grid(images)[owner]
        states = self.states(given.ids, given.types, given.mask, grid)
        scores = self.cls(states.flatten(0, 1)[given.masked])
        return F.cross_entropy(scores.float(), given.targets, reduction="sum")

    @torch.no_grad()
    def greedy(self, batch: Batch, config: VLPConfig, steps: int) -> Tensor:
        """Generate `steps` tokens for each post, none of them [SEP], computing all sequences again for each: (P, 1 + steps)"""
        n_image = 0 if batch.images is None else len(self.vis_positions)
        grid = None if batch.images is None else self.grid(batch.images)
        made = torch.full((batch.n_posts, 1), config.decoder_start_token_id)
        for _ in range(steps):
            given = appended(batch, made[:, 1:], config, n_image)
            states = self.states(given.ids, given.types, given.mask, grid).flatten(0, 1)
            scores = self.cls(states[given.masked])
            scores[:, config.eos_token_id] = -torch.inf
            made = torch.cat([made, scores.argmax(1, keepdim=True)], dim=1)
        return made


def appended(batch: Batch, made: Tensor, config: VLPConfig, n_image: int) -> Sequences:
    """Return [CLS] image [SEP] post [SEP], the generated tokens and [MASK] for each post."""
    behind = torch.cat([made, torch.full((batch.n_posts, 1), config.mask_token_id)], dim=1)
    n, length = behind.shape
    comments = torch.cat([torch.full((n, 1), config.bos_token_id), behind], dim=1)
    as_batch = dataclasses.replace(batch, comment_ids=comments, owner=torch.arange(n), rows=torch.arange(n * length))
    last = torch.zeros(n, length, dtype=torch.bool)
    last[:, -1] = True
    draw = Draw(bidirectional=torch.zeros(n, dtype=torch.bool), masked=last.flatten(), inputs=behind.flatten())
    return sequences(as_batch, draw, config, n_image, padded=False)


def same_weights(plain: PlainVLP, ours: VLPModel) -> None:
    """Copy the plain model's weights into ours."""
    weights = plain.state_dict()
    own = {f"image_encoder.{n}": t for n, t in weights.items() if n.startswith("backbone.")}
    own["image_encoder.positions"] = weights["vis_positions"]
    ours.load_state_dict(own, strict=False)
    report = load_vlp_state_dict(
        ours, {n: t for n, t in weights.items() if n.startswith(("bert.", "cls.", "vis_embed."))}
    )
    left = [n for n in report.missing if not n.startswith(("image_encoder.", "answer_head."))]
    assert not left and not report.extra and not report.mismatched, report
