"""Layers of Unified VLP: BERT's, on one stream of real tokens, with attention that shares the source of a post.

Legend: P posts, N comments, R full rows, S tokens of the longest row, F tokens of all rows, O target tokens outside of the
rows, X = F + O tokens of the stream, T slots for a comment's tokens, H heads, D width.

Linear layers, norms and dropout run on the stream (X, D): first the rows, then the targets. Only attention needs rectangles.
A row is a sequence in which every token reads every token: the source of a post (rows 0 … P-1), or the source and target of a
comment in bidirectional mode. A target outside of the rows reads the row of its post, which cannot read it, and the past of its
own comment. So all comments of a post read the same source, which is encoded once.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from cromic_ds.models.common.config import grid_side
from cromic_ds.models.common.decoder import Memory
from cromic_ds.models.common.image_encoder import ImageEncoder
from cromic_ds.models.common.kernels import LayerNorm
from cromic_ds.models.common.transformer import (
    Attention,
    DenseLayout,
    FeedForward,
    KeyValue,
    Layout,
    RaggedLayout,
    causal_mask,
    heads,
    spread,
    unheads,
)
from cromic_ds.models.vlp.config import VLPConfig


class BertAttention(Attention):
    """Attention with a matrix of its own for queries, because the last layer needs queries of few tokens but all keys."""

    def __init__(self, width: int, n_heads: int, dropout: float):
        super().__init__(n_heads, dropout)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def joint(
        self, q: Tensor, layout: Layout, source: KeyValue, source_mask: Tensor, own: KeyValue, own_mask: Tensor | None
    ) -> Tensor:
        """Apply one softmax over two blocks of keys, of which the first is not copied for each comment.

        Args:
            q: (O, D) queries; `layout` places them by post and by comment.
            source: keys and values of the posts, (P, H, S, D/H); source_mask: (P, 1, 1, S), True where they are real.
            own: keys and values of the comments, (N, H, T', D/H); own_mask: (T, T'), True where a query may read.
        """
        n, k_source, k_own = self.n_heads, source[0], own[0]
        q = q * k_own.shape[-1] ** -0.5
        of_source = heads(layout.to_posts(q), n) @ k_source.transpose(-1, -2)
        of_own = heads(layout.to_rows(q), n) @ k_own.transpose(-1, -2)
        of_source = of_source.masked_fill(~source_mask, -torch.inf)
        if own_mask is not None:
            of_own = of_own.masked_fill(~own_mask, -torch.inf)
        blocks = [layout.from_posts(unheads(of_source)), layout.from_rows(unheads(of_own))]  # (O, H·S), (O, H·T')
        scores = torch.cat([block.unflatten(1, (n, -1)) for block in blocks], dim=-1).float()
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training).to(q.dtype)
        w_source, w_own = (w.flatten(1) for w in weights.split([k_source.shape[2], k_own.shape[2]], dim=-1))
        y = layout.from_posts(unheads(heads(layout.to_posts(w_source), n) @ source[1]))
        return y + layout.from_rows(unheads(heads(layout.to_rows(w_own), n) @ own[1]))


@dataclass
class TokenStream:
    """The tokens of a micro-batch, and their slots in the rectangles of attention."""

    ids: Tensor  # (X,)
    positions: Tensor  # (X,)
    types: Tensor  # (X,) segment ids
    row_posts: Tensor  # (R,) the post of each row; row p < P is that of post p
    image_slots: Tensor  # (R·K,) positions in the stream of the rows' K image tokens
    mask: Tensor  # (R, S) bool, True at real tokens
    slots: Tensor  # (F,) positions in the flattened (R, S)
    rows: Tensor  # (O,) positions in the flattened (N, T)
    posts: Tensor  # (O,) positions in the flattened (P, post_length)
    own_mask: Tensor  # (T, T) bool: the slots of its own comment that a target reads
    row_queries: Tensor  # (A,) into F: tokens of rows whose states after the last layer are wanted
    own_queries: Tensor  # (B,) into O: other tokens whose states are wanted; together (A + B, D)
    outputs: Tensor  # (Z,) into A + B: the state that each prediction is made from
    tokens: Tensor  # (Z,) into the M target tokens of the batch: the predicted tokens
    n_posts: int
    n_comments: int
    post_length: int
    memory: list[KeyValue] | None = None  # a list is filled with the source of each layer

    def queries(self, x: Tensor) -> Tensor:
        """(X, D) -> (A + B, D)"""
        return x.index_select(0, torch.cat([self.row_queries, self.own_queries + self.slots.numel()]))

    def attend(self, attention: BertAttention, q: Tensor, kv: Tensor, index: int, last: bool) -> Tensor:
        """Queries (X, D), or (A + B, D) in the last layer; keys and values (X, 2·D) -> the queries' shape."""
        n_heads, n_rows = attention.n_heads, self.slots.numel()
        asked = self.slots[self.row_queries] if last else self.slots
        k, v = heads(spread(kv[:n_rows], self.slots, *self.mask.shape), 2 * n_heads).chunk(2, dim=1)
        if self.memory is not None:
            self.memory.append((k.contiguous(), v.contiguous()))  # read again at every decoding step
        mask = self.mask[:, None, None]
        y = attention.attend(heads(spread(q[: asked.numel()], asked, *self.mask.shape), n_heads), k, v, attn_mask=mask)
        y = y.flatten(0, 1).index_select(0, asked)
        if not self.rows.numel():
            return y
        place, p = (self.n_comments, self.own_mask.shape[0]), self.n_posts
        k_own, v_own = heads(spread(kv[n_rows:], self.rows, *place), 2 * n_heads).chunk(2, dim=1)
        rows, posts = (t[self.own_queries] if last else t for t in (self.rows, self.posts))
        layout = RaggedLayout(rows, *place, posts, p, self.post_length)
        targets = attention.joint(q[asked.numel() :], layout, (k[:p], v[:p]), mask[:p], (k_own, v_own), self.own_mask)
        return torch.cat([y, targets])


