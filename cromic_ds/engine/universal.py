"""Conversion to and from DeepSpeed's universal checkpoint format: one file per tensor."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import DeepSpeedCheckpoint
from deepspeed.checkpoint.constants import PARAM, PARAM_SHAPES, UNIVERSAL_CHECKPOINT_INFO
from deepspeed.checkpoint.ds_to_universal import extract_zero_shards, extract_zero_shards_stage3, merge_tp_slices

from cromic_ds.engine.engine import Engine
from cromic_ds.engine.zero import held, shard_of
from cromic_ds.ranks.collectives import gather_objects

log = logging.getLogger(__name__)


MOMENTS = ("exp_avg", "exp_avg_sq")


SECONDS_BETWEEN_REPORTS = 10


COUNTS = ("global_steps", "global_samples", "skipped_steps", "mp_world_size", "dp_world_size")


class Layout(NamedTuple):
    """How a training's state is cut into files."""

    world_size: int
    stage: int

    def __str__(self) -> str:
        return f"{self.world_size} rank{'s' * (self.world_size != 1)} at ZeRO stage {self.stage}"

    def fits(self, other: Layout) -> bool:
        """Whether DeepSpeed loads the one's files into the other as they are. At stage 0 one file holds everything."""
        return self == other or self.stage == other.stage == 0


class ConversionFailed(Exception):
    """On one of the ranks, and so raised on all of them."""


def convert(engine: Engine, checkpoint: Path, written: Layout, folder: Path, progress: Callable[[], None]) -> None:
    """Write folder/zero/NAME/{fp32,exp_avg,exp_avg_sq}.pt of each trained weight, and what DeepSpeed's loader reads first."""
    shapes = {name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in engine.model.named_parameters()}
    names, pieces, zero = trained(engine), folder / "pieces", folder / "zero"

    def join(name: str) -> None:
        merge_tp_slices({}, str(zero), str(pieces), 1, (name, [shapes[name]]))
        shutil.rmtree(pieces / name)  # so the disk never holds everything twice

    if written.stage == 0:
        saved = read_file(checkpoint / model_file(0))
        together("weights", list(enumerate(names)), lambda item: write_stage_0(saved, *item, zero), progress)
    else:
        together("shards", range(written.world_size), cutter(checkpoint, written, pieces), progress)
        together("weights", names, join, progress)
    together("Adam's step", [None], lambda _: write_common(engine, checkpoint, written, folder), progress)


def cutter(checkpoint: Path, written: Layout, pieces: Path) -> Callable[[int], None]:
    """What cuts the shard of one of the ranks that wrote the checkpoint into pieces/NAME/0/STATE.RANK."""
    if written.stage == 3:
        optimizers = [str(checkpoint / optimizer_file(rank)) for rank in range(written.world_size)]
        shapes = read_file(checkpoint / model_file(3))[PARAM_SHAPES]
        return lambda rank: extract_zero_shards_stage3(
            [optimizers], [shapes], written.world_size, str(pieces), (0, rank)
        )
    source = DeepSpeedCheckpoint(str(checkpoint))
    source.global_state[UNIVERSAL_CHECKPOINT_INFO] = {}  # models with tensor parallelism say more here
    return lambda rank: extract_zero_shards(str(pieces), source, (0, 0, rank))


def write_stage_0(saved: dict, index: int, name: str, zero: Path) -> None:
    """The files of weight `index` of the optimizer, of a checkpoint that is not cut up."""
    weight, state = saved["module"][name], saved["optimizer"]["state"].get(index, {})
    (zero / name).mkdir(parents=True)
    for key, value in {"fp32": weight, **{k: state.get(k, torch.zeros_like(weight)) for k in MOMENTS}}.items():
        torch.save({PARAM: value.clone()}, zero / name / f"{key}.pt")  # without the clone, all of the file it came from


def write_common(engine: Engine, checkpoint: Path, written: Layout, folder: Path) -> None:
    """The two files that DeepSpeed's loaders of all stages read beside the weights'.

    The groups hold no settings, so they keep this run's; some optimizers count their steps there.
    """
    saved = read_file(checkpoint / (model_file(3) if written.stage == 3 else model_file(0)))
    counts = {name: saved[name] for name in COUNTS}
    torch.save(counts, folder / (model_file(3) if engine.stage == 3 else model_file(0)))
    step = adam_step(checkpoint, written)
    groups = [{"step": step} for _ in engine.deepspeed.basic_optimizer.param_groups]
    common = {"ds_version": deepspeed.__version__, "param_groups": groups}
    common["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": groups}
    torch.save(common, folder / "zero" / "optimizer_state.pt")


