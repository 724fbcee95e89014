"""Foreign weights for Unified VLP: BERT's from transformers, and the layout of the published checkpoints.

The published names are those of `BertForPreTrainingLossMask` in the authors' code: a BERT under `bert.` and `cls.`, an MLP
`vis_embed` on image features, `vis_pe_embed` on the boxes of detected regions, and `ans_classifier`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BertForMaskedLM

from cromic_ds.errors import UserError
from cromic_ds.models.common.weights import LoadReport, Rules, load_translated, read_state_dict, renamed

LAYER = r"(?:bert\.)?encoder\.layer\.(\d+)\."
# (foreign name, ours); the first match wins. `vis_pe_embed` has no place: a grid has no boxes.
RULES: Rules = [
    (r"(?:bert\.)?embeddings\.word_embeddings\.weight", "token_embedding.weight"),
    (r"(?:bert\.)?embeddings\.position_embeddings\.weight", "position_embedding.weight"),
    (r"(?:bert\.)?embeddings\.token_type_embeddings\.weight", "type_embedding.weight"),
    (r"(?:bert\.)?embeddings\.LayerNorm\.(\w+)", r"embedding_norm.\1"),
    (LAYER + r"attention\.self\.query\.(\w+)", r"encoder_layers.\1.attention.q.\2"),
    (LAYER + r"attention\.output\.dense\.(\w+)", r"encoder_layers.\1.attention.out.\2"),
    (LAYER + r"attention\.output\.LayerNorm\.(\w+)", r"encoder_layers.\1.norm1.\2"),
    (LAYER + r"intermediate\.dense\.(\w+)", r"encoder_layers.\1.feed_forward.up.\2"),
    (LAYER + r"output\.dense\.(\w+)", r"encoder_layers.\1.feed_forward.down.\2"),
    (LAYER + r"output\.LayerNorm\.(\w+)", r"encoder_layers.\1.norm2.\2"),
    (r"cls\.predictions\.transform\.dense\.(\w+)", r"head.dense.\1"),
    (r"cls\.predictions\.transform\.LayerNorm\.(\w+)", r"head.norm.\1"),
    (r"cls\.predictions\.(?:decoder\.)?bias", "head.bias"),
    (r"cls\.predictions\.decoder\.weight", "token_embedding.weight"),  # tied
    (r"vis_embed\.([02])\.(\w+)", r"image_encoder.mlp.\1.\2"),
    (r"ans_classifier\.([02])\.(\w+)", r"answer_head.\1.\2"),
]
KEY_OR_VALUE = re.compile(LAYER + r"attention\.self\.(key|value)\.(\w+)")
# The published code optionally has a projection for each task: two directions, left to right, right to left, seq2seq.
SEQ2SEQ_TASK = 3


def translate_vlp(foreign: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under our names, and the names that have no place. A leading `module.` is ignored."""
    ours: dict[str, Tensor] = {}
    extra: list[str] = []
    halves: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for full_name, tensor in foreign.items():
        name = full_name.removeprefix("module.")
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # as the first BERTs were saved
        if match := KEY_OR_VALUE.fullmatch(name):
            place = f"encoder_layers.{match[1]}.attention.kv.{match[3]}"
            halves.setdefault(place, {})[match[2]] = (full_name, tensor)
        elif (mapped := renamed(name, RULES)) is None or (mapped in ours and not torch.equal(ours[mapped], tensor)):
            extra.append(full_name)
        else:
            ours[mapped] = tensor
    for place, both in halves.items():
        if len(both) == 2:
            ours[place] = torch.cat([both["key"][1], both["value"][1]])
        else:
            extra += [name for name, _ in both.values()]
    return ours, extra


def fit(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors at the model's sizes where the published code defines how to bring them there."""
    own, fitted = model.state_dict(), dict(weights)
    types, positions = fitted.get("type_embedding.weight"), fitted.get("position_embedding.weight")
    if types is not None and len(types) == 2 < len(own["type_embedding.weight"]):
        # A plain BERT has two segments: in each mode its 0 becomes the source's, its 1 the comment's.
        of_comments = {segments[-1] for segments in cast(Any, model.config).segments.values()}
        rows = [int(i in of_comments) for i in range(len(own["type_embedding.weight"]))]
        fitted["type_embedding.weight"] = types[rows]
    if positions is not None:
        fitted["position_embedding.weight"] = positions[: len(own["position_embedding.weight"])]
    for name in ("head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias"):
        if name in fitted and len(fitted[name]) == 4 * len(own[name]):
            fitted[name] = fitted[name].chunk(4)[SEQ2SEQ_TASK]
    return fitted


def load_vlp_state_dict(model: nn.Module, foreign: Mapping[str, Tensor]) -> LoadReport:
    """Load the state dict of a BERT or of a published Unified VLP. Raises UserError where nothing of it fits."""
    ours, extra = translate_vlp(foreign)
    return load_translated(model, fit(model, ours), extra, foreign, "a Unified VLP of these sizes")


def load_pretrained_vlp(model: nn.Module, source: str | Path) -> LoadReport:
    """Load a published checkpoint (a file), or a BertModel or BertForMaskedLM (a folder or hub name).

    Raises UserError where it is not readable, no BERT, or nothing of it fits.
    """
    if Path(source).is_file():
        return load_vlp_state_dict(model, read_state_dict(Path(source)))
    try:
        bert, found = cast(Any, BertForMaskedLM).from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source}: cannot be read as a BERT ({str(error).strip().splitlines()[0]})") from None
    absent = set(found["missing_keys"])  # a BertModel has no head, and transformers fills in random weights
    if any(name.startswith("bert.") for name in absent):
        raise UserError(f"{source}: no BERT of transformers: it has no {min(absent)}")
    # The output layer's weight is the embedding, and its bias is the head's, under any name in the file.
    headless = any(name.startswith("cls.predictions.transform") for name in absent)
    weights = bert.state_dict()
    if headless:
        absent |= {name for name in weights if name.startswith("cls.")}
    return load_vlp_state_dict(model, {name: weight for name, weight in weights.items() if name not in absent})
