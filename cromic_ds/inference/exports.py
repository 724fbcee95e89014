"""The files of an export: what `from_pretrained` reads, with the tokenizer and what generation needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cromic_ds.data.tokenizer import load_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.files import digest, file_digest, read_json, write_json
from cromic_ds.inference.decoding import generation_config
from cromic_ds.inference.settings import DecodingSettings
from cromic_ds.run_folder import ANSWERS, FACTS, RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from cromic_ds.models.registry import CommentModel


def read_answer_vocabulary(folder: Path) -> list[str] | None:
    """Return the answers that a model chooses from, None for a model that generates."""
    file = folder / ANSWERS
    return read_json(file) if file.exists() else None


def write_export(
    model: CommentModel,
    tokenizer: PreTrainedTokenizerFast,
    facts: dict[str, Any],
    out: Path,
    answers: list[str] | None = None,
) -> Path:
    """Write an export to a temporary folder, then move it to `out`, in place of an export that is there."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    aside, old = out.with_name(f".{out.name}.writing"), out.with_name(f".{out.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    model.generation_config = generation_config(DecodingSettings(), tokenizer)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    write_json(aside / FACTS, facts, indent=1)
    if answers is not None:
        write_json(aside / ANSWERS, answers)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return out


def find_export(path: str | Path) -> Path:
    """Return `path`, or the export in it if it is a run folder."""
    path = Path(path)
    inner = RunFolder(path).export
    return inner if not (path / "config.json").is_file() and (inner / "config.json").is_file() else path


def load_export(path: str | Path) -> tuple[CommentModel, PreTrainedTokenizerFast, dict[str, Any]]:
    """Return model (in evaluation mode, on the best device), tokenizer and facts. Raise UserError if they cannot be read."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    from cromic_ds.models.registry import MODELS

    disable_progress_bar()  # transformers' own, for each file
    path = Path(path)
    if not (path / "config.json").is_file():
        run, hint = RunFolder(path), ""
        if run.export.is_dir():
            hint = f"; it is a run folder: use {run.export}"
        elif run.checkpoints.is_dir():
            hint = f"; it is a run folder: make one with `cromic-ds export {path} --out FOLDER`"
        raise UserError(f"{path}: no export (no config.json in it){hint}")
    try:
        model, found = AutoModel.from_pretrained(path, output_loading_info=True)
        facts = read_json(path / FACTS) if (path / FACTS).exists() else {}
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as an export ({str(error).strip().splitlines()[0]})") from None
    if not isinstance(model, tuple(kind.model for kind in MODELS.values())):
        raise UserError(f"{path}: no export of ours but a model of type {model.config.model_type!r}")
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{path}: {len(missing)} weights are missing, such as {missing[0]}; export the run again")
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
    return cast("CommentModel", model), load_tokenizer(path), facts


def weights_fingerprint(export: Path) -> str:
    """Return a hash over all weight files."""
    return digest("".join(file_digest(path)["blake2b"] for path in sorted(export.glob("*.safetensors"))), size=16)
