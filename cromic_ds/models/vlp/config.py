"""The config and the presets of Unified VLP."""

from typing import Any, ClassVar, Literal

from cromic_ds.models.common.config import (
    SMALL_RESNET,
    TINY_RESNET,
    Constant,
    Count,
    Derived,
    ResNetCommentConfig,
    Share,
    sizes,
)

SEGMENTS = {"seq2seq": [4, 4, 5], "bidirectional": [0, 0, 1]}  # of image, post and comment


class VLPConfig(ResNetCommentConfig):
    """Every choice of the model. The defaults are preset `paper`: BERT-base."""

    model_type = "cromic_vlp"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": sizes(128, 4, 4, 512)
        | dict(image_size=112, image_ffn=256, image_layer_norm=True, batch_norm="frozen", resnet=TINY_RESNET)
        | dict(dropout=0.0, initializer_range=0.09),
        "small": sizes(384, 8, 6, 1536) | dict(image_ffn=768, batch_norm="frozen", resnet=SMALL_RESNET),
        "paper": {},
    }
    attribute_map: ClassVar = {"num_hidden_layers": "encoder_layers"}  # for transformers' caches

    objective: Literal["masked", "causal"] = "masked"
    """Training on comments: masked (predict masked tokens) or causal (predict every token from those before it)."""
    mask_rate: Share = 0.15
    """Share of a comment's tokens that is masked and predicted, [SEP] included; at least one token."""
    bidirectional_rate: Share = 0.25
    """Share of the comments that are read in both directions; the others are read from left to right."""
    image_layer_norm: bool = False
    """Apply a layer norm to the image tokens before their positions are added, and start these positions as large as it
    makes the tokens (the published model has no such norm)."""
    image_positions: bool = True
    """Give the image learned positions of its own; otherwise it uses those of the sequence."""
    max_positions: Count = 512
    """Number of learned positions, for image, post and comment together."""
    image_ffn: Count = 1536
    """Inner width of the MLP on the image grid."""
    mask_token_rate: Constant[Share] = 0.8
    """Share of the tokens to predict that become [MASK]."""
    random_token_rate: Constant[Share] = 0.1
    """Share of the tokens to predict that become a random token; the rest stay as they are."""
    layer_norm_eps: Constant[float] = 1e-12
    """Number that layer norms add to the variance."""
    initializer_range: Constant[float] = 0.02
    """Standard deviation of the initial weights."""
    type_vocab_size: Constant[Count] = 6
    """Number of learned segments."""
    segments: Constant[dict[str, list[int]] | None] = None
    """Segments of image, post and comment, for `seq2seq` and for `bidirectional`."""
    answer_segments: Constant[Literal["seq2seq", "bidirectional"]] = "seq2seq"
    """Mode whose segments a post has when its answer is classified."""
    mask_token_id: Derived[int] = 103
    tie_word_embeddings: Derived[bool] = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.segments = self.segments or SEGMENTS
        super().__post_init__(**kwargs)
