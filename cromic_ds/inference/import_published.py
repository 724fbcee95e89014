"""A checkpoint of the published CroMIC-CMT code as an export."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.inference.exports import write_export
from cromic_ds.models.cmt.config import CMTConfig
from cromic_ds.models.cmt.weights import load_cmt_state_dict
from cromic_ds.models.common.weights import read_state_dict
from cromic_ds.models.registry import build_config, build_model, vocabulary_of


@dataclass
class ImportSettings:
    """The checkpoint, its tokenizer, and where to."""

    state_dict: str
    """The published code's .pt file: a state dict, or a dict that holds one."""
    tokenizer: str
    """The tokenizer it was trained with: vocab.txt, folder or hub name (bert-base-chinese)."""
    out: str
    """Export folder to write."""
    mode: str = "t+v"
    """What the encoder reads: t+v, v or t."""


def import_published(settings: ImportSettings) -> None:
    """`cromic-ds import-published`: writes the export and lists every name that did not fit.

    Raises:
        UserError: no state dict of that code, weights missing, or a vocabulary of another size.
    """
    out = Path(settings.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: name another one with --out")
    weights = read_state_dict(Path(settings.state_dict))
    names = {re.sub(r"^module\.", "", name): tensor for name, tensor in weights.items()}
    if "token_embed.embedding.weight" not in names:
        raise UserError(
            f"{settings.state_dict}: no published CroMIC-CMT checkpoint (no token_embed.embedding.weight among "
            f"{len(names)} names, such as {', '.join(list(names)[:2])})"
        )
    tokenizer = load_tokenizer(settings.tokenizer)
    vocab_size, n_answers = names["token_embed.embedding.weight"].shape[0], 0
    if "vqa_classifier.3.weight" in names:
        n_answers = names["vqa_classifier.3.weight"].shape[0]
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"{settings.tokenizer} has {len(tokenizer)} tokens and the checkpoint {vocab_size}: name the tokenizer it was "
            "trained with (bert-base-chinese has 21128)"
        )
    config = build_config(
        "cmt", "paper", mode=settings.mode, n_answers=n_answers, **vocabulary_of(tokenizer, CMTConfig)
    )
    model = build_model(config)
    report = load_cmt_state_dict(model, weights)
    print(report)
    if report.missing or report.mismatched:
        raise UserError(f"{settings.state_dict}: incomplete (listed above); nothing was written")
    facts = {"max_post_tokens": 40, "max_comment_tokens": 25, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    write_export(model, tokenizer, facts, out)
    print(f"written to {out}")
