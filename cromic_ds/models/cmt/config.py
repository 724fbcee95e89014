"""Settings and presets of CroMIC-CMT."""

from __future__ import annotations

from transformers import PreTrainedConfig

RESNET50 = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
}


class CMTConfig(PreTrainedConfig):
    """Every choice of the model. The defaults are preset `paper`."""

    model_type = "cromic_cmt"

    vocab_size: int = 21128
    d_model: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    n_heads: int = 8
    ffn: int = 1024
    dropout: float = 0.0
    mode: str = "t+v"
    image_size: int = 224
    resnet: dict | None = None
    image_norm: str = "l2"
    image_positions: bool = False
    embedding_std: float = 1.0
    batch_norm: str = "batch"
    n_answers: int = 0
    label_smoothing: float = 0.0
    is_encoder_decoder: bool = True
    pad_token_id: int = 0
    bos_token_id: int = 101
    eos_token_id: int = 102
    decoder_start_token_id: int = 101
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.resnet = self.resnet or RESNET50
        super().__post_init__(**kwargs)


BALANCED = {"image_norm": "layer", "image_positions": True, "embedding_std": 0.02, "batch_norm": "frozen"}


PRESETS: dict[str, dict] = {
    "tiny": {
        **BALANCED,
        **{
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "n_heads": 4,
            "ffn": 256,
            "image_size": 112,
            "embedding_std": 0.09,
        },
        "resnet": {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64, 128],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        },
    },
    "small": {
        **BALANCED,
        **{"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "n_heads": 6, "ffn": 1024},
        "resnet": {
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 128, 256],
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
        },
    },
    "paper": {},
    "large": {
        **BALANCED,
        **{"d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "n_heads": 16, "ffn": 4096},
        "resnet": {**RESNET50, "depths": [3, 4, 23, 3]},
    },
    "xl": {
        **BALANCED,
        **{"d_model": 1536, "encoder_layers": 16, "decoder_layers": 16, "n_heads": 24, "ffn": 6144},
        "resnet": {**RESNET50, "depths": [3, 8, 36, 3]},
    },
}
