"""The config and the presets of CroMIC-CMT."""

from __future__ import annotations

from typing import Any, Literal

from cromic_ds.models.common.config import (
    RESNET50,
    SMALL_RESNET,
    TINY_RESNET,
    Count,
    ResNetCommentConfig,
    ShareBelowOne,
)


class CMTConfig(ResNetCommentConfig):
    """Every choice of the model. The defaults are preset `paper`."""

    model_type = "cromic_cmt"

    encoder_layers: Count = 6
    decoder_layers: Count = 6
    """Number of decoder layers."""
    n_heads: Count = 8
    ffn: Count = 1024
    dropout: ShareBelowOne = 0.0
    image_norm: Literal["layer", "l2"] = "l2"
    """Normalization of image tokens: layer (layer norm, balanced with the text) or l2 (unit length, the published way)."""
    image_positions: bool = False
    """Add learned positions to the image tokens (the published model has none)."""
    embedding_std: float = 1.0
    """Standard deviation of the initial token embeddings: 0.02 is balanced with the image, 1 as published."""


BALANCED = {"image_norm": "layer", "image_positions": True, "embedding_std": 0.02, "batch_norm": "frozen"}


def _sizes(d_model: int, layers: int, n_heads: int, ffn: int, resnet: dict[str, Any]) -> dict[str, Any]:
    return {
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "n_heads": n_heads,
        "ffn": ffn,
        "resnet": resnet,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": BALANCED | _sizes(128, 2, 4, 256, TINY_RESNET) | {"image_size": 112, "embedding_std": 0.09},
    "small": BALANCED | _sizes(384, 4, 6, 1024, SMALL_RESNET),
    "paper": {},
    "large": BALANCED | _sizes(1024, 12, 16, 4096, RESNET50 | {"depths": [3, 4, 23, 3]}),
    "xl": BALANCED | _sizes(1536, 16, 24, 6144, RESNET50 | {"depths": [3, 8, 36, 3]}),
}
