"""The models by name. A new model is a folder or file beside `cmt/` and one entry in `MODELS`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedTokenizerFast

from cromic_ds.errors import UserError, nearest
from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.cmt.model import CMTModel
from cromic_ds.models.cmt.weights import load_pretrained_cmt
from cromic_ds.models.common.config import CommentConfig, types_of
from cromic_ds.models.common.decoder import CommentDecoder
from cromic_ds.models.common.weights import LoadReport
from cromic_ds.models.vilt.config import ViLTConfig
from cromic_ds.models.vilt.model import ViLTModel
from cromic_ds.models.vilt.weights import load_pretrained_vilt
from cromic_ds.models.vlp.config import VLPConfig
from cromic_ds.models.vlp.model import VLPModel
from cromic_ds.models.vlp.weights import load_pretrained_vlp

CommentModel: TypeAlias = CMTModel | VLPModel | ViLTModel
"""A model of posts and comments, for type checking."""


class ModelKind(NamedTuple):
    config: type[CommentConfig]
    model: type[CommentDecoder]
    load_pretrained: Callable[[nn.Module, str], LoadReport] | None = None  # weights that others trained


MODELS: dict[str, ModelKind] = {
    "cmt": ModelKind(CMTConfig, CMTModel, load_pretrained_cmt),
    "vlp": ModelKind(VLPConfig, VLPModel, load_pretrained_vlp),
    "vilt": ModelKind(ViLTConfig, ViLTModel, load_pretrained_vilt),
}

for kind in MODELS.values():  # so that AutoModel.from_pretrained knows our exports
    AutoConfig.register(kind.config.model_type, kind.config)
    AutoModel.register(kind.config, kind.model)


def model_kind(name: str) -> ModelKind:
    """Return what belongs to a model's name. Raises UserError where there is no such model."""
    if name not in MODELS:
        raise UserError(f"model.name: unknown model {name!r}{nearest(name, MODELS)}; one of {', '.join(MODELS)}")
    return MODELS[name]


def build_config(name: str, preset: str, **overrides: Any) -> CommentConfig:
    """Return the config of a preset with single fields replaced.

    Raises UserError for an unknown model, preset or field, and for a value outside its limits.
    """
    config = model_kind(name).config
    if preset not in config.presets:
        known = ", ".join(config.presets)
        raise UserError(f"model.preset: unknown preset {preset!r}{nearest(preset, config.presets)}; one of {known}")
    return config(**config.presets[preset]).changed(overrides)


def build_model(config: PreTrainedConfig) -> CommentModel:
    """Return a model with random weights for a config made by `build_config` or read from an export."""
    model = next(kind.model for kind in MODELS.values() if isinstance(config, kind.config))
    return cast(CommentModel, model(config))


def vocabulary_of(tokenizer: PreTrainedTokenizerFast, config: type[CommentConfig] | CommentConfig) -> dict[str, Any]:
    """Return the fields of a model's config that follow from its tokenizer."""
    fields = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "decoder_start_token_id": tokenizer.cls_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    known = types_of(config if isinstance(config, type) else type(config))
    return {name: value for name, value in fields.items() if name in known}
