"""Exporting a checkpoint of a run, written at any ZeRO stage, in the form that `from_pretrained` reads."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from cromic_ds.checkpoints.reader import find_checkpoint
from cromic_ds.data.tokenizer import load_tokenizer
from cromic_ds.engine.zero import full_state_dict
from cromic_ds.errors import UserError
from cromic_ds.files import read_json
from cromic_ds.inference.exports import read_answer_vocabulary, write_export
from cromic_ds.models.registry import build_model
from cromic_ds.run_folder import FACTS, STATE, RunFolder


@dataclass
class ExportSettings:
    """The run, which of its checkpoints, and the folder to write."""

    run: str
    """Run folder."""
    out: str
    """Folder to write."""
    checkpoint: str = "latest"
    """Which checkpoint: latest, best, or a folder name such as step-00001000."""


def export(settings: ExportSettings) -> None:
    """Run `cromic-ds export`."""
    path = export_checkpoint(RunFolder(settings.run), settings.checkpoint, Path(settings.out))
    print(f"exported to {path}")


def export_checkpoint(run: RunFolder, name: str, out: Path) -> Path:
    """Write weights, config, tokenizer and generation settings of one of the run's checkpoints to `out`.

    The weights are the averaged ones if the run averages them.

    Raises:
        UserError: no such checkpoint, a damaged one, or `out` is not an export.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / FACTS).exists():
        raise UserError(f"{out} exists and is no export: name another folder with --out")
    checkpoint = find_checkpoint(run, name)
    model = build_model(AutoConfig.from_pretrained(run.model))
    model.load_state_dict(full_state_dict(checkpoint), strict=True)
    facts = {**read_json(run.model / FACTS), "step": read_json(checkpoint / STATE)["step"]}
    return write_export(model, load_tokenizer(run.model), facts, out, read_answer_vocabulary(run.model))
