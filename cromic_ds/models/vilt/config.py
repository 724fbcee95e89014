"""The config and the presets of ViLT."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from transformers import ViltConfig

from cromic_ds.errors import UserError
from cromic_ds.models.common.config import CommentConfig, Constant, Count, Derived, ProperShare, Weight, sizes


class ViLTConfig(CommentConfig):
    """Every choice of the model. The defaults are preset `paper`: ViLT-B/32 with CroMIC-CMT's decoder."""

    model_type = "cromic_vilt"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": sizes(128, 4, 4, 256)
        | dict(decoder_layers=2, decoder_heads=4, decoder_ffn=256)
        | dict(image_size=128, position_grid=4, dropout=0.0, embedding_std=0.09),
        "small": sizes(384, 6, 6, 1536)
        | dict(decoder_layers=4, decoder_heads=6, decoder_ffn=1024)
        | dict(position_grid=7, embedding_std=0.05),
        "paper": {},
    }
    fine_tuned: ClassVar[dict[str, Any]] = {"mlm_weight": 0.0, "itm_weight": 0.0}

    image_size: Count = 224
    """Side of the square image crops in pixels, a multiple of `patch_size`."""
    patch_size: Count = 32
    """Side of the image patches in pixels."""
    decoder: Literal["cmt", "prefix"] = "cmt"
    """Part that generates: cmt (CroMIC-CMT's decoder) or prefix (the encoder itself under a prefix mask)."""
    decoder_layers: Count = 6
    """Number of layers of the cmt decoder."""
    mlm_weight: Weight = 1.0
    """Weight of masked language modeling beside the comments; 0 = without it, the default in fine-tuning."""
    itm_weight: Weight = 1.0
    """Weight of image-text matching beside the comments; 0 = without it, the default in fine-tuning."""
    mask_rate: ProperShare = 0.15
    """Share of a post's words that is masked and predicted."""
    swap_rate: ProperShare = 0.5
    """Share of the posts that image-text matching also sees under another post's image."""
    text_positions: Count = 128
    """Number of learned text positions; the 40 of the published checkpoints are the first of them."""
    embedding_std: float = 0.02
    """Standard deviation of all initial embeddings; the other weights start as CroMIC-CMT's."""
    position_grid: Constant[Count] = 12
    """Patches per side that positions are learned for; positions of other grids are interpolated from these."""
    decoder_heads: Constant[Count] = 8
    """Attention heads of the cmt decoder."""
    decoder_ffn: Constant[Count] = 1024
    """Inner width of the cmt decoder's feed-forward blocks."""
    mask_token_id: Derived[int] = 103

    def check(self) -> None:
        super().check()
        if self.image_size % self.patch_size:
            raise UserError(f"model.image_size is {self.image_size}: give a multiple of {self.patch_size} (patch_size)")
        if self.decoder == "cmt" and self.d_model % self.decoder_heads:
            raise UserError(f"model: d_model {self.d_model} is not divisible by decoder_heads {self.decoder_heads}")

    def get_text_config(self, *args: Any, **kwargs: Any) -> ViLTConfig:
        return self  # transformers would take the field `decoder` for a config of its own

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the part that generates; the name is transformers', for its caches."""
        return self.encoder_layers if self.decoder == "prefix" else self.decoder_layers

    def library(self) -> ViltConfig:
        """The same sizes as a config of transformers' ViLT; its image size is that of the learned positions."""
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
