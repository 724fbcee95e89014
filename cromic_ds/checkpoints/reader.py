"""A run's checkpoints on disk: which there are, whether they are whole, and loading one. `saving.py` writes them.

RUN/checkpoints/
    step-00001000/   DeepSpeed's shards, state.json, buffers.safetensors, manifest.json (size and hash of each file)
    latest           the newest step folder's name, swapped atomically
    best             the name of the one with the best evaluation score
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from cromic_ds.checkpoints import universal
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.engine.ema import Ema
from cromic_ds.engine.engine import Engine
from cromic_ds.engine.universal import Layout
from cromic_ds.errors import UserError
from cromic_ds.files import file_digest
from cromic_ds.ranks.collectives import barrier, from_main, gather_objects

log = logging.getLogger(__name__)
MANIFEST, STATE, BUFFERS = "manifest.json", "state.json", "buffers.safetensors"
DAMAGED = "damaged-"  # before the name of a checkpoint that was set aside
STEP_FOLDER = re.compile(r"step-(\d{8})")


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def retire_old(folder: Path, keep_last: int) -> list[Path]:
    """Put aside all checkpoints but the newest `keep_last` and the best; returns what is to be removed.

    Renamed first: a folder with a step's name is always complete, even if removing it is interrupted.
    """
    names = step_names(folder)
    keep = set(names[-max(keep_last, 1) :])
    if (folder / "best").exists():
        keep.add((folder / "best").read_text().strip())
    return [(folder / name).rename(folder / f".writing-old-{name}") for name in names if name not in keep]


def step_names(folder: Path) -> list[str]:
    """Names of the complete checkpoints, oldest first."""
    return sorted(p.name for p in folder.glob("step-*") if STEP_FOLDER.fullmatch(p.name))


def damage(checkpoint: Path, names: list[str] | None = None) -> str | None:
    """What is wrong with a checkpoint's files, or None. `names`: check only these of the manifest's files."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name in sorted(manifest) if names is None else names:
        path = checkpoint / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            size, expected = path.stat().st_size, manifest[name].get("bytes")
            if size != expected:
                return f"{name} has {size} bytes instead of {expected}"
            if file_digest(path) != manifest[name]:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name}: {error}"
    return None


def newest_good(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written, checked by all ranks together; None before the first.

    A damaged one is reported and the one before it tried.

    Raises:
        UserError: there were some and all are damaged; to start again from nothing is not ours to decide.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for name in reversed(from_main(step_names(folder))):
        checkpoint = folder / name
        try:
            files = sorted(json.loads((checkpoint / MANIFEST).read_text()))[rank::world_size]
        except (OSError, ValueError):
            files = None  # damage() says what is wrong
        problems = [p for p in gather_objects(damage(checkpoint, files)) if p]
        if not problems:
            return checkpoint
        log.warning("checkpoint %s is damaged (%s); set aside, trying the one before", checkpoint, problems[0])
        if rank == 0:  # out of the way of the same step's next checkpoint
            aside = folder / f"{DAMAGED}{name}"
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
        barrier()
    if damaged := from_main(sorted(p.name for p in folder.glob(f"{DAMAGED}*"))):
        raise UserError(
            f"no checkpoint in {folder} is whole ({', '.join(damaged)}): put one back and name it as before, or remove "
            f"{folder} to begin anew"
        )
    return None


def load(
    engine: Engine, checkpoint: Path, ema: Ema | None = None, progress: Callable[[], None] = lambda: None
) -> TrainState:
    """Restore weights, optimizer, buffers and state, written by any number of ranks at any ZeRO stage.

    Args:
        progress: called on every rank as a conversion for other ranks or another stage goes on.

    Raises:
        UserError: it cannot be converted for this number of ranks and this stage.
    """
    values = json.loads((checkpoint / STATE).read_text())
    written = Layout(values.pop("world_size"), values.pop("stage", engine.stage))  # old ones do not name the stage
    if written.fits(Layout(dist.get_world_size(), engine.stage)):
        path, _ = engine.deepspeed.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        if path is None:
            raise UserError(f"{checkpoint}: DeepSpeed could not load it (written at another ZeRO stage?)")
    else:
        universal.load(engine, checkpoint, written, progress)
    restore_buffers(engine.model, checkpoint)
    if ema:
        ema.load(checkpoint)
    state = TrainState.from_dict(values)
    if engine.scaler and state.loss_scale:
        engine.scaler.load_state_dict(state.loss_scale)
    return state


@torch.no_grad()
def restore_buffers(model: torch.nn.Module, checkpoint: Path) -> None:
    saved = load_file(checkpoint / BUFFERS)
    for name, buffer in model.named_buffers():
        buffer.copy_(saved[name])
