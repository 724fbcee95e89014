"""DeepSpeed's universal checkpoint format, one file per tensor: writing it from a checkpoint, and loading it on any ranks.

DeepSpeed cuts the ranks' shards into one file per weight and Adam moment, and loads those on any number of ranks. This module
adds what its loader leaves out: a change of the ZeRO stage, stage 0 on either side, frozen weights, the settings of the
parameter groups (at stage 3 it gives all groups those of the first one) and the type of Adam's step.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import DeepSpeedCheckpoint
from deepspeed.checkpoint.constants import FROZEN_PARAM_FRAGMENTS, PARAM, PARAM_SHAPES, UNIVERSAL_CHECKPOINT_INFO
from deepspeed.checkpoint.ds_to_universal import extract_zero_shards, extract_zero_shards_stage3, merge_tp_slices

from cromic_ds.engine.engine import Engine
from cromic_ds.engine.zero import held, shard_of
from cromic_ds.ranks.collectives import gather_objects

T = TypeVar("T")
log = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq")
SECONDS_BETWEEN_REPORTS = 10
COUNTS = ("global_steps", "global_samples", "skipped_steps", "mp_world_size", "dp_world_size")


class Layout(NamedTuple):
    """How a checkpoint is split over files."""

    world_size: int
    stage: int

    def __str__(self) -> str:
        return f"{self.world_size} rank{'s' * (self.world_size != 1)} at ZeRO stage {self.stage}"

    def fits(self, other: Layout) -> bool:
        """Return whether DeepSpeed loads a checkpoint of one layout into the other. At stage 0 one file contains everything."""
        return self == other or self.stage == other.stage == 0


class ConversionFailed(Exception):
    """A conversion failed on one of the ranks; it is raised on all of them."""


def write_universal(
    engine: Engine, checkpoint: Path, written: Layout, folder: Path, progress: Callable[[], None]
) -> None:
    """Write folder/zero/NAME/{fp32,exp_avg,exp_avg_sq}.pt of each trained weight, and the files that DeepSpeed reads first."""
    shapes = {name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in engine.model.named_parameters()}
    names, pieces, zero = trained_names(engine), folder / "pieces", folder / "zero"

    def join(name: str) -> None:
        merge_tp_slices({}, str(zero), str(pieces), 1, (name, [shapes[name]]))
        shutil.rmtree(pieces / name)  # so that the disk never contains everything twice

    if written.stage == 0:
        saved = load_lazily(checkpoint / model_file(0))
        share_out("weights", list(enumerate(names)), lambda item: write_stage_0(saved, *item, zero), progress)
    else:
        share_out("shards", range(written.world_size), shard_cutter(checkpoint, written, pieces), progress)
        share_out("weights", names, join, progress)
    share_out("Adam's step", [None], lambda _: write_common(engine, checkpoint, written, folder), progress)


def shard_cutter(checkpoint: Path, written: Layout, pieces: Path) -> Callable[[int], None]:
    """Return a function that cuts the shard of one of the ranks that wrote the checkpoint into pieces/NAME/0/STATE.RANK."""
    if written.stage == 3:
        optimizers = [str(checkpoint / optimizer_file(rank)) for rank in range(written.world_size)]
        shapes = load_lazily(checkpoint / model_file(3))[PARAM_SHAPES]
        n, to = written.world_size, str(pieces)
        return lambda rank: extract_zero_shards_stage3([optimizers], [shapes], n, to, (0, rank))
    source = DeepSpeedCheckpoint(str(checkpoint))
    source.global_state[UNIVERSAL_CHECKPOINT_INFO] = {}  # only models with tensor parallelism have an entry here
    return lambda rank: extract_zero_shards(str(pieces), source, (0, 0, rank))


def write_stage_0(saved: dict[str, Any], index: int, name: str, zero: Path) -> None:
    """Write the files of one weight from a checkpoint of stage 0. `index`: its place in the optimizer."""
    weight, state = saved["module"][name], saved["optimizer"]["state"].get(index, {})
    (zero / name).mkdir(parents=True)
    for key, value in {"fp32": weight, **{k: state.get(k, torch.zeros_like(weight)) for k in MOMENTS}}.items():
        torch.save({PARAM: value.clone()}, zero / name / f"{key}.pt")  # a view would save all of its file


def write_common(engine: Engine, checkpoint: Path, written: Layout, folder: Path) -> None:
    """Write the two files that DeepSpeed's loaders read beside those of the weights.

    The groups contain no settings, so they keep this run's; some optimizers count their steps there.
    """
    saved = load_lazily(checkpoint / model_file(written.stage))
    torch.save({name: saved[name] for name in COUNTS}, folder / model_file(engine.stage))
    step = adam_step(checkpoint, written)
    groups = [{"step": step} for _ in engine.deepspeed.basic_optimizer.param_groups]
    adam = {"state": {0: {"step": step}}, "param_groups": groups}
    common = {"ds_version": deepspeed.__version__, "param_groups": groups, "optimizer_state_dict": adam}
    torch.save(common, folder / "zero" / "optimizer_state.pt")


def adam_step(checkpoint: Path, written: Layout) -> int:
    """Return the number of Adam's updates so far; skipped steps are not counted."""
    if written.stage == 0:
        adam = load_lazily(checkpoint / model_file(0))["optimizer"]
    else:
        zero = load_lazily(checkpoint / optimizer_file(0))["optimizer_state_dict"]
        adam = zero["optimizer_state_dict" if written.stage == 3 else "base_optimizer_state"]
    state = next(iter(adam["state"].values()), {})
    return int(state["step"] if "step" in state else adam["param_groups"][0].get("step", 0))


