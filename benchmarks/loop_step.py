"""A step of the training loop on preset paper, for the benchmarks of steps and of checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cromic_ds.batch import Batch, BatchSplit
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.checkpoints.writer import CheckpointWriter
from cromic_ds.engine import process_group
from cromic_ds.engine.config import ResolveFacts, find_ds_config, load_ds_config, resolve
from cromic_ds.engine.engine import Engine
from cromic_ds.models.common.kernels import install, select
from cromic_ds.models.common.precision import choose_precision
from cromic_ds.models.registry import build_config, build_model
from cromic_ds.ranks.launcher import Ranks
from cromic_ds.ranks.signals import StopRequest
from cromic_ds.run_folder import RunFolder
from cromic_ds.tracking import Tracker
from cromic_ds.training import loop
from cromic_ds.training.learner import Learner
from cromic_ds.training.optimizer import build_optimizer
from cromic_ds.training.settings import RunSettings
from cromic_ds.training.usage import Usage


@dataclass
class LoopRun:
    """What the loop's calls for one step work on."""

    learner: Learner
    batches: Iterator[list[Batch]]
    checkpoints: CheckpointWriter
    usage: Usage
    settings: RunSettings
    tracker: Tracker = field(default_factory=Tracker)
    stop: StopRequest = field(default_factory=StopRequest)


def loop_run(batch: Batch, ds_config: str, run_folder: Path, keep_last: int = 1) -> LoopRun:
    """Preset paper on the same batch in each step."""
    if not torch.distributed.is_initialized():
        process_group.start()
    split = BatchSplit(batch.n_posts, batch.n_posts)
    facts = ResolveFacts(split, precision=choose_precision("auto", "cpu"))
    config = resolve(load_ds_config(find_ds_config(ds_config)), facts)
    torch.manual_seed(0)
    model = build_model(build_config("cmt", "paper"))
    install(model, select(torch.device("cpu")))
    settings = RunSettings()
    optimizer, _ = build_optimizer(model, settings.optim)
    engine = Engine(model, optimizer, config)
    return LoopRun(
        learner=Learner(engine, None, TrainState(), split, Ranks(), seed=0, epoch_size=batch.n_posts),
        batches=itertools.repeat([batch]),
        checkpoints=CheckpointWriter(engine, RunFolder(run_folder), keep_last),
        usage=Usage(engine.forward_flops, torch.device("cpu")),
        settings=settings,
    )


def loop_step(run: LoopRun) -> float:
    """The calls of `training.loop.train` for a step, without evaluation and saving; returns the loss."""
    learner, engine, settings = run.learner, run.learner.engine, run.settings
    batches, waited = loop.next_batches(run.batches)
    seeds = learner.micro_batch_seeds()
    batches = [engine.model.draw(one, seed) for one, seed in zip(batches, seeds)]
    n_targets, _ = loop.agree(learner, batches, run.checkpoints, run.stop, settings.data.max_skip_rate)
    lr = loop.learning_rate(settings.optim, 10**8, 10**9)
    result = engine.train_step(batches, lr, n_targets, seeds)
    loop.advance(learner, result, batches, settings.guard)
    values = loop.step_values(learner, result, batches, lr, {}) | run.usage.step(result, batches, waited)
    run.tracker.log(learner.state.step, values, "train")
    return result.loss