@dataclass
class Continuation:
    """A decoding step: N rows, each with its newest committed tokens followed by `n_open` queries that are not kept."""

    memory: Memory
    cache: Cache | None  # keys and values of the committed tokens
    n_rows: int
    n_open: int

    def attend(self, attention: BertAttention, q: Tensor, kv: Tensor, index: int, last: bool) -> Tensor:
        """Queries (O, D), keys and values (O, 2·D), O = N · tokens of a row -> (O, D)"""
        layout = DenseLayout(self.n_rows, self.memory.mask.shape[0])
        k, v = heads(layout.to_rows(kv), 2 * attention.n_heads).chunk(2, dim=1)
        if self.cache is not None:
            committed = k.shape[2] - self.n_open
            past = self.cache.update(k[:, :, :committed], v[:, :, :committed], index)
            k, v = (torch.cat([old, new[:, :, committed:]], dim=2) for old, new in zip(past, (k, v)))
        mask = causal_mask(q.unflatten(0, (self.n_rows, 1, -1)), k)
        return attention.joint(q, layout, self.memory.source[index], self.memory.mask, (k, v), mask)


class BertFeedForward(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class BertLayer(nn.Module):
    """x = LN(x + attention(x)); x = LN(x + ffn(x))"""

    def __init__(self, width: int, n_heads: int, inner: int, dropout: float, eps: float):
        super().__init__()
        self.attention = BertAttention(width, n_heads, dropout)
        self.feed_forward = BertFeedForward(width, inner)
        self.norm1, self.norm2 = LayerNorm(width, eps=eps), LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: TokenStream | Continuation, index: int, last: bool = False) -> Tensor:
        """x: (X, D) -> (X, D), or only the wanted tokens (A + B, D) where this is the `last` layer."""
        kv = self.attention.kv(x)
        if last:
            assert isinstance(context, TokenStream)
            x = context.queries(x)
        y = context.attend(self.attention, self.attention.q(x), kv, index, last)
        x = self.norm1(x + self.dropout(self.attention.out(y)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class PredictionHead(nn.Module):
    """BERT's transform before the output layer, and the bias of that layer, whose weight is the token embedding."""

    def __init__(self, width: int, vocab_size: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x)))


class GridEncoder(ImageEncoder):
    """An MLP on every cell of the ResNet's grid; then a layer norm, if the config asks for it, and learned positions."""

    def __init__(self, config: VLPConfig):
        super().__init__(config)
        inner, outer = nn.Linear(self.channels, config.image_ffn), nn.Linear(config.image_ffn, config.d_model)
        self.mlp = nn.Sequential(inner, nn.ReLU(), outer, nn.ReLU(), nn.Dropout(config.dropout))
        self.n_tokens = (grid_side(config.image_size) + 1) ** 2  # there is no pool here
        self.norm = LayerNorm(config.d_model) if config.image_layer_norm else None
        if config.image_positions:
            self.positions = nn.Parameter(torch.zeros(self.n_tokens, config.d_model))

    def tokens(self, grid: Tensor) -> Tensor:
        tokens = self.mlp(grid.flatten(2).transpose(1, 2))
        return tokens if self.norm is None else self.norm(tokens)
