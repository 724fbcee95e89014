"""Exports: what `from_pretrained` reads, with the tokenizer and what generation needs."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cromic_ds.data.tokenizer import load_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.inference.decoding import DecodingSettings, generation_config
from cromic_ds.models.registry import MODELS

log = logging.getLogger(__name__)


MODEL_FOLDER = "model"  # RUN/model: the config and the tokenizer, written at the start of a run


ANSWERS = "answers.json"  # the answer vocabulary of a model that classifies


FACTS = "cromic_ds.json"  # what an export knows beside transformers' files


def read_answers(folder: Path) -> list[str] | None:
    """The answer vocabulary of an export, None for a model that generates."""
    file = folder / ANSWERS
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def write_export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: dict,
    out: Path,
    answers: list[str] | None = None,
) -> Path:
    """Write an export aside, then move it into place."""
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    model.generation_config = generation_config(DecodingSettings(), tokenizer)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / FACTS).write_text(json.dumps(facts, indent=1))
    if answers is not None:
        (aside / ANSWERS).write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return out


def export_of(path: str | Path) -> Path:
    """The export that `path` is, or that a run folder holds."""
    path = Path(path)
    inner = path / "export"
    return inner if not (path / "config.json").is_file() and (inner / "config.json").is_file() else path


def load_export(path: str | Path) -> tuple[PreTrainedModel, object, dict]:
    """Model (in evaluation mode, on the best device), tokenizer and facts of an export.

    Raises:
        UserError: it is no export, or a damaged one.
    """
    from transformers import AutoModel

    path = Path(path)
    if not (path / "config.json").is_file():
        hint = f"; it is a run folder: use {path / 'export'}" if (path / "export").is_dir() else ""
        if (path / "checkpoints").is_dir() and not hint:
            hint = f"; it is a run folder: make one with `cromic-ds export {path} --out FOLDER`"
        raise UserError(f"{path}: no export (no config.json in it){hint}")
    try:
        model, found = AutoModel.from_pretrained(path, output_loading_info=True)
        facts = json.loads((path / FACTS).read_text()) if (path / FACTS).exists() else {}
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as an export ({str(error).strip().splitlines()[0]})") from None
    if not isinstance(model, tuple(kind.model for kind in MODELS.values())):
        raise UserError(f"{path}: no export of ours but a model of type {model.config.model_type!r}")
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{path}: {len(missing)} weights are missing, such as {missing[0]}; export the run again")
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return model, load_tokenizer(path), facts
