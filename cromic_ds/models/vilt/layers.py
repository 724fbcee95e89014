"""Parts of ViLT, made from transformers' ViLT: patches, a layer that reads a shared source, the head for masked words.

Legend: P posts, N comments, K image tokens, S source tokens, M comment tokens, H heads, D width.
"""

import torch
from torch import Tensor, nn
from transformers import Cache, ViltConfig
from transformers.models.vilt.modeling_vilt import ViltLayer, ViltPatchEmbeddings, ViltPredictionHeadTransform

from cromic_ds.models.common.kernels import DEFAULT, Kernels
from cromic_ds.models.common.transformer import KeyValue, Layout, RaggedLayout, heads, spread, unheads


class PatchEncoder(nn.Module):
    """(P, 3, H, W) -> (P, K, D): an image [CLS] and the patches row by row, with positions, before the transformer.

    The learned positions form a square grid and are interpolated to the image's grid, as in transformers' `ViltEmbeddings`.
    That class also shuffles the patches and measures the padding of each image, which square crops of one size do not need.
    """

    def __init__(self, sizes: ViltConfig, image_size: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.hidden_size))
        self.patch_embeddings = ViltPatchEmbeddings(sizes)
        n_positions = 1 + self.patch_embeddings.num_patches
        self.position_embeddings = nn.Parameter(torch.zeros(1, n_positions, sizes.hidden_size))
        assert isinstance(sizes.image_size, int) and isinstance(sizes.patch_size, int)
        self.grid = sizes.image_size // sizes.patch_size
        self.n_tokens = 1 + (image_size // sizes.patch_size) ** 2
        self.dropout = nn.Dropout(sizes.hidden_dropout_prob)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.patch_embeddings(normalize_symmetric(images))  # (P, D, h, w)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
        return self.dropout(x + self.positions(*grid.shape[2:]))

    def positions(self, height: int, width: int) -> Tensor:
        """Return (1, 1 + height·width, D), bilinear with aligned corners; made of two matrix products, because on GPUs the
        gradient of torch's own interpolation differs from run to run."""
        if (height, width) == (self.grid, self.grid):
            return self.position_embeddings
        cls, learned = self.position_embeddings.split([1, self.grid**2], dim=1)
        learned = learned.unflatten(1, (self.grid, self.grid))
        rows, columns = (resizing(self.grid, n).to(learned) for n in (height, width))
        return torch.cat([cls, torch.einsum("ya,xb,nabd->nyxd", rows, columns, learned).flatten(1, 2)], dim=1)


def normalize_symmetric(images: Tensor) -> Tensor:
    """uint8 -> float32 with mean and deviation 0.5, so from -1 to 1. Float input is returned unchanged."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images


def resizing(n_from: int, n_to: int) -> Tensor:
    """Return the matrix (n_to, n_from) that interpolates a row of values linearly and keeps its ends."""
    places = torch.linspace(0, n_from - 1, n_to)
    return (1 - (places[:, None] - torch.arange(n_from)).abs()).clamp_min(0)


class PrefixLayer(ViltLayer):
    """x = x + attention(LN(x)); x = x + ffn(LN(x)), on posts or on the comments that read them."""

    kernels: Kernels = DEFAULT

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        layout: Layout | None = None,
        source: KeyValue | None = None,
        cache: Cache | None = None,
        index: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's output, and its keys and values (P, H, S', D/H).

        Args:
            x: (P, S, D) posts, or (M, D) comment tokens where there is a `layout`.
            mask: True where a key may be read: (P, 1, 1, S) for posts, the result of `prefix_mask` for comments.
            source: keys and values of the posts in this layer, (P, H, S, D/H) each; comments read them beside their own.
            cache: past keys and values of the comments, this layer's at `index`.
        """
        projections, y = self.attention.attention, self.layernorm_before(x)
        q, k, v = projections.query(y), projections.key(y), projections.value(y)
        n_heads = projections.num_attention_heads
        if layout is None or source is None:
            q, k, v = (heads(part, n_heads) for part in (q, k, v))
        else:
            q = heads(layout.to_posts(q), n_heads)
            if cache is None:
                k, v = (heads(layout.to_posts(part), n_heads) for part in (k, v))
            else:
                k, v = cache.update(heads(layout.to_rows(k), n_heads), heads(layout.to_rows(v), n_heads), index)
                # (N, H, T, D/H), N/P rows of each post -> (P, H, N/P·T, D/H)
                k, v = (t.unflatten(0, (layout.n_posts, -1)).transpose(1, 2).flatten(2, 3) for t in (k, v))
            k, v = (torch.cat(pair, dim=2) for pair in zip(source, (k, v)))
        y = unheads(self.kernels.attention(q, k, v, attn_mask=mask))
        x = x + self.attention.output(y if layout is None else layout.from_posts(y), x)
        return self.output(self.intermediate(self.layernorm_after(x)), x), k, v


def prefix_mask(layout: Layout, source_mask: Tensor, n_tokens: int, past: int) -> Tensor:
    """Return what each comment token may read: its post, and its own comment up to itself.

    All comments of a post are in one row behind the post's tokens, so that the post is neither copied nor computed again. The
    mask grows with the square of a post's comment tokens; with some hundred tokens it is small.

    Args:
        source_mask: (P, 1, 1, S) bool; n_tokens: M, of all comments; past: tokens of each comment that are in the cache.

    Returns:
        (P, 1, tokens of a post's comments, S + keys of these comments) bool, True where a key may be read.
    """
    device = source_mask.device
    if isinstance(layout, RaggedLayout):
        number = 1 + layout.rows[:, None] // layout.row_length
        comment = spread(number, layout.posts, layout.n_posts, layout.post_length)
        own = (comment == comment.transpose(1, 2)).tril()  # a place without a token has number 0, which no token reads
    else:
        same_row = torch.eye(layout.n_rows // layout.n_posts, dtype=torch.bool, device=device)
        length = n_tokens // layout.n_rows
        not_after = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)
        own = (same_row[:, None, :, None] & not_after[:, None]).flatten(2).flatten(0, 1)[None]
    own = own[:, None].expand(layout.n_posts, -1, -1, -1)
    return torch.cat([source_mask.expand(-1, -1, own.shape[2], -1), own], dim=-1)


class MaskedWordHead(nn.Module):
    """BERT's transform before the output layer, and the bias of that layer, whose weight is the word embedding."""

    def __init__(self, sizes: ViltConfig):
        super().__init__()
        self.transform = ViltPredictionHeadTransform(sizes)
        self.bias = nn.Parameter(torch.zeros(sizes.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x)
