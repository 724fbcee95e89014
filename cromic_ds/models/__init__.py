"""The models, by name. A new one is a file beside `cmt.py` and a line in `MODELS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from cromic_ds.errors import UserError, nearest
from cromic_ds.models.cmt import PRESETS as CMT_PRESETS
from cromic_ds.models.cmt import CMTConfig, CMTModel
from cromic_ds.models.image_encoder import grid_side
from cromic_ds.models.published import LoadReport, load_published, read_state_dict
from cromic_ds.models.settings import AT_LEAST_ONE, BELOW_ONE, CHOICES, UP_TO_ONE, ModelSettings
from cromic_ds.models.vilt import PRESETS as VILT_PRESETS
from cromic_ds.models.vilt import ViLTConfig, ViLTModel
from cromic_ds.models.vilt_weights import load_pretrained as load_vilt
from cromic_ds.models.vlp import PRESETS as VLP_PRESETS
from cromic_ds.models.vlp import VLPConfig, VLPModel
from cromic_ds.models.vlp_weights import load_pretrained as load_vlp

__all__ = ["MODELS", "ModelKind", "ModelSettings", "build_config", "build_model", "changed_config"]


class ModelKind(NamedTuple):
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    presets: dict[str, dict]
    load: Callable[[PreTrainedModel, str], LoadReport] | None = None  # published weights of this architecture


def load_cmt(model: CMTModel, source: str) -> LoadReport:
    return load_published(model, read_state_dict(Path(source)))


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
