"""A training run: settings to a finished run folder. Pretraining and fine-tuning are this with different settings."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import socket
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from cromic_ds.checkpoints import reader
from cromic_ds.checkpoints.export import export_checkpoint
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.checkpoints.writer import CheckpointWriter
from cromic_ds.data.dataset import Dataset
from cromic_ds.data.loader import DataSettings, training_batches
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.engine import process_group
from cromic_ds.engine.adam import choose_kernel
from cromic_ds.engine.config import ResolveFacts, find_ds_config, load_ds_config, resolve
from cromic_ds.engine.ema import Ema
from cromic_ds.engine.engine import Engine
from cromic_ds.engine.memory import memory_plan, model_facts
from cromic_ds.engine.profile import Profiler, ProfileSettings
from cromic_ds.engine.waiting import waiting_code
from cromic_ds.errors import UserError
from cromic_ds.files import write_atomically
from cromic_ds.inference.decoding import decoding_for
from cromic_ds.inference.settings import EvalSettings
from cromic_ds.models.common.kernels import KernelChoice, Kernels, install, select
from cromic_ds.models.common.precision import choose_precision
from cromic_ds.models.settings import ModelSettings
from cromic_ds.ranks import collectives, lock
from cromic_ds.ranks.launcher import Ranks, local_device, ranks_from
from cromic_ds.ranks.preflight import preflight
from cromic_ds.ranks.reporter import RankReporter, forget_ranks
from cromic_ds.ranks.signals import StopRequest
from cromic_ds.run_folder import RunFolder
from cromic_ds.tasks import Task
from cromic_ds.tasks.base import check_task
from cromic_ds.tracking import TrackingSettings, open_trackers, setup_logging
from cromic_ds.tracking.log import at_step
from cromic_ds.training import startup
from cromic_ds.training.announce import announce
from cromic_ds.training.loop import LoopSettings, Objective, Run, train
from cromic_ds.training.optimizer import OptimizerSettings, build_optimizer, lr_scales
from cromic_ds.training.summary import print_summary
from cromic_ds.training.usage import Usage

log = logging.getLogger(__name__)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FINISHED = "finished.json"  # in the run folder exactly while the run in it is complete and exported


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
    kernels: KernelChoice = "auto"
    """Implementations of layer norm, output layer with loss, and attention: auto (the fastest that is installed) or torch
    (plain PyTorch)."""
    kernels_debug: dict[str, str] = field(default_factory=dict)
    """For debugging: single implementations by operation, such as {attention: math, memory_format: contiguous}; docs/model.md
    lists them."""
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)


class Prepared(NamedTuple):
    """What each process makes of the settings by itself, before the first word to another one."""

    dataset: Dataset
    eval_dataset: Dataset
    tokenizer: PreTrainedTokenizerBase
    answers: list[str] | None  # where answers are classified
    start: startup.StartingModel
    device: torch.device
    ds_config: dict
    kernels: Kernels
    adam: str
    offload: bool  # the optimizer's states are not on the device
    scales: dict[str, float]
    total_steps: int


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
    ranks = ranks_from(os.environ)
    prepared = problem = None
    try:
        prepared = prepare(settings, task, ranks)
    except UserError as error:
        if ranks.local_world_size == ranks.world_size:
            raise  # on one host every rank has the same error
        problem = f"host {socket.gethostname()}: {error}"

    # Nothing was started or written up to here.
    stop = StopRequest().install()
    with RankReporter(ranks, settings.loop.hang_timeout, waiting_code()) as guard:
        ranks = process_group.start()
        if problems := sorted({p for p in collectives.gather_objects(problem) if p}):
            raise UserError("; ".join(problems))
        folder, attempt = Path(settings.out), collectives.from_main(uuid.uuid4().hex)
        collectives.on_main(startup.open_folder, folder, startup.settings_dict(settings), fixed)
        collectives.on_main(lock.acquire, RunFolder(folder), attempt)
        collectives.on_main(forget_ranks, RunFolder(folder))
        guard.publish(RunFolder(folder), attempt)
        setup_logging(folder, ranks.rank, ranks.world_size, socket.gethostname())
        run = start_run(settings, task, prepared, ranks, guard, stop, objective)
        at_step(run.state.step)
        try:
            train(run)
            run.profiler.finish()
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise UserError(
                f"{error.filename or folder}: {error.strerror}; the checkpoints in {folder} are whole: put that right and give "
                "the same command again"
            ) from None
        finally:
            run.tracker.finish()
        guard.at("exporting")
        if run.finished and ranks.is_main:
            exported = export_checkpoint(RunFolder(folder), export, folder / "export")
            log.info("finished after %d steps; exported to %s", run.state.step, exported)
            write_atomically(folder / FINISHED, json.dumps({"step": run.state.step, "time": time.time()}))
            print_summary(folder)
        collectives.barrier()
        if ranks.is_main:
            lock.release(RunFolder(folder), attempt)
        guard.end("finished" if run.finished else "stopped")
        process_group.stop()


def prepare(settings: RunSettings, task: Task, ranks: Ranks) -> Prepared:
    """Raises UserError for all that can be known to be wrong without starting anything."""
    if not settings.data.path:
        raise UserError("data.path is missing: name a store (make one with `cromic-ds prepare` or `cromic-ds sample`)")
    for section in (settings.data, settings.loop, settings.eval, settings.tracking, settings.profile):
        section.check()
    dataset = open_dataset(settings.data.path, settings.data.train_split)
    eval_dataset = open_dataset(settings.data.path, settings.data.eval_split)
    check_task(task, dataset, settings.data.path)
    source = find_ds_config(settings.ds_config)
    ds_config = load_ds_config(source)
    device = local_device()
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    answers = dataset.answers if task.kind == "classify" else None
    start = startup.make_model(settings.model, tokenizer, settings.seed, answers, fine_tuning=task.kind != "comments")
    facts = ResolveFacts(
        global_batch=settings.loop.global_batch,
        micro_batch=settings.loop.micro_batch,
        world_size=ranks.world_size,
        ranks_per_node=ranks.local_world_size,
        device=device.type,
        precision=choose_precision(settings.precision, device),
        clip=settings.optim.clip,
        hidden_size=start.model.config.d_model,
        source=str(source),
    )
    ds_config = settings.profile.applied_to(resolve(ds_config, facts))
    kernels = select(device, settings.kernels, settings.kernels_debug)
    offload = (ds_config["zero_optimization"].get("offload_optimizer") or {}).get("device", "none") != "none"
    adam = choose_kernel(settings.optim.implementation, device, offload)
    if settings.loop.compile and ds_config["zero_optimization"]["stage"] == 3:
        raise UserError("loop.compile does not work under ZeRO-3 (hooks break the graph): use zero0, zero1 or zero2")
    scales = lr_scales(start.model, settings.optim, start.taken)
    total_steps = settings.loop.steps or max(
        1, math.floor(settings.loop.epochs * len(dataset) / settings.loop.global_batch)
    )
    settings.profile.check_steps(total_steps)
    return Prepared(
        dataset=dataset,
        eval_dataset=eval_dataset,
        tokenizer=tokenizer,
        answers=answers,
        start=start,
        device=device,
        ds_config=ds_config,
        kernels=kernels,
        adam=adam,
        offload=offload,
        scales=scales,
        total_steps=total_steps,
    )


def start_run(
    settings: RunSettings,
    task: Task,
    prepared: Prepared,
    ranks: Ranks,
    guard: RankReporter,
    stop: StopRequest,
    objective: Objective | None,
) -> Run:
    """All ranks together: folder, engine, the newest checkpoint's state, and the batches from there on."""
    dataset, tokenizer, answers, ds_config = prepared.dataset, prepared.tokenizer, prepared.answers, prepared.ds_config
    model, taken, origin = prepared.start
    folder, image_size = Path(settings.out), model.image_size
    guard.at("preflight")
    stored = model_facts(model).n_parameters * (2 if settings.loop.ema_decay else 1)
    every = startup.settings_dict(settings)
    preflight(RunFolder(folder), guard.attempt, every, dataset.fingerprint, stored, settings.loop.keep_last + 2, ranks)
    log.info("weights: %s", origin)
    if ranks.is_main:
        startup.write_model_folder(folder, model, tokenizer, settings.data, task.name, answers)
        write_atomically(folder / "ds_config.json", json.dumps(ds_config, indent=1))

    guard.at("loading")
    resume = reader.newest_good(RunFolder(folder))
    if resume is None:
        startup.calibrate_batch_norm(model, taken, dataset, settings.data, image_size)
    install(model, prepared.kernels)
    if settings.loop.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    memory = memory_plan(model_facts(model), ds_config, ranks.world_size)
    model.to(prepared.device)
    optimizer, _ = build_optimizer(model, settings.optim, prepared.offload, prepared.scales)
    engine = Engine(model, optimizer, ds_config, settings.loop.compile)
    state = TrainState(data_fingerprint=dataset.fingerprint, tokenizer_fingerprint=tokenizer_fingerprint(tokenizer))
    ema = Ema(engine, settings.loop.ema_decay) if settings.loop.ema_decay else None
    if resume is not None:
        state = resumed(reader.load_checkpoint(engine, resume, ema, lambda: guard.at("loading")), dataset)
    total_steps, loop = prepared.total_steps, settings.loop
    names = {**prepared.kernels.names, "optimizer": prepared.adam}
    announce(settings, ranks, prepared.device, ds_config, names, engine, memory, dataset, state, total_steps)
    tracker = open_trackers(settings.tracking, folder, every, state.step or None, total_steps, ranks.rank)
    run = Run(
        folder=folder,
        ranks=ranks,
        seed=settings.seed,
        total_steps=total_steps,
        loop=settings.loop,
        optim=settings.optim,
        eval=for_task(settings.eval, task),
        data=settings.data,
        task=task,
        objective=objective,
        engine=engine,
        ema=ema,
        state=state,
        checkpoints=CheckpointWriter(
            engine, RunFolder(folder), loop.keep_last, ema, background=loop.save_in_background, tracker=tracker
        ),
        batches=training_batches(
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
            n_answers=len(answers or []),
        ),
        answers=answers,
        dataset=dataset,
        eval_dataset=prepared.eval_dataset,
        tokenizer=tokenizer,
        image_size=image_size,
        tracker=tracker,
        usage=Usage(engine.forward_flops, prepared.device, ranks.world_size),
        profiler=Profiler(settings.profile, RunFolder(folder), engine, ranks.rank, ranks.world_size),
        stop=stop,
        guard=guard,
    )
    if not run.finished and ranks.is_main:
        (folder / FINISHED).unlink(missing_ok=True)
    return run


def for_task(settings: EvalSettings, task: Task) -> EvalSettings:
    """The settings with the task's own where they leave it the choice."""
    return replace(
        settings,
        tokenization=task.choose_tokenization(settings.tokenization),
        decoding=decoding_for(task, settings.decoding),
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
