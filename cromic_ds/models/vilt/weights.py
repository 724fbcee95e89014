"""Weights of transformers' ViLT checkpoints (dandelin/vilt-b32-mlm and the like) for our ViLT."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, ViltConfig, ViltForMaskedLM, ViltForQuestionAnswering, ViltModel

from cromic_ds.errors import UserError
from cromic_ds.models.common.weights import LoadReport, Rules, load_translated, renamed

# (transformers' name without `vilt.`, our name); the first match wins.
_RULES: Rules = [
    (r"embeddings\.text_embeddings\.(.+)", r"text_embeddings.\1"),
    (r"embeddings\.token_type_embeddings\.weight", "type_embedding.weight"),
    (r"embeddings\.(.+)", r"image_encoder.\1"),
    (r"encoder\.layer\.(.+)", r"encoder_layers.\1"),
    (r"layernorm\.(\w+)", r"encoder_norm.\1"),
    (r"(pooler\..+)", r"\1"),
    (r"mlm_score\.(transform\..+)", r"masked_word_head.\1"),
    (r"mlm_score\.decoder\.bias", "masked_word_head.bias"),
    (r"mlm_score\.decoder\.weight", "text_embeddings.word_embeddings.weight"),  # tied
    (r"classifier\.(\d\.\w+)", r"answer_head.\1"),
]
# Tables whose first rows mean the same in a longer one: positions; text and image (a third type is a second image).
BY_ROWS = ("text_embeddings.position_embeddings.weight", "type_embedding.weight")


def vilt_name(foreign: str) -> str | None:
    """Return the name in `ViLTModel` of a parameter of transformers' ViLT, or None where it has no place."""
    return renamed(foreign.removeprefix("vilt."), _RULES)


def load_vilt_state_dict(model: nn.Module, foreign: Mapping[str, Tensor]) -> LoadReport:
    """Load a state dict of transformers' ViLT into a `ViLTModel`. Raises UserError where nothing of it fits."""
    ours: dict[str, Tensor] = {}
    extra = []
    for name, tensor in foreign.items():
        if (mapped := vilt_name(name)) is None:
            extra.append(name)
        else:
            ours.setdefault(mapped, tensor)
    own, partly = model.state_dict(), []
    for name in BY_ROWS:
        there = ours.get(name)
        if there is not None and there.shape[1:] == own[name].shape[1:] and len(there) != len(own[name]):
            n = min(len(there), len(own[name]))
            ours[name] = own[name].clone()
            ours[name][:n] = there[:n]
            partly.append(f"{name}: the first {n} rows of {len(there)} there, {len(own[name])} here")
    report = load_translated(model, ours, extra, foreign, "a ViLT of these sizes")
    report.mismatched += partly
    return report


def load_pretrained_vilt(model: nn.Module, source: str | Path) -> LoadReport:
    """Load a ViltModel, ViltForMaskedLM or ViltForQuestionAnswering from a folder or the hub.

    Raises UserError where it is not readable, no ViLT, or nothing of it fits.
    """
    classes = {kind.__name__: kind for kind in (ViltModel, ViltForMaskedLM, ViltForQuestionAnswering)}
    try:
        config = AutoConfig.from_pretrained(source)
        if not isinstance(config, ViltConfig):
            raise UserError(f"{source}: no ViLT of transformers but a model of type {config.model_type!r}")
        kind = classes.get((config.architectures or [""])[0], ViltModel)
        vilt, found = cast(Any, kind).from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source}: cannot be read as a ViLT ({str(error).strip().splitlines()[0]})") from None
    absent = set(found["missing_keys"])  # transformers fills these in with random weights
    report = load_vilt_state_dict(model, {name: t for name, t in vilt.state_dict().items() if name not in absent})
    report.extra += sorted(found["unexpected_keys"])  # names in the file that these classes do not have
    return report
