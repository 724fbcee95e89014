"""A training run: settings to a finished run folder. Pretraining and fine-tuning are this with different settings."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path

from cromic_ds.data.dataset import Dataset
from cromic_ds.data.loader import DataSettings, steps
from cromic_ds.data.opening import open_dataset
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.models import ModelSettings
from cromic_ds.models.kernels import KernelSettings, install, select
from cromic_ds.tasks import Task
from cromic_ds.tracking import TrackingSettings, open_trackers, setup_logging
from cromic_ds.training import checkpoint, distributed, setup
from cromic_ds.training.announce import announce
from cromic_ds.training.ds_config import ResolveFacts, load_ds_config, resolve
from cromic_ds.training.ema import Ema
from cromic_ds.training.engine import Engine
from cromic_ds.training.evaluation import EvalSettings
from cromic_ds.training.export import export_checkpoint
from cromic_ds.training.loop import LoopSettings, Run, train
from cromic_ds.training.memory import memory_plan, model_facts
from cromic_ds.training.optimizer import OptimizerSettings, build_optimizer, choose_kernel, lr_scales
from cromic_ds.training.precision import choose_precision
from cromic_ds.training.signals import StopRequest
from cromic_ds.training.state import TrainState
from cromic_ds.training.summary import print_summary
from cromic_ds.training.usage import Usage

log = logging.getLogger(__name__)


@dataclass
class RunSettings:
    """One whole run."""

    out: str = "runs/run"
    """Run folder. The same command with the same folder goes on where the run stopped."""
    seed: int = 0
    """Everything random in the run follows from it."""
    ds_config: str = "zero3"
    """DeepSpeed JSON: a path, or the name of one in ds_configs/."""
    precision: str = "auto"
    """bf16, fp16, fp32, or auto: the fastest that the device computes natively."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    kernels: KernelSettings = field(default_factory=KernelSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)


