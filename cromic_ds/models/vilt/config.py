"""Settings and presets of ViLT."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedConfig, ViltConfig

from cromic_ds.errors import UserError


class ViLTConfig(PreTrainedConfig):
    """Every choice of the model. The defaults are preset `paper`: ViLT-B/32 with CroMIC-CMT's decoder."""

    model_type = "cromic_vilt"
    fine_tuned: ClassVar = {"mlm_weight": 0.0, "itm_weight": 0.0}  # in fine-tuning, unless told otherwise

    vocab_size: int = 21128
    d_model: int = 768
    encoder_layers: int = 12
    n_heads: int = 12
    ffn: int = 3072
    dropout: float = 0.1
    mode: str = "t+v"
    image_size: int = 224  # a multiple of patch_size
    patch_size: int = 32
    position_grid: int = 12  # patches a side that positions are learned for; others are interpolated from them
    text_positions: int = 128  # the published checkpoints' 40 are the first of them
    embedding_std: float = 0.02  # of every embedding at the start; the other weights start as CroMIC-CMT's
    decoder: str = "cmt"  # or prefix
    decoder_layers: int = 6  # these three of the cmt decoder
    decoder_heads: int = 8
    decoder_ffn: int = 1024
    mlm_weight: float = 1.0  # of masked language modeling; 0 = without
    itm_weight: float = 1.0  # of image-text matching; 0 = without
    mask_rate: float = 0.15  # of the posts' words
    swap_rate: float = 0.5  # of the posts
    n_answers: int = 0
    label_smoothing: float = 0.0
    is_encoder_decoder: bool = True
    pad_token_id: int = 0
    bos_token_id: int = 101
    eos_token_id: int = 102
    mask_token_id: int = 103
    decoder_start_token_id: int = 101
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        """Raises UserError for values that do not go together."""
        super().__post_init__(**kwargs)
        if self.image_size % self.patch_size or self.image_size < self.patch_size:
            raise UserError(f"model.image_size is {self.image_size}: give a multiple of {self.patch_size} (patch_size)")
        if self.decoder == "cmt" and self.d_model % self.decoder_heads:
            raise UserError(f"model: d_model {self.d_model} is not divisible by decoder_heads {self.decoder_heads}")
        for name in ("mlm_weight", "itm_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name} is {getattr(self, name)}: give 0 or more")
        for name in ("mask_rate", "swap_rate"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: give a share between 0 and 1")

    def get_text_config(self, *args, **kwargs) -> ViLTConfig:
        return self  # transformers would take the field `decoder` for a config of its own

    @property
    def num_hidden_layers(self) -> int:
        """Of the part that generates: transformers' name, for its caches."""
        return self.encoder_layers if self.decoder == "prefix" else self.decoder_layers

    def library(self) -> ViltConfig:
        """The same sizes as transformers' ViLT has them; its image size is that of the learned positions."""
        return ViltConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            num_hidden_layers=self.encoder_layers,
            num_attention_heads=self.n_heads,
            intermediate_size=self.ffn,
            hidden_dropout_prob=self.dropout,
            image_size=self.position_grid * self.patch_size,
            patch_size=self.patch_size,
            max_position_embeddings=self.text_positions,
            pad_token_id=self.pad_token_id,
        )


PRESETS: dict[str, dict] = {
    "tiny": {
        **{"d_model": 128, "encoder_layers": 4, "n_heads": 4, "ffn": 256, "dropout": 0.0, "embedding_std": 0.09},
        **{"image_size": 128, "position_grid": 4},
        **{"decoder_layers": 2, "decoder_heads": 4, "decoder_ffn": 256},
    },
    "small": {
        **{"d_model": 384, "encoder_layers": 6, "n_heads": 6, "ffn": 1536, "embedding_std": 0.05, "position_grid": 7},
        **{"decoder_layers": 4, "decoder_heads": 6, "decoder_ffn": 1024},
    },
    "paper": {},
}
