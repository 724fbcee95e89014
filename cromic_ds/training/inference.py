"""An export ready to be used: model on the best device in the right precision, with the settings it was trained with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cromic_ds.errors import UserError
from cromic_ds.models.kernels import KernelSettings, install, select
from cromic_ds.training.distributed import device
from cromic_ds.training.export import load_export
from cromic_ds.training.precision import AUTOCAST, choose_precision


@dataclass
class Loaded:
    """A model to generate and score with."""

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: dict  # of the export: token limits, tokenizer fingerprint, step
    precision: str

    @property
    def image_size(self) -> int:
        """Side of the crops in pixels; 0 where the model reads no images."""
        return self.model.image_size

    @contextlib.contextmanager
    def running(self) -> Iterator[PreTrainedModel]:
        """The model without gradients and under autocast."""
        enabled = self.precision in AUTOCAST
        dtype = getattr(torch, AUTOCAST.get(self.precision, "bfloat16"))
        with torch.inference_mode(), torch.autocast(self.model.device.type, dtype=dtype, enabled=enabled):
            yield self.model


def output_file(path: Path) -> Path:
    """Make the folder of a file that will be written, before any work is done for it.

    Raises:
        UserError: the folder cannot be made, or the path is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file")
    return path


def load(path: str, precision: str = "auto") -> Loaded:
    """Raises UserError where `path` is no export or the precision does not work here."""
    chosen = choose_precision(precision, device())
    model, tokenizer, facts = load_export(path)
    install(model, select(KernelSettings(), device()))
    return Loaded(Path(path), model, tokenizer, facts, chosen)
