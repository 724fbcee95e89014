"""A run's checkpoint as an export: what `from_pretrained` reads, from any ZeRO stage."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from cromic_ds.checkpoints import reader as checkpoints
from cromic_ds.data.tokenizer import load_tokenizer
from cromic_ds.engine.zero import full_state_dict
from cromic_ds.errors import UserError
from cromic_ds.inference.exports import FACTS, MODEL_FOLDER, read_answers, write_export
from cromic_ds.models.registry import build_model

log = logging.getLogger(__name__)
disable_progress_bar()  # transformers': a bar for each file read or written


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
