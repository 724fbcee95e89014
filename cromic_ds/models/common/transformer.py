"""The post-norm layers of CroMIC-CMT's decoder on ragged tokens, and what other transformers share with them.

Legend: P posts, N rows (comments or beams), T tokens a row, M real tokens, S source tokens, D width, H heads.

The decoder's linear layers run on the M real tokens alone. Only attention needs rectangles, and a layout maps between both:
`rows` for self-attention (N, T), `posts` for cross-attention (P, tokens of a post), where all comments of a post read the same
keys and values, computed once.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from cromic_ds.models.common.kernels import DEFAULT, Kernels, LayerNorm

KeyValue: TypeAlias = tuple[Tensor, Tensor]  # keys and values, (B, H, L, D/H) each


@dataclass
class RaggedLayout:
    """Places of the M real tokens of N comments of different lengths, for training.

    It maps (M, D) to and from rows (N, T, D) and posts (P, post_length, D).
    """

    rows: Tensor  # (M,) positions in the flattened (N, T)
    n_rows: int
    row_length: int
    posts: Tensor  # (M,) positions in the flattened (P, post_length)
    n_posts: int
    post_length: int

    def to_rows(self, x: Tensor) -> Tensor:
        return spread(x, self.rows, self.n_rows, self.row_length)

    def from_rows(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.rows)

    def to_posts(self, x: Tensor) -> Tensor:
        return spread(x, self.posts, self.n_posts, self.post_length)

    def from_posts(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.posts)


@dataclass
class DenseLayout:
    """Places of N rows of equal length, N/P for each post, for decoding with beams or samples."""

    n_rows: int
    n_posts: int

    def to_rows(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.n_rows, -1))

    def from_rows(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    def to_posts(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.n_posts, -1))

    from_posts = from_rows


Layout: TypeAlias = RaggedLayout | DenseLayout


def spread(x: Tensor, index: Tensor, n: int, length: int) -> Tensor:
    """(M, D) -> (n, length, D), zero where no token has its place. Each place is written once, so it is deterministic."""
    return x.new_zeros(n * length, x.shape[-1]).index_copy(0, index, x).unflatten(0, (n, length))


def heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, L, D) -> (B, H, L, D/H)"""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def unheads(x: Tensor) -> Tensor:
    """(B, H, L, D/H) -> (B, L, D)"""
    return x.transpose(1, 2).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Attention(nn.Module):
    kernels: Kernels = DEFAULT

    def __init__(self, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **mask: Any) -> Tensor:
        """Heads of queries, keys and values (B, H, L, D/H) -> (B, L, D). `mask`: `attn_mask` or `is_causal`."""
        return unheads(self.kernels.attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, **mask))


class SelfAttention(Attention):
    def __init__(self, width: int, n_heads: int, dropout: float):
        super().__init__(n_heads, dropout)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)


class CrossAttention(Attention):
    """Queries from the target; its keys and values come from a `SourceProjection`."""

    def __init__(self, width: int, n_heads: int, dropout: float):
        super().__init__(n_heads, dropout)
        self.q = nn.Linear(width, width)
        self.out = nn.Linear(width, width)


class SourceProjection(nn.Module):
    """The cross-attention keys and values of a decoder layer, computed once per post for all of its comments and steps.

    It is not a part of the layer, because ZeRO-3 gathers a module's weights when it is called: this one with the encoder.
    """

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, memory: Tensor) -> KeyValue:
        """(P, S, D) -> keys and values, each (P, H, S, D/H)"""
        k, v = (heads(part, self.n_heads) for part in self.kv(memory).chunk(2, dim=-1))
        if torch.is_grad_enabled():
            return k, v
        return k.contiguous(), v.contiguous()  # read again at every decoding step


class DecoderLayer(nn.Module):
    """x = LN(x + self-attention(x)); x = LN(x + cross-attention(x, memory)); x = LN(x + ffn(x))"""

    def __init__(self, width: int, n_heads: int, inner: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(width, n_heads, dropout)
        self.cross_attention = CrossAttention(width, n_heads, dropout)
        self.feed_forward = FeedForward(width, inner)
        self.norm1, self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, layout: Layout, source: KeyValue, source_mask: Tensor, cache: Cache | None, index: int
    ) -> Tensor:
        """Return x (M, D) after the layer.

        Args:
            source: this layer's keys and values of the posts; source_mask: (P, 1, 1, S) bool, True where a key may be read.
            cache: past keys and values of the target, this layer's at `index`.
        """
        n_heads = self.attention.n_heads
        q, k, v = (heads(part, n_heads) for part in layout.to_rows(self.attention.qkv(x)).chunk(3, dim=-1))
        if cache is not None:
            k, v = cache.update(k, v, index)
        # Comments are padded on the right, so a causal mask alone keeps real tokens from reading padding.
        mask: dict[str, Any] = {"is_causal": True} if q.shape[2] == k.shape[2] else {"attn_mask": causal_mask(q, k)}
        y = layout.from_rows(self.attention.attend(q, k, v, **mask))
        x = self.norm1(x + self.dropout(self.attention.out(y)))
        q = heads(layout.to_posts(self.cross_attention.q(x)), n_heads)
        y = layout.from_posts(self.cross_attention.attend(q, *source, attn_mask=source_mask))
        x = self.norm2(x + self.dropout(self.cross_attention.out(y)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


def causal_mask(q: Tensor, k: Tensor) -> Tensor | None:
    """Return the mask of queries that continue a cached prefix, where the last query reads every key; None for one query."""
    if q.shape[2] == 1:
        return None
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
