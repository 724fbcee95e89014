"""ViLT with CroMIC-CMT's decoder the plain way: the baseline of benchmarks and tests. The product does not use it.

transformers' ViLT and torch's decoder on one padded sequence for each comment: 40 post tokens, the image, 25 comment tokens,
nothing shared between a post's comments. Names are those of transformers and of the published CroMIC-CMT, so that
`load_vilt_state_dict` and `translate_cmt` carry the weights over and both sides compute the same function.

Legend: P posts, N comments, L post tokens, K image tokens, S = L + K, T comment tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViltConfig, ViltForMaskedLM

from cromic_ds.batch import Batch
from cromic_ds.models.cmt.weights import translate_cmt
from cromic_ds.models.common.weights import load_matching
from cromic_ds.models.vilt.config import ViLTConfig
from cromic_ds.models.vilt.model import ViLTModel
from cromic_ds.models.vilt.weights import load_vilt_state_dict

POST_TOKENS, COMMENT_TOKENS = 40, 25


class PlainViLT(ViltForMaskedLM):
    """The library's `vilt` and `mlm_score`, with `decoder`, `generator` and `match_head`."""

    def __init__(self, ours: ViLTConfig):
        super().__init__(
            ViltConfig(
                vocab_size=ours.vocab_size,
                hidden_size=ours.d_model,
                num_hidden_layers=ours.encoder_layers,
                num_attention_heads=ours.n_heads,
                intermediate_size=ours.ffn,
                hidden_dropout_prob=ours.dropout,
                image_size=ours.position_grid * ours.patch_size,
                patch_size=ours.patch_size,
                max_position_embeddings=ours.text_positions,
            )
        )
        layer = nn.TransformerDecoderLayer(
            ours.d_model, ours.decoder_heads, ours.decoder_ffn, ours.dropout, batch_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, ours.decoder_layers, nn.LayerNorm(ours.d_model))
        self.generator = nn.Linear(ours.d_model, ours.vocab_size)
        self.match_head = nn.Linear(ours.d_model, 2)
        self.ours = ours

    def encode(self, posts: Tensor, pixels: Tensor):
        """(·, L) padded ids, (·, 3, H, W) floats -> the library's output: states (·, S, D) and the pooled first"""
        return self.vilt(input_ids=posts, attention_mask=(posts != 0).long(), pixel_values=pixels)

    def embed(self, ids: Tensor) -> Tensor:
        """(N, T) -> (N, T, D): word embedding · √D + sinusoidal positions"""
        width = self.config.hidden_size
        steps = torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
        angles = torch.arange(ids.shape[1])[:, None] * steps
        positions = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        return self.vilt.embeddings.text_embeddings.word_embeddings(ids) * math.sqrt(width) + positions

    def loss(self, batch: Batch) -> Tensor:
        """Return our loss of the batch: Σ NLL of the comments and, if `Batch.drawn` has them, of masked words and wrong images.

        Masked words and wrong images occur here once for each comment, so they are weighted by 1 / comments of the post.
        """
        owner, drawn = batch.owner, batch.drawn
        posts = padded(batch.post_ids, POST_TOKENS)[owner]
        comments = padded(batch.comment_ids, COMMENT_TOKENS)
        pixels = ((batch.images.float() / 255 - 0.5) / 0.5)[owner]
        clean = self.encode(posts, pixels)
        no_image = torch.zeros(len(owner), clean.last_hidden_state.shape[1] - POST_TOKENS, dtype=torch.bool)
        hidden = self.decoder(
            F.dropout(self.embed(comments[:, :-1]), self.config.hidden_dropout_prob, self.training),
            clean.last_hidden_state,
            tgt_mask=torch.ones(COMMENT_TOKENS - 1, COMMENT_TOKENS - 1, dtype=torch.bool).triu(1),
            tgt_key_padding_mask=comments[:, :-1] == 0,
            memory_key_padding_mask=torch.cat([posts == 0, no_image], dim=1),
        )
        scores = self.generator(hidden).flatten(0, 1)
        loss = F.cross_entropy(scores, comments[:, 1:].flatten(), ignore_index=0, reduction="sum")
        share = 1 / torch.bincount(owner, minlength=batch.n_posts)
        if "masked_ids" in drawn:
            states = self.encode(padded(drawn["masked_ids"], POST_TOKENS)[owner], pixels).last_hidden_state
            targets = torch.full_like(batch.post_ids, -100)
            targets.view(-1)[drawn["masked_rows"]] = drawn["masked_targets"]
            targets, weights = padded(targets, POST_TOKENS, -100)[owner], share[owner][:, None].expand(-1, POST_TOKENS)
            at = targets != -100
            losses = F.cross_entropy(self.mlm_score(states[:, :POST_TOKENS][at]), targets[at], reduction="none")
            loss = loss + self.ours.mlm_weight * (losses * weights[at]).sum()
        if "swapped" in drawn:
            image_of = torch.arange(batch.n_posts)
            image_of[drawn["swapped"]] = drawn["partners"]
            wrong = image_of[owner] != owner
            pooled = clean.pooler_output.clone()
            if wrong.any():
                others = ((batch.images.float() / 255 - 0.5) / 0.5)[image_of[owner[wrong]]]
                pooled[wrong] = self.encode(posts[wrong], others).pooler_output
            losses = F.cross_entropy(self.match_head(pooled), drawn["match_targets"][owner], reduction="none")
            loss = loss + self.ours.itm_weight * (losses * share[owner]).sum()
        return loss


def padded(ids: Tensor, length: int, value: int = 0) -> Tensor:
    return F.pad(ids, (0, length - ids.shape[1]), value=value)


def same_weights(plain: PlainViLT, ours: ViLTModel) -> None:
    """Copy the plain model's weights into ours."""
    weights = plain.state_dict()
    own, _ = translate_cmt({n: t for n, t in weights.items() if n.startswith(("decoder.", "generator."))})
    own |= {n: t for n, t in weights.items() if n.startswith("match_head.")}
    load_matching(ours, own)
    report = load_vilt_state_dict(ours, {n: t for n, t in weights.items() if n.startswith(("vilt.", "mlm_score."))})
    left = [name for name in report.missing if name not in own]
    assert not left and not report.extra and not report.mismatched, report
