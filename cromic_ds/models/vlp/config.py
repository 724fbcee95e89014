"""Settings and presets of Unified VLP."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedConfig

from cromic_ds.models.cmt.config import PRESETS as CMT_PRESETS
from cromic_ds.models.cmt.config import RESNET50

SEGMENTS = {"seq2seq": [4, 4, 5], "bidirectional": [0, 0, 1]}  # of image, post, comment


class VLPConfig(PreTrainedConfig):
    """Every choice of the model. The defaults are preset `paper`: BERT-base."""

    model_type = "cromic_vlp"
    attribute_map: ClassVar = {"num_hidden_layers": "encoder_layers"}  # for transformers' caches

    vocab_size: int = 21128
    d_model: int = 768
    encoder_layers: int = 12
    n_heads: int = 12
    ffn: int = 3072
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    mode: str = "t+v"
    image_size: int = 224
    resnet: dict | None = None
    image_ffn: int = 1536  # inner width of the MLP on the image grid
    image_positions: bool = True  # learned ones of the image's own; else the sequence's
    image_layer_norm: bool = False  # and positions that start as large as it makes the tokens
    batch_norm: str = "batch"
    max_positions: int = 512
    type_vocab_size: int = 6
    segments: dict | None = None
    objective: str = "masked"  # or causal: the next token, seq2seq mask only
    mask_rate: float = 0.15  # of a comment's target tokens, [SEP] included; at least one
    mask_token_rate: float = 0.8  # of those: become [MASK]
    random_token_rate: float = 0.1  # of those: become a random token; the rest stay
    bidirectional_rate: float = 0.25  # of the comments
    n_answers: int = 0
    answer_segments: str = "seq2seq"  # the mode whose segments a post has when its answer is classified
    label_smoothing: float = 0.0
    is_encoder_decoder: bool = True
    pad_token_id: int = 0
    bos_token_id: int = 101
    eos_token_id: int = 102
    mask_token_id: int = 103
    decoder_start_token_id: int = 101
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        self.resnet = self.resnet or RESNET50
        self.segments = self.segments or SEGMENTS
        super().__post_init__(**kwargs)


PRESETS: dict[str, dict] = {
    "tiny": {
        **{"d_model": 128, "encoder_layers": 4, "n_heads": 4, "ffn": 512, "image_size": 112, "image_ffn": 256},
        **{"dropout": 0.0, "initializer_range": 0.09, "image_layer_norm": True, "batch_norm": "frozen"},
        "resnet": CMT_PRESETS["tiny"]["resnet"],
    },
    "small": {
        **{"d_model": 384, "encoder_layers": 8, "n_heads": 6, "ffn": 1536, "image_ffn": 768, "batch_norm": "frozen"},
        "resnet": CMT_PRESETS["small"]["resnet"],
    },
    "paper": {},
}
