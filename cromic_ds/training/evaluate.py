"""Score an exported model on a split of a data set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch

from cromic_ds.data.dataset import Dataset, open_dataset
from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.tasks import TASKS
from cromic_ds.training.checkpoint import describe, write_atomically
from cromic_ds.training.decoding import DecodingSettings
from cromic_ds.training.evaluation import predict, score, teacher_forced
from cromic_ds.training.inference import Loaded, load, output_file


@dataclass
class EvaluateSettings(DecodingSettings):
    """A model, the data it is scored on, and how texts are generated."""

    export: str = ""
    """Export folder."""
    data: str = ""
    """Store, or folder in the published layout."""
    split: str = "val"
    """Split to score."""
    out: str | None = None
    """Result file; without it EXPORT/evaluation-SPLIT.json."""
    limit: int = 0
    """Score only the first examples; 0 = all."""
    tokenisation: Literal["char", "jieba", "bert"] = "char"
    """How texts are cut into words: char, jieba or bert."""
    meteor: bool = True
    """Score METEOR as well, where Java is."""
    batch: int = 32
    """Posts in one batch."""
    precision: str = "auto"
    """bf16, fp16, fp32 or auto."""


def evaluate(settings: EvaluateSettings) -> None:
    """`cromic-ds evaluate`: writes the result file and prints the scores."""
    settings.check()
    if not settings.data:
        raise UserError("--data is missing: name the store to score on")
    if settings.batch < 1 or settings.limit < 0:
        raise UserError(f"--batch {settings.batch} must be at least 1 and --limit {settings.limit} at least 0 (all)")
    dataset = open_dataset(settings.data, settings.split)
    out = output_file(Path(settings.out)) if settings.out else None
    result = evaluation(load(settings.export, settings.precision), dataset, settings)
    out = out or Path(settings.export) / f"evaluation-{settings.split}.json"
    write_atomically(out, json.dumps(result, ensure_ascii=False, indent=1))
    for name, value in result["scores"].items():
        print(f"{name:16} {value:.4f}" if isinstance(value, float) else f"{name:16} {value}")
    print(f"written to {out}")


def evaluation(loaded: Loaded, dataset: Dataset, settings: EvaluateSettings) -> dict:
    """Perplexity by teacher forcing, everything else from decoded texts; with all that makes the numbers repeatable.

    Raises:
        UserError: the data was tokenised with another vocabulary than the model's.
    """
    fingerprint = tokenizer_fingerprint(loaded.tokenizer)
    if tokenizer_fingerprint(load_tokenizer(dataset.tokenizer_path)) != fingerprint:
        raise UserError(
            f"{settings.data} was prepared with another tokenizer than the model's: prepare it with "
            f"--tokenizer {loaded.path}"
        )
    limits = {k: loaded.facts[k] for k in ("max_post_tokens", "max_comment_tokens") if k in loaded.facts}
    data = DataSettings(path=settings.data, eval_comments_per_post=0, workers=0, **limits)

    def batches():
        shard = {"micro_batch": settings.batch, "rank": 0, "world_size": 1, "limit": settings.limit}
        return eval_batches(dataset, data, image_size=loaded.image_size, **shard)

    device = loaded.model.device
    torch.manual_seed(0)
    with loaded.running() as model:
        scores = teacher_forced(lambda batch: model(batch.to(device)), batches())
        predictions = predict(model, loaded.tokenizer, batches(), settings)
    scores |= score(TASKS["comments"], dataset, predictions, settings.tokenisation, settings.meteor)
    return {
        "task": "comments",
        "scores": scores,
        "data": {"path": settings.data, "split": settings.split, "fingerprint": dataset.fingerprint},
        "decoding": {f.name: getattr(settings, f.name) for f in fields(DecodingSettings)},
        "model": {"export": settings.export, "weights": weights_fingerprint(loaded.path), **loaded.facts},
        "precision": loaded.precision,
    }


def weights_fingerprint(export: Path) -> str:
    """A hash over all weight files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(export.glob("*.safetensors")):
        digest.update(describe(path)["blake2b"].encode())
    return digest.hexdigest()