def adam_step(checkpoint: Path, written: Layout) -> int:
    """Updates so far: without skipped steps."""
    if written.stage == 0:
        adam = read_file(checkpoint / model_file(0))["optimizer"]
    else:
        zero = read_file(checkpoint / optimizer_file(0))["optimizer_state_dict"]
        adam = zero["optimizer_state_dict" if written.stage == 3 else "base_optimizer_state"]
    state = next(iter(adam["state"].values()), {})
    return int(state["step"] if "step" in state else adam["param_groups"][0].get("step", 0))


def model_file(stage: int, rank: int = 0) -> str:
    """DeepSpeed's name for what a rank holds beside the optimizer; below stage 3, rank 0 writes for all."""
    return f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"


def optimizer_file(rank: int) -> str:
    return f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def together(what: str, items: Sequence, work: Callable, progress: Callable[[], None]) -> None:
    """Each rank does its share of the items; the log says how far all are.

    Raises ConversionFailed, on every rank, once one has failed.
    """
    rank, world_size, said = dist.get_rank(), dist.get_world_size(), time.monotonic()
    for first in range(0, len(items), world_size):
        problem = None
        try:
            for item in items[first + rank : first + rank + 1]:
                work(item)
        except Exception as error:  # whatever it is, the other ranks must hear of it
            problem = f"{what}: {type(error).__name__}: {error}"
        if problems := [p for p in gather_objects(problem) if p]:
            raise ConversionFailed(problems[0].splitlines()[0])
        progress()
        if time.monotonic() - said > SECONDS_BETWEEN_REPORTS:
            log.info("converting: %d of %d %s", min(first + world_size, len(items)), len(items), what)
            said = time.monotonic()


def read_file(path: Path) -> dict:
    """A file of DeepSpeed's; tensors are read when they are used."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def read(engine: Engine, folder: Path) -> None:
    """Trained weights and the optimizer's state, into whatever this run has."""
    step = int(read_file(folder / "zero" / "optimizer_state.pt")["param_groups"][0]["step"])
    adam = engine.deepspeed.basic_optimizer
    if engine.stage == 0:
        for name, p in zip(trained(engine), [p for group in adam.param_groups for p in group["params"]]):
            values = {key: read_file(folder / "zero" / name / f"{key}.pt")[PARAM] for key in ("fp32", *MOMENTS)}
            p.data.copy_(values.pop("fp32"))
            adam.state[p] = {key: value.to(p, copy=True) for key, value in values.items()}
    else:
        chatty = logging.getLogger("DeepSpeed")
        level = chatty.level
        chatty.setLevel(logging.ERROR)  # it warns, for each group, that there is no tensor parallelism
        engine.deepspeed._config.load_universal_checkpoint = True
        try:
            engine.deepspeed.load_checkpoint(str(folder.parent), tag=folder.name)
        finally:
            engine.deepspeed._config.load_universal_checkpoint = False
            chatty.setLevel(level)
    fused = adam.param_groups[0].get("fused")
    for p, state in adam.state.items():
        # torch counts in a tensor, on the device for its fused kernel; the other implementations in an int.
        counter = torch.tensor(float(step), device=p.device if fused else "cpu")
        state["step"] = counter if isinstance(adam, torch.optim.AdamW) else step


@torch.no_grad()
def restore_frozen(engine: Engine, checkpoint: Path, written: Layout) -> None:
    """Weights that no optimizer has: DeepSpeed's universal load leaves them as the model was built."""
    frozen = {name: p for name, p in engine.model.named_parameters() if not p.requires_grad}
    if not frozen:
        return
    ranks = range(written.world_size) if written.stage == 3 else ()
    shards = [read_file(checkpoint / model_file(3, rank))["frozen_param_fragments"] for rank in ranks]
    whole = {} if shards else read_file(checkpoint / model_file(written.stage))["module"]
    for name, p in frozen.items():
        shape = torch.Size(getattr(p, "ds_shape", p.shape))
        if shards:  # flattened, and padded at the end of the last one
            value = torch.cat([shard[name].flatten() for shard in shards])[: shape.numel()].view(shape)
        else:
            value = whole[name]
        held(p).copy_(shard_of(value, p).view_as(held(p)))


def trained(engine: Engine) -> list[str]:
    """Names of the trained weights, in the order of the optimizer's groups."""
    zero = engine.deepspeed.optimizer
    if engine.stage == 0:
        groups = [group["params"] for group in zero.param_groups]
    else:
        groups = zero.fp16_groups if engine.stage == 3 else zero.bit16_groups
    names = {id(p): name for name, p in engine.model.named_parameters()}
    return [names[id(p)] for group in groups for p in group]
