"""FLOPs of a forward pass, for TFLOP/s and MFU: matrix products and convolutions, two per multiply-add."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cromic_ds.batch import Batch


def flops_formula(model: PreTrainedModel) -> Callable[[Batch], float]:
    """A function from a batch to the FLOPs of its forward pass: 2 × weights × tokens, plus attention's products, plus one
    image's convolutions as counted by torch on an empty (meta) copy of the image encoder. Padding does not count."""
    config = model.config
    width = config.d_model
    encoder = weights_of(model.encoder_layers)
    source_projection = weights_of(model.source_projections)
    decoder = weights_of(model.decoder_layers)
    output = weights_of(model.generator)
    image_tokens = model.image_encoder.n_tokens if "v" in config.mode else 0
    image = image_flops(model) if image_tokens else 0

    def forward_flops(batch: Batch) -> float:
        posts, targets = float(batch.weights.sum()), batch.n_targets
        text = int(batch.post_lengths.sum()) if "t" in config.mode else 0
        source = text + posts * image_tokens
        mean_source = source / max(posts, 1)
        rows = max(int((batch.weights[batch.owner] > 0).sum()), 1)
        products = 2 * (encoder + source_projection) * source + 2 * (decoder + output) * targets
        attention = (
            4
            * width
            * (
                config.encoder_layers * source * mean_source
                + config.decoder_layers * targets * (mean_source + targets / rows / 2)
            )
        )
        return posts * image + products + attention

    return forward_flops


def weights_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def image_flops(model: PreTrainedModel) -> int:
    """Of one image, on a copy without storage."""
    with torch.device("meta"):
        encoder = type(model)(model.config).image_encoder
        images = torch.empty(1, 3, model.config.image_size, model.config.image_size)
    with FlopCounterMode(display=False) as counter:
        encoder(images)
    return counter.get_total_flops()
