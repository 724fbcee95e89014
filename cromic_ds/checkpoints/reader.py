"""Reading a run's checkpoints: which ones exist, whether they are complete, and loading one. `writer.py` writes them.

RUN/checkpoints/
    step-00001000/   DeepSpeed's shards, state.json, buffers.safetensors, manifest.json (size and hash of each file)
    latest           the name of the newest step folder, replaced atomically
    best             the name of the one with the best evaluation score
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from cromic_ds.checkpoints.convert import load_converted
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.engine.ema import Ema
from cromic_ds.engine.engine import Engine
from cromic_ds.engine.universal import Layout
from cromic_ds.errors import UserError
from cromic_ds.files import file_digest, read_json
from cromic_ds.ranks.collectives import barrier, from_main, gather_objects
from cromic_ds.run_folder import BUFFERS, MANIFEST, STATE, RunFolder

log = logging.getLogger(__name__)


def find_checkpoint(run: RunFolder, name: str) -> Path:
    """Return the folder of the checkpoint `name`: latest, best, or a step folder's name.

    Raises:
        UserError: it does not exist or is damaged.
    """
    names = run.step_names()
    if not names:
        raise UserError(f"{run}: no checkpoint in it; is it a run folder, and has the run saved yet?")
    if name in ("latest", "best"):
        pointer = run.latest if name == "latest" else run.best
        if not pointer.exists():
            raise UserError(f"{run.checkpoints}: no {name!r} checkpoint; there are {', '.join(names)}")
        name = pointer.read_text().strip()
    if name not in names:
        raise UserError(f"{run.checkpoints}: no checkpoint {name!r}; there are {', '.join(names)}")
    checkpoint = run.checkpoints / name
    if problem := damage(checkpoint):
        raise UserError(f"{checkpoint} is damaged: {problem}; name another with --checkpoint ({', '.join(names)})")
    return checkpoint


def damage(checkpoint: Path, names: list[str] | None = None) -> str | None:
    """Return what is wrong with a checkpoint's files, or None. `names`: check only these of the manifest's files."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
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


def newest_good(run: RunFolder) -> Path | None:
    """Return the newest checkpoint whose files are all as they were written, or None before the first checkpoint.

    Collective: each rank checks a part of the files. A damaged checkpoint is reported and set aside, and the one before it is
    checked.

    Raises:
        UserError: there were checkpoints and all are damaged. Only the user can decide to start from the beginning.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for name in reversed(from_main(run.step_names())):
        checkpoint = run.checkpoints / name
        try:
            files = sorted(read_json(checkpoint / MANIFEST))[rank::world_size]
        except (OSError, ValueError):
            files = None  # damage() reports the reason
        problems = [p for p in gather_objects(damage(checkpoint, files)) if p]
        if not problems:
            return checkpoint
        log.warning("checkpoint %s is damaged (%s); set aside, trying the one before", checkpoint, problems[0])
        if rank == 0:  # the next checkpoint of the same step needs the name
            shutil.rmtree(run.damaged(name), ignore_errors=True)
            checkpoint.rename(run.damaged(name))
        barrier()
    if damaged := from_main(run.damaged_names()):
        raise UserError(
            f"no checkpoint in {run.checkpoints} is whole ({', '.join(damaged)}): restore one under its former name, or remove "
            f"{run.checkpoints} to start from the beginning"
        )
    return None


def load_checkpoint(
    engine: Engine, checkpoint: Path, ema: Ema | None = None, progress: Callable[[], None] = lambda: None
) -> TrainState:
    """Restore weights, optimizer, buffers and state, written by any number of ranks at any ZeRO stage.

    Args:
        progress: called on every rank during a conversion for another number of ranks or another stage.

    Raises:
        UserError: it cannot be converted for this number of ranks and this stage.
    """
    values = read_json(checkpoint / STATE)
    written = Layout(
        values.pop("world_size"), values.pop("stage", engine.stage)
    )  # old checkpoints do not name the stage
    if written.fits(Layout(dist.get_world_size(), engine.stage)):
        path, _ = engine.deepspeed.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        if path is None:
            raise UserError(f"{checkpoint}: DeepSpeed could not load it (written at another ZeRO stage?)")
    else:
        load_converted(engine, checkpoint, written, progress)
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