def run_training(
    settings: RunSettings, task: Task, *, fixed: tuple[str, ...] = (), export: str = "latest", objective=None
) -> None:
    """Run, or go on with, a training; export the result at the end.

    Args:
        task: what the run is judged by, and how its answers come about.
        fixed: settings beyond those of every run that a resume may not change.
        export: which checkpoint is exported at the end, latest or best.
        objective: called as `objective(run, batches)` before each step; see `loop.Objective`.

    Raises:
        UserError: settings, data or run folder that cannot work, before any training step.
    """
    if not settings.data.path:
        raise UserError("data.path is missing: name a store (make one with `cromic-ds prepare` or `cromic-ds sample`)")
    for section in (settings.data, settings.loop, settings.eval, settings.tracking):
        section.check()
    dataset = open_dataset(settings.data.path, settings.data.train_split)
    eval_dataset = open_dataset(settings.data.path, settings.data.eval_split)
    setup.check_task(task, dataset, settings.data.path)
    source = setup.find_ds_config(settings.ds_config)
    ds_config = load_ds_config(source)
    ranks = distributed.ranks_from(os.environ)
    device = distributed.device()
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    answers = dataset.answers if task.kind == "classify" else None
    n_answers = len(answers or [])
    model, taken, origin = setup.make_model(
        settings.model, tokenizer, settings.seed, answers, fine_tuning=task.kind != "comments"
    )
    image_size = model.image_size
    facts = ResolveFacts(
        global_batch=settings.loop.global_batch,
        micro_batch=settings.loop.micro_batch,
        world_size=ranks.world_size,
        ranks_per_node=ranks.local_world_size,
        device=device.type,
        precision=choose_precision(settings.precision, device),
        clip=settings.optim.clip,
        hidden_size=model.config.d_model,
        source=str(source),
    )
    ds_config = resolve(ds_config, facts)
    kernels = select(settings.kernels, device)
    offload = (ds_config["zero_optimization"].get("offload_optimizer") or {}).get("device", "none") != "none"
    adam = choose_kernel(settings.kernels.optimizer, device, offload)
    if settings.loop.compile and ds_config["zero_optimization"]["stage"] == 3:
        raise UserError("loop.compile does not work under ZeRO-3 (hooks break the graph): use zero0, zero1 or zero2")
    scales = lr_scales(model, settings.optim, taken)
    eval_settings = for_task(settings.eval, task)

    # Nothing was started or written up to here.
    stop = StopRequest().install()
    ranks = distributed.start()
    folder = Path(settings.out)
    setup.on_main(setup.open_folder, folder, setup.settings_dict(settings), fixed)
    setup_logging(folder, ranks.rank, ranks.world_size, socket.gethostname())
    log.info("weights: %s", origin)
    if ranks.is_main:
        setup.write_model_folder(folder, model, tokenizer, settings.data, task.name, answers)
        checkpoint.write_atomically(folder / "ds_config.json", json.dumps(ds_config, indent=1))

    resume = checkpoint.newest_good(folder / "checkpoints")
    if resume is None:
        setup.calibrate_batch_norm(model, taken, dataset, settings.data, image_size)
    install(model, kernels)
    if settings.loop.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    memory = memory_plan(model_facts(model), ds_config, ranks.world_size)
    model.to(device)
    optimizer, _ = build_optimizer(model, settings.optim, adam, offload, scales)
    engine = Engine(model, optimizer, ds_config, settings.loop.compile)
    state = TrainState(data_fingerprint=dataset.fingerprint, tokenizer_fingerprint=tokenizer_fingerprint(tokenizer))
    ema = Ema(engine, settings.loop.ema_decay) if settings.loop.ema_decay else None
    if resume is not None:
        state = resumed(checkpoint.load(engine, resume, ema), dataset)
    total_steps = settings.loop.steps or max(
        1, math.floor(settings.loop.epochs * len(dataset) / settings.loop.global_batch)
    )
    names = {**kernels.names, "optimizer": adam}
    announce(settings, ranks, device, ds_config, names, engine, memory, dataset, state, total_steps)

    run = Run(
        folder=folder,
        ranks=ranks,
        seed=settings.seed,
        total_steps=total_steps,
        loop=settings.loop,
        optim=settings.optim,
        eval=eval_settings,
        data=settings.data,
        task=task,
        objective=objective,
        engine=engine,
        ema=ema,
        state=state,
        batches=steps(
            dataset,
            settings.data,
            image_size=image_size,
            global_batch=ds_config["train_batch_size"],
            micro_batch=ds_config["train_micro_batch_size_per_gpu"],
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=settings.seed,
            first_step=state.step,
            last_step=total_steps,
            n_answers=n_answers,
        ),
        answers=answers,
        dataset=dataset,
        eval_dataset=eval_dataset,
        tokenizer=tokenizer,
        image_size=image_size,
        tracker=open_trackers(
            settings.tracking, folder, setup.settings_dict(settings), state.step or None, total_steps, ranks.rank
        ),
        usage=Usage(engine.forward_flops, device, ranks.world_size),
        stop=stop,
    )
    try:
        train(run)
    finally:
        run.tracker.finish()
    if run.finished and ranks.is_main:
        exported = export_checkpoint(folder, export, folder / "export")
        log.info("finished after %d steps; exported to %s", state.step, exported)
        print_summary(folder)
    distributed.barrier()
    distributed.stop()


def for_task(settings: EvalSettings, task: Task) -> EvalSettings:
    """The settings with the task's own where they leave it the choice."""
    longest = settings.decoding.max_new_tokens or task.max_new_tokens
    return replace(
        settings,
        tokenisation=task.choose_tokenisation(settings.tokenisation),
        decoding=replace(settings.decoding, max_new_tokens=longest),
    )


def resumed(state: TrainState, dataset: Dataset) -> TrainState:
    """The checkpoint's state, if it was trained on this data.

    Raises:
        UserError: the data has changed.
    """
    if state.data_fingerprint != dataset.fingerprint:
        raise UserError(
            "the data has changed since this run started (other fingerprint): start a new run folder (--out), "
            "or put the data back"
        )
    return state
