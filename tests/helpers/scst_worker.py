"""One rank of `test_self_critical.py`: three self-critical steps of the global batch under DeepSpeed, on the CPU.

`python scst_worker.py STAGE RUN_FOLDER`, with RANK and WORLD_SIZE set; rank 0 prints the steps' values,
losses and gradient norms and the norm of the weights afterwards, as JSON in the last line.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import logger

from cromic_ds.batch import BatchSplit
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.cli.commands import leave
from cromic_ds.engine import process_group
from cromic_ds.engine.config import ResolveFacts, load_ds_config, resolve
from cromic_ds.engine.engine import Engine
from cromic_ds.ranks import collectives
from cromic_ds.run_folder import RunFolder
from cromic_ds.training.learner import Learner
from cromic_ds.training.optimizer import OptimizerSettings, build_optimizer
from cromic_ds.training.self_critical import SelfCritical, SelfCriticalSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.scst_world import TASK, Pictures, make_model, micro_batches, world_tokenizer


def main(stage: int, folder: str) -> None:
    logger.setLevel(logging.ERROR)
    ranks = process_group.start()
    source = Path(__file__).resolve().parents[2] / "ds_configs" / f"zero{stage}.json"
    split = BatchSplit(8, 4, ranks.world_size)
    facts = ResolveFacts(split, clip=1.0, hidden_size=32)
    tokenizer = world_tokenizer()
    model = make_model(tokenizer)
    optimizer, _ = build_optimizer(model, OptimizerSettings(lr=1e-3))
    engine = Engine(model, optimizer, resolve(load_ds_config(source), facts))
    learner = Learner(engine, None, TrainState(), split, ranks, seed=5, epoch_size=len(Pictures()))
    objective = SelfCritical(SelfCriticalSettings(samples=3), TASK, RunFolder(Path(folder)), Pictures(), tokenizer)
    steps, n_hooks = [], []
    for step in range(3):
        mine = micro_batches(tokenizer, blank=step == 1)[ranks.rank :: ranks.world_size]
        batches, values = objective(learner, mine)
        (n_targets,) = collectives.sum_over_ranks([sum(b.n_targets for b in batches)])
        result = engine.train_step(batches, 1e-3, int(n_targets), learner.micro_batch_seeds())
        learner.state.step += 1
        values.pop("scst_seconds")
        steps.append({**values, "n_targets": n_targets, "loss": result.loss, "grad_norm": result.grad_norm})
        n_hooks.append(hooks(engine.model))
    parameters = list(engine.model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=stage == 3):
        norm = float(sum(p.detach().double().square().sum() for p in parameters).sqrt())
    if ranks.is_main:
        print(json.dumps({"steps": steps, "norm": norm, "hooks": n_hooks}))
    collectives.barrier()
    process_group.stop()
    leave(0)


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
