"""The config and the presets of CroMIC-CMT."""

from typing import Any, ClassVar, Literal

from cromic_ds.models.common.config import (
    RESNET50,
    SMALL_RESNET,
    TINY_RESNET,
    Count,
    ResNetCommentConfig,
    ShareBelowOne,
    sizes,
)

BALANCED = dict(image_norm="layer", image_positions=True, embedding_std=0.02, batch_norm="frozen")


class CMTConfig(ResNetCommentConfig):
    """Every choice of the model. The defaults are preset `paper`."""

    model_type = "cromic_cmt"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": BALANCED
        | sizes(128, 2, 4, 256)
        | dict(decoder_layers=2, resnet=TINY_RESNET, image_size=112, embedding_std=0.09),
        "small": BALANCED | sizes(384, 4, 6, 1024) | dict(decoder_layers=4, resnet=SMALL_RESNET),
        "paper": {},
        "large": BALANCED
        | sizes(1024, 12, 16, 4096)
        | dict(decoder_layers=12, resnet=RESNET50 | {"depths": [3, 4, 23, 3]}),
        "xl": BALANCED
        | sizes(1536, 16, 24, 6144)
        | dict(decoder_layers=16, resnet=RESNET50 | {"depths": [3, 8, 36, 3]}),
    }

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
