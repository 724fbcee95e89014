"""The models. Importing this package makes transformers' AutoConfig and AutoModel know them."""

from cromic_ds.models.registry import MODELS, build_config, build_model

__all__ = ["MODELS", "build_config", "build_model"]
