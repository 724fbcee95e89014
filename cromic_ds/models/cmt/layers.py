"""CroMIC-CMT's layers that no other model has: the head of its image encoder, and the encoder layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.common.config import grid_side
from cromic_ds.models.common.image_encoder import BatchNorm, ImageEncoder, set_batch_norm
from cromic_ds.models.common.kernels import LayerNorm
from cromic_ds.models.common.transformer import FeedForward, SelfAttention, heads


class PooledGridEncoder(ImageEncoder):
    """1×1 convolution, 2×2 max-pool with stride 1 (7×7 → 6×6 tokens at 224²), batch norm over the width, then each token
    L2-normalized (the published way) or layer-normed; learned positions if the config asks for them."""

    def __init__(self, config: CMTConfig):
        super().__init__(config)
        width = config.d_model
        self.project = nn.Conv2d(self.channels, width, 1)
        self.batch_norm = BatchNorm(width)
        set_batch_norm(self.batch_norm, config.batch_norm)
        self.norm = LayerNorm(width) if config.image_norm == "layer" else None
        self.n_tokens = grid_side(config.image_size) ** 2
        if config.image_positions:
            self.positions = nn.Parameter(torch.zeros(self.n_tokens, width))

    def tokens(self, grid: Tensor) -> Tensor:
        grid = F.max_pool2d(self.project(grid), 2, stride=1)
        tokens = grid.flatten(2).transpose(1, 2)  # (P, K, D)
        tokens = self.batch_norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return self.norm(tokens) if self.norm is not None else F.normalize(tokens.float(), dim=-1)


class EncoderLayer(nn.Module):
    """x = LN(x + attention(x)); x = LN(x + ffn(x))"""

    def __init__(self, width: int, n_heads: int, inner: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(width, n_heads, dropout)
        self.feed_forward = FeedForward(width, inner)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (P, S, D); mask: (P, 1, 1, S) bool, True where a key may be read."""
        q, k, v = (heads(part, self.attention.n_heads) for part in self.attention.qkv(x).chunk(3, dim=-1))
        x = self.norm1(x + self.dropout(self.attention.out(self.attention.attend(q, k, v, attn_mask=mask))))
        return self.norm2(x + self.dropout(self.feed_forward(x)))
