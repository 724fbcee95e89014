"""FLOPs of a forward pass, for TFLOP/s and MFU: matrix products and convolutions, two FLOPs per multiply-add.

Each model has a formula of its own (`model.flops_formula()`), which is made of the functions here. Padding does not count.
"""

from typing import NamedTuple, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cromic_ds.batch import Batch


class Load(NamedTuple):
    """Sizes of a batch without the empty posts that fill it up."""

    posts: float
    source: float  # text and image tokens of all posts
    targets: float  # target tokens of all comments
    mean_source: float  # tokens of a post
    mean_own: float  # tokens of its own comment that a target reads, itself included


def load_of(batch: Batch, text: bool, image_tokens: int) -> Load:
    """Return the load of a batch for a model that reads its text, if `text`, and `image_tokens` tokens of each image."""
    posts = float(batch.weights.sum())
    source = int(batch.post_lengths.sum()) * text + posts * image_tokens
    if batch.answer_targets is not None:
        return Load(posts, source, 0, source / max(posts, 1), 0)
    targets = float((batch.weights[batch.owner[batch.rows // (batch.comment_ids.shape[1] - 1)]] > 0).sum())
    comments = max(int((batch.weights[batch.owner] > 0).sum()), 1)
    return Load(posts, source, targets, source / max(posts, 1), targets / comments / 2)


def weights_of(*modules: nn.Module | None) -> int:
    """Return the number of elements of all matrices and convolution kernels: half the FLOPs of a token that passes them."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters() if p.dim() > 1)


def attention_flops(width: int, layers: int, pairs: float) -> float:
    """Return the FLOPs of the scores of `pairs` query-key pairs and of the sums that they weight."""
    return 4 * width * layers * pairs


def image_flops(model: PreTrainedModel) -> int:
    """Return the FLOPs of one image in the image encoder, as torch counts them on a copy without storage; 0 where the model
    reads no images."""
    size = cast(int, model.image_size)
    if not size:
        return 0
    with torch.device("meta"):
        encoder = cast(nn.Module, type(model)(model.config).image_encoder)
        images = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        encoder(images)
    return counter.get_total_flops()