def model_file(stage: int, rank: int = 0) -> str:
    """Return DeepSpeed's name for the file of a rank's weights and counters; below stage 3 only rank 0 writes one."""
    return f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"


def optimizer_file(rank: int) -> str:
    """Return DeepSpeed's name for the file of a rank's optimizer state."""
    return f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def share_out(what: str, items: Sequence[T], work: Callable[[T], None], progress: Callable[[], None]) -> None:
    """Call `work` for each item, on one of the ranks. Collective; raises ConversionFailed on every rank once one has failed."""
    rank, world_size, reported = dist.get_rank(), dist.get_world_size(), time.monotonic()
    for first in range(0, len(items), world_size):
        problem = None
        try:
            for item in items[first + rank : first + rank + 1]:
                work(item)
        except Exception as error:  # of any kind: the other ranks must learn of it
            problem = f"{what}: {type(error).__name__}: {error}"
        if problems := [p for p in gather_objects(problem) if p]:
            raise ConversionFailed(problems[0].splitlines()[0])
        progress()
        if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS:
            log.info("converting: %d of %d %s", min(first + world_size, len(items)), len(items), what)
            reported = time.monotonic()


def load_lazily(path: Path) -> dict[str, Any]:
    """Return the content of a file of DeepSpeed's; its tensors are read when they are used."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def load_universal(engine: Engine, folder: Path) -> None:
    """Restore trained weights and optimizer state, at any stage and on any number of ranks. Collective."""
    step = int(load_lazily(folder / "zero" / "optimizer_state.pt")["param_groups"][0]["step"])
    adam = engine.deepspeed.basic_optimizer
    if engine.stage == 0:
        for name, p in zip(trained_names(engine), [p for group in adam.param_groups for p in group["params"]]):
            values = {key: load_lazily(folder / "zero" / name / f"{key}.pt")[PARAM] for key in ("fp32", *MOMENTS)}
            p.data.copy_(values.pop("fp32"))
            adam.state[p] = {key: value.to(p, copy=True) for key, value in values.items()}
    else:
        its_log = logging.getLogger("DeepSpeed")
        level = its_log.level
        its_log.setLevel(logging.ERROR)  # it warns for each group that there is no tensor parallelism
        engine.deepspeed._config.load_universal_checkpoint = True
        try:
            engine.deepspeed.load_checkpoint(str(folder.parent), tag=folder.name)
        finally:
            engine.deepspeed._config.load_universal_checkpoint = False
            its_log.setLevel(level)
    fused = adam.param_groups[0].get("fused")
    for p, state in adam.state.items():
        # torch counts steps in a tensor, on the device for its fused kernel; the other implementations use an int.
        counter = torch.tensor(float(step), device=p.device if fused else "cpu")
        state["step"] = counter if isinstance(adam, torch.optim.AdamW) else step


@torch.no_grad()
def restore_frozen(engine: Engine, checkpoint: Path, written: Layout) -> None:
    """Restore the frozen weights, which DeepSpeed's universal loader does not touch."""
    frozen = {name: p for name, p in engine.model.named_parameters() if not p.requires_grad}
    if not frozen:
        return
    ranks = range(written.world_size) if written.stage == 3 else ()
    shards = [load_lazily(checkpoint / model_file(3, rank))[FROZEN_PARAM_FRAGMENTS] for rank in ranks]
    whole = {} if shards else load_lazily(checkpoint / model_file(written.stage))["module"]
    for name, p in frozen.items():
        shape = torch.Size(getattr(p, "ds_shape", p.shape))
        if shards:  # flattened; the last one is padded at its end
            value = torch.cat([shard[name].flatten() for shard in shards])[: shape.numel()].view(shape)
        else:
            value = whole[name]
        held(p).copy_(shard_of(value, p).view_as(held(p)))


def trained_names(engine: Engine) -> list[str]:
    """Return the names of the trained weights, in the order of the optimizer's groups."""
    zero = engine.deepspeed.optimizer
    if engine.stage == 0:
        groups = [group["params"] for group in zero.param_groups]
    else:
        groups = zero.fp16_groups if engine.stage == 3 else zero.bit16_groups
    names = {id(p): name for name, p in engine.model.named_parameters()}
    return [names[id(p)] for group in groups for p in group]
