"""The models, by name. A new one is a file beside `cmt.py` and a line in `MODELS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cromic_ds.errors import UserError, nearest
from cromic_ds.models.cmt.config import PRESETS as CMT_PRESETS
from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.cmt.model import CMTModel
from cromic_ds.models.cmt.weights import load_cmt
from cromic_ds.models.common.image_encoder import grid_side
from cromic_ds.models.common.weights import LoadReport
from cromic_ds.models.settings import AT_LEAST_ONE, BELOW_ONE, CHOICES, UP_TO_ONE, ModelSettings
from cromic_ds.models.vilt.config import PRESETS as VILT_PRESETS
from cromic_ds.models.vilt.config import ViLTConfig
from cromic_ds.models.vilt.model import ViLTModel
from cromic_ds.models.vilt.weights import load_pretrained as load_vilt
from cromic_ds.models.vlp.config import PRESETS as VLP_PRESETS
from cromic_ds.models.vlp.config import VLPConfig
from cromic_ds.models.vlp.model import VLPModel
from cromic_ds.models.vlp.weights import load_pretrained as load_vlp

__all__ = ["MODELS", "ModelKind", "ModelSettings", "build_config", "build_model", "changed_config"]


class ModelKind(NamedTuple):
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    presets: dict[str, dict]
    load: Callable[[PreTrainedModel, str], LoadReport] | None = None  # published weights of this architecture


MODELS: dict[str, ModelKind] = {
    "cmt": ModelKind(CMTConfig, CMTModel, CMT_PRESETS, load_cmt),
    "vlp": ModelKind(VLPConfig, VLPModel, VLP_PRESETS, load_vlp),
    "vilt": ModelKind(ViLTConfig, ViLTModel, VILT_PRESETS, load_vilt),
}

for kind in MODELS.values():  # so that AutoModel.from_pretrained knows our exports
    AutoConfig.register(kind.config.model_type, kind.config)
    AutoModel.register(kind.config, kind.model)


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
    given = config.to_dict()
    for key in AT_LEAST_ONE:
        if given.get(key, 1) < 1:
            raise UserError(f"model.{key} is {given[key]}: give at least 1")
    for key in BELOW_ONE:
        if not 0 <= given.get(key, 0) < 1:
            raise UserError(f"model.{key} is {given[key]}: give 0 or more, below 1")
    for key in UP_TO_ONE:
        if not 0 <= given.get(key, 0) <= 1:
            raise UserError(f"model.{key} is {given[key]}: give a share from 0 to 1")
    if "resnet" in given and grid_side(config.image_size) < 1:
        raise UserError(f"model.image_size is {config.image_size}: too small for one image token; give at least 33")
    if config.d_model % config.n_heads:
        raise UserError(f"model: d_model {config.d_model} is not divisible by n_heads {config.n_heads}")
    return config


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights for a config made by `build_config` or read from an export."""
    return next(kind.model for kind in MODELS.values() if isinstance(config, kind.config))(config)


def vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, config: type[PreTrainedConfig] | PreTrainedConfig
) -> dict[str, int]:
    """The fields of a model's config that follow from its tokenizer."""
    fields = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "decoder_start_token_id": tokenizer.cls_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    return {name: value for name, value in fields.items() if hasattr(config, name)}
