"""A run's checkpoint as an export: what `from_pretrained` reads, from any ZeRO stage."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from cromic_ds.data.tokenizer import load_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.models import MODELS, build_model
from cromic_ds.training import checkpoint as checkpoints
from cromic_ds.training.decoding import DecodingSettings, generation_config
from cromic_ds.training.ema import EMA_FILE

log = logging.getLogger(__name__)
disable_progress_bar()  # transformers': a bar for each file read or written
MODEL_FOLDER = "model"  # RUN/model: the config and the tokenizer, written at the start of a run
ANSWERS = "answers.json"  # the answer vocabulary of a model that classifies
FACTS = "cromic_ds.json"  # what an export knows beside transformers' files


@dataclass
class ExportSettings:
    """A run, which of its checkpoints, and where to."""

    run: str
    """Run folder."""
    out: str
    """Folder to write."""
    checkpoint: str = "latest"
    """Which checkpoint: latest, best, or a folder name such as step-00001000."""


def export(settings: ExportSettings) -> None:
    """`cromic-ds export`."""
    path = export_checkpoint(Path(settings.run), settings.checkpoint, Path(settings.out))
    print(f"exported to {path}")


def find_checkpoint(run: Path, name: str) -> Path:
    """The checkpoint that `name` (latest, best or a step folder) stands for.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = run / "checkpoints"
    names = checkpoints.step_names(folder)
    if not names:
        raise UserError(f"{run}: no checkpoint in it; is it a run folder, and has the run saved yet?")
    if name in ("latest", "best"):
        pointer = folder / name
        if not pointer.exists():
            raise UserError(f"{folder}: no {name!r} checkpoint; there are {', '.join(names)}")
        name = pointer.read_text().strip()
    if name not in names:
        raise UserError(f"{folder}: no checkpoint {name!r}; there are {', '.join(names)}")
    if problem := checkpoints.damage(folder / name):
        raise UserError(f"{folder / name} is damaged: {problem}; name another with --checkpoint ({', '.join(names)})")
    return folder / name


def full_state_dict(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All weights and buffers in fp32, put together from the ranks' shards; averaged weights where there are any."""
    if list(checkpoint.glob("*optim_states.pt")):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it prints a lot
            state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    else:  # stage 0: every rank holds all weights
        state = torch.load(checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)["module"]
    if (checkpoint / EMA_FILE).exists():
        state |= load_file(checkpoint / EMA_FILE)
    return {**state, **load_file(checkpoint / "buffers.safetensors")}


def export_checkpoint(run: Path, name: str, out: Path) -> Path:
    """Write safetensors, config, tokenizer and generation settings of one of the run's checkpoints to `out`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / FACTS).exists():
        raise UserError(f"{out} exists and is no export: name another folder with --out")
    checkpoint = find_checkpoint(run, name)
    model = build_model(AutoConfig.from_pretrained(run / MODEL_FOLDER))
    model.load_state_dict(full_state_dict(checkpoint), strict=True)
    facts = json.loads((run / MODEL_FOLDER / FACTS).read_text())
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    answers = read_answers(run / MODEL_FOLDER)
    return write_export(model, load_tokenizer(run / MODEL_FOLDER), {**facts, "step": step}, out, answers)


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
