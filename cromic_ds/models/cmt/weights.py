"""Weights of the published CroMIC-CMT code under our names."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from cromic_ds.models.common.weights import LoadReport, Rules, load_translated, read_state_dict, renamed

# torchvision's ResNet as a Sequential: 0 = conv1, 1 = bn1, 4…7 = the stages.
BLOCK = r"image_encoder\.backbone\.(\d)\.(\d+)\."
OUR_BLOCK = r"image_encoder.backbone.encoder.stages.\1.layers.\2."
STEM = "image_encoder.backbone.embedder.embedder"
# (published name, our name); the first match wins. `#` marks a number that `cmt_name` reduces by one.
_RULES: Rules = [
    (r"token_embed\.embedding\.weight", "token_embedding.weight"),
    (r"token_type_embed\.weight", "type_embedding.weight"),
    (r"(encoder|decoder)\.norm\.(\w+)", r"\1_norm.\2"),
    (r"(encoder|decoder)\.layers\.(\d+)\.self_attn\.in_proj_(\w+)", r"\1_layers.\2.attention.qkv.\3"),
    (r"(encoder|decoder)\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)", r"\1_layers.\2.attention.out.\3"),
    (r"decoder\.layers\.(\d+)\.multihead_attn\.out_proj\.(\w+)", r"decoder_layers.\1.cross_attention.out.\2"),
    (r"(encoder|decoder)\.layers\.(\d+)\.linear1\.(\w+)", r"\1_layers.\2.feed_forward.up.\3"),
    (r"(encoder|decoder)\.layers\.(\d+)\.linear2\.(\w+)", r"\1_layers.\2.feed_forward.down.\3"),
    (r"(encoder|decoder)\.layers\.(\d+)\.(norm\d)\.(\w+)", r"\1_layers.\2.\3.\4"),
    (r"image_encoder\.conv2d\.(\w+)", r"image_encoder.project.\1"),
    (r"(image_encoder\.batch_norm\.\w+)", r"\1"),
    (r"vqa_classifier\.(\d)\.(\w+)", r"answer_head.\1.\2"),
    (r"(generator\.\w+)", r"\1"),
    (r"image_encoder\.backbone\.0\.weight", f"{STEM}.convolution.weight"),
    (r"image_encoder\.backbone\.1\.(\w+)", rf"{STEM}.normalization.\1"),
    (BLOCK + r"downsample\.0\.(\w+)", OUR_BLOCK + r"shortcut.convolution.\3"),
    (BLOCK + r"downsample\.1\.(\w+)", OUR_BLOCK + r"shortcut.normalization.\3"),
    (BLOCK + r"conv(\d)\.(\w+)", OUR_BLOCK + r"layer.#\3.convolution.\4"),
    (BLOCK + r"bn(\d)\.(\w+)", OUR_BLOCK + r"layer.#\3.normalization.\4"),
]


def cmt_name(foreign: str) -> str | None:
    """Return the name in `CMTModel` of a parameter or buffer of the published code, or None where it has no place."""
    name = renamed(foreign, _RULES)
    if name is None:
        return None
    name = re.sub(r"stages\.(\d)", lambda m: f"stages.{int(m[1]) - 4}", name)  # backbone.4 is stage 0
    return re.sub(r"#(\d)", lambda m: str(int(m[1]) - 1), name)  # conv1 is layer 0


def translate_cmt(foreign: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under our names, and the names that have no place. A leading `module.` is ignored."""
    ours: dict[str, Tensor] = {}
    extra: list[str] = []
    for full_name, tensor in foreign.items():
        name = full_name.removeprefix("module.")
        cross = re.fullmatch(r"decoder\.layers\.(\d+)\.multihead_attn\.in_proj_(\w+)", name)
        if cross:  # one matrix for q, k, v there; here q, and k and v together, because they have different inputs
            width = tensor.shape[0] // 3
            target = f"decoder_layers.{cross[1]}.cross_attention"
            ours[f"{target}.q.{cross[2]}"] = tensor[:width]
            ours[f"source_projections.{cross[1]}.kv.{cross[2]}"] = tensor[width:]
        elif (mapped := cmt_name(name)) is not None:
            ours[mapped] = tensor
        else:
            extra.append(full_name)
    return ours, extra


def load_cmt_state_dict(model: nn.Module, foreign: Mapping[str, Tensor]) -> LoadReport:
    """Load a state dict of the published code into a `CMTModel`. Raises UserError where nothing of it fits."""
    ours, extra = translate_cmt(foreign)
    return load_translated(model, ours, extra, foreign, "the published CroMIC-CMT model")


def load_pretrained_cmt(model: nn.Module, source: str | Path) -> LoadReport:
    """Load a file of the published code into a `CMTModel`. Raises UserError: not readable, or nothing of it fits."""
    return load_cmt_state_dict(model, read_state_dict(Path(source)))
