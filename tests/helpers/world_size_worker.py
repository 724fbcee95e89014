"""pretrain.py, which also notes what it does. Environment variables:

NOTES: folder for the ids that each rank trains on, and for the state of the training as it was saved and as it was loaded.
STOP_AFTER: the step to stop after.
SPOIL: if not empty, the initial weights and buffers are changed, so that anything that a checkpoint does not restore is found.
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from cromic_ds.checkpoints import reader as checkpoint
from cromic_ds.checkpoints import writer as saving
from cromic_ds.cli.commands import script
from cromic_ds.run_folder import EMA_FILE
from cromic_ds.training import pretrain, run
from cromic_ds.training import startup as setup

NOTES = Path(os.environ["NOTES"])


def note(learner, batches):
    step = learner.state.step + 1
    with (NOTES / f"{learner.ranks.rank}.jsonl").open("a") as f:
        f.write(json.dumps({"step": step, "ids": [id for batch in batches for id in batch.ids]}) + "\n")
    if step == int(os.environ.get("STOP_AFTER", "0")):
        signal.raise_signal(signal.SIGTERM)
    return batches, {}


def load(engine, path, ema=None, *more):
    state = load_checkpoint(engine, path, ema, *more)
    write_state(engine, ema, f"loaded-{state.step}")
    return state


def save(checkpoints, state, *more):
    begin_checkpoint(checkpoints, state, *more)
    write_state(checkpoints.engine, checkpoints.ema, f"saved-{state.step}")


@torch.no_grad()
def write_state(engine, ema, name):
    """Write weights, moments, step, groups and buffers, unsharded, and the averaged weights."""
    adam, values = engine.deepspeed.basic_optimizer, {}
    if engine.stage in (1, 2):  # DeepSpeed links the states when only the first group has any
        engine.deepspeed.optimizer._hp_optimizer_states_linked = False
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
    for key, p in engine.model.named_parameters():
        if engine.stage == 0 or not p.requires_grad:
            states = adam.state.get(p, {})
            values[key] = [whole(p), *(states[m] for m in MOMENTS if m in states)]
        else:
            values[key] = [safe_get_full_fp32_param(p), *(safe_get_full_optimizer_state(p, m) for m in MOMENTS)]
    values = {f"{key} {i}": part.flatten() for key, parts in values.items() for i, part in enumerate(parts)}
    values |= dict(engine.model.named_buffers())
    values["step"] = torch.tensor({int(state["step"]) for state in adam.state.values()}.pop())
    settings = ("lr_scale", "weight_decay", "eps")
    values["groups"] = torch.tensor([[group[name] for name in settings] for group in adam.param_groups])
    folder = NOTES / name
    if dist.get_rank() == 0:
        folder.mkdir(exist_ok=True)
        torch.save({key: value.cpu().clone() for key, value in values.items()}, folder / "state.pt")
    if ema and (content := ema.content()):
        (folder / EMA_FILE).write_bytes(content)


def whole(p):
    """Return an unsharded weight."""
    if not hasattr(p, "ds_tensor"):
        return p
    parts = [torch.empty_like(p.ds_tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, p.ds_tensor.data)
    return torch.cat(parts)[: p.ds_numel]


@torch.no_grad()
def spoilt(*arguments, **more):
    start = make_model(*arguments, **more)
    for tensor in (*start.model.parameters(), *start.model.buffers()):
        tensor.add_(1)
    return start


MOMENTS = ("exp_avg", "exp_avg_sq")
make_model, load_checkpoint, begin_checkpoint = (
    setup.make_model,
    checkpoint.load_checkpoint,
    saving.CheckpointWriter.begin,
)
if __name__ == "__main__":
    if os.environ.get("SPOIL"):
        setup.make_model = spoilt
    checkpoint.load_checkpoint, saving.CheckpointWriter.begin = load, save
    pretrain.run_training = functools.partial(run.run_training, make_objective=lambda *given: note)
    script("pretrain")
