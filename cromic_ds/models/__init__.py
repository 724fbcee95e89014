"""The models, by name. A new one is a file beside `cmt.py` and a line in `MODELS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from cromic_ds.errors import UserError, nearest
from cromic_ds.models.cmt import PRESETS as CMT_PRESETS
from cromic_ds.models.cmt import CMTConfig, CMTModel
from cromic_ds.models.image_encoder import BATCH_NORM_MODES, grid_side


class ModelKind(NamedTuple):
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    presets: dict[str, dict]


MODELS: dict[str, ModelKind] = {"cmt": ModelKind(CMTConfig, CMTModel, CMT_PRESETS)}

for kind in MODELS.values():  # so that AutoModel.from_pretrained knows our exports
    AutoConfig.register(kind.config.model_type, kind.config)
    AutoModel.register(kind.config, kind.model)


@dataclass
class ModelSettings:
    """What is trained, and from which weights."""

    name: str = "cmt"
    """Model: cmt (CroMIC-CMT)."""
    preset: str = "small"
    """Sizes to start from: tiny, small, paper (the published 119 M parameters), large or xl (1.2 G). The settings below
    override single fields of the preset where they are given."""
    init_from: str | None = None
    """Start from the weights of this export or run folder, as far as they fit, instead of random ones; its sizes replace
    the preset's."""
    image_encoder: str | None = None
    """Start the ResNet from this ResNetModel folder or hub name (ImageNet weights, say)."""
    mode: str | None = None
    """What the encoder reads: t+v (text and image), v or t."""
    batch_norm: str | None = None
    """Batch norm of the image encoder: frozen (statistics never change; independent of how the batch is split), batch
    (each micro-batch's own, the published way) or sync (each micro-batch's over all ranks)."""
    image_size: int | None = None
    """Side of the square image crops in pixels."""
    image_norm: str | None = None
    """Image tokens: layer (layer norm, balanced with the text) or l2 (unit length, the published way)."""
    image_positions: bool | None = None
    """Learned positions on the image tokens (the published model has none)."""
    embedding_std: float | None = None
    """Standard deviation of the initial token embeddings: 0.02 balanced, 1 published."""
    d_model: int | None = None
    """Width of the transformer."""
    encoder_layers: int | None = None
    """Encoder layers."""
    decoder_layers: int | None = None
    """Decoder layers."""
    n_heads: int | None = None
    """Attention heads."""
    ffn: int | None = None
    """Inner width of the feed-forward blocks."""
    dropout: float | None = None
    """Dropout probability (0 as published)."""
    label_smoothing: float | None = None
    """Share of each target's probability spread over all tokens, in training only (0 as published)."""
    freeze_image_encoder: bool = False
    """Leave the image encoder as it is, its batch norm statistics included."""

    def overrides(self) -> dict:
        chosen = {k: v for k, v in vars(self).items() if v is not None}
        return {k: v for k, v in chosen.items() if k not in NO_OVERRIDES}


NO_OVERRIDES = ("name", "preset", "init_from", "image_encoder", "freeze_image_encoder")
CHOICES = {"mode": ("t+v", "v", "t"), "batch_norm": BATCH_NORM_MODES, "image_norm": ("layer", "l2")}


def build_config(name: str, preset: str, **overrides) -> PreTrainedConfig:
    """The config of a preset, with single fields overridden.

    Raises:
        UserError: unknown model, preset, field or value.
    """
    if name not in MODELS:
        raise UserError(f"model.name: unknown model {name!r}{nearest(name, MODELS)}; one of {', '.join(MODELS)}")
    kind = MODELS[name]
    if preset not in kind.presets:
        known = ", ".join(kind.presets)
        raise UserError(f"model.preset: unknown preset {preset!r}{nearest(preset, kind.presets)}; one of {known}")
    return changed_config(kind.config(**kind.presets[preset]), overrides)


def changed_config(config: PreTrainedConfig, overrides: dict) -> PreTrainedConfig:
    """A copy with single fields overridden.

    Raises:
        UserError: unknown field or value.
    """
    for key, value in overrides.items():
        if not hasattr(config, key):
            raise UserError(f"model.{key}: {config.model_type} has no such setting")
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(
                f"model.{key}: {value!r}{nearest(str(value), CHOICES[key])}; one of {', '.join(CHOICES[key])}"
            )
    config = type(config)(**{**config.to_dict(), **overrides})
    for key in ("d_model", "n_heads", "ffn", "encoder_layers", "decoder_layers"):
        if getattr(config, key) < 1:
            raise UserError(f"model.{key} is {getattr(config, key)}: give at least 1")
    if not 0 <= config.dropout < 1:
        raise UserError(f"model.dropout is {config.dropout}: give a probability below 1")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"model.label_smoothing is {config.label_smoothing}: give a share below 1")
    if grid_side(config.image_size) < 1:
        raise UserError(f"model.image_size is {config.image_size}: too small for one image token; give at least 33")
    if config.d_model % config.n_heads:
        raise UserError(f"model: d_model {config.d_model} is not divisible by n_heads {config.n_heads}")
    return config


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights for a config made by `build_config` or read from an export."""
    return next(kind.model for kind in MODELS.values() if isinstance(config, kind.config))(config)
