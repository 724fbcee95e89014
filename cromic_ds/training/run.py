"""A training run, from settings to a finished run folder. Pretraining and fine-tuning are this with different settings."""

import errno
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerFast

from cromic_ds.batch import BatchSplit
from cromic_ds.checkpoints import reader
from cromic_ds.checkpoints.export import export_checkpoint
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.checkpoints.writer import CheckpointWriter
from cromic_ds.data.dataset import Dataset
from cromic_ds.data.loader import training_batches
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from cromic_ds.engine import config, process_group
from cromic_ds.engine.adam import choose_kernel
from cromic_ds.engine.ema import Ema
from cromic_ds.engine.engine import Engine
from cromic_ds.engine.memory import MemoryPlan, memory_plan, model_facts
from cromic_ds.engine.profile import Profiler
from cromic_ds.engine.waiting import waiting_code
from cromic_ds.errors import UserError
from cromic_ds.files import write_json
from cromic_ds.models.common.kernels import Kernels, install, select
from cromic_ds.models.common.precision import choose_precision
from cromic_ds.ranks import collectives, lock
from cromic_ds.ranks.launcher import Ranks, local_device, ranks_from
from cromic_ds.ranks.preflight import preflight
from cromic_ds.ranks.reporter import RankReporter, forget_ranks
from cromic_ds.ranks.signals import StopRequest
from cromic_ds.run_folder import RunFolder
from cromic_ds.tasks import Task
from cromic_ds.tasks.base import check_task
from cromic_ds.tracking import open_trackers, setup_logging
from cromic_ds.tracking.log import at_step
from cromic_ds.training import startup
from cromic_ds.training.announce import announce
from cromic_ds.training.evaluation import Evaluation, settings_for
from cromic_ds.training.learner import Learner, Objective
from cromic_ds.training.loop import Run, train
from cromic_ds.training.optimizer import build_optimizer, lr_scales
from cromic_ds.training.settings import RunSettings
from cromic_ds.training.summary import print_summary
from cromic_ds.training.usage import Usage

log = logging.getLogger(__name__)
MakeObjective = Callable[[RunFolder, Dataset, PreTrainedTokenizerFast], Objective]


@dataclass(frozen=True)
class Derived:
    """What each rank derives from the settings alone, before any communication."""

    dataset: Dataset
    evaluation: Evaluation
    start: startup.StartingModel
    split: BatchSplit
    ds_config: dict  # resolved: DeepSpeed takes it as it is
    memory: MemoryPlan
    kernels: Kernels
    adam: str  # name of the optimizer's implementation
    lr_scales: dict[str, float]  # factor of the learning rate, by the parameter's name
    total_steps: int


def run_training(
    settings: RunSettings,
    task: Task,
    *,
    fixed: tuple[str, ...] = (),
    export: Literal["latest", "best"] = "latest",
    make_objective: MakeObjective | None = None,
) -> None:
    """Start or resume a training run, and export its latest or best checkpoint at the end.

    `fixed` names settings that a resume may not change, in addition to those of every run (`startup.FIXED`).
    `make_objective` makes what changes each step's batches before they are trained on. Raises UserError for settings, data or a
    run folder that cannot work, before any training step.
    """
    ranks = ranks_from(os.environ)
    derived = problem = None
    try:
        derived = derive(settings, task, ranks)
    except UserError as error:
        if ranks.local_world_size == ranks.world_size:
            raise  # on one host every rank has the same error
        problem = f"host {socket.gethostname()}: {error}"

    # Up to this point nothing has been started or written.
    stop = StopRequest().install()
    with RankReporter(ranks, settings.guard.hang_timeout, waiting_code()) as guard:
        ranks = process_group.start()
        if problems := sorted({p for p in collectives.gather_objects(problem) if p}):
            raise UserError("; ".join(problems))
        assert derived is not None
        folder, attempt = RunFolder(Path(settings.out)), collectives.from_main(uuid.uuid4().hex)
        collectives.on_main(startup.open_folder, folder.path, startup.settings_dict(settings), fixed)
        collectives.on_main(lock.acquire, folder, attempt)
        collectives.on_main(forget_ranks, folder)
        guard.publish(folder, attempt)
        setup_logging(folder.path, ranks.rank, ranks.world_size, socket.gethostname())
        run = start(settings, derived, folder, ranks, guard, stop, make_objective)
        try:
            train(run)
            run.profiler.finish()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise UserError(
                f"{error.filename or folder.path}: {error.strerror}; the checkpoints in {folder.path} are complete: "
                "fix this and give the same command again"
            ) from None
        finally:
            run.tracker.finish()
        guard.at("exporting")
        if run.finished and ranks.is_main:
            exported = export_checkpoint(folder, export, folder.export)
            log.info("finished after %d steps; exported to %s", run.learner.state.step, exported)
            write_json(folder.finished, {"step": run.learner.state.step, "time": time.time()})
            print_summary(folder.path)
        collectives.barrier()
        if ranks.is_main:
            lock.release(folder, attempt)
        guard.end("finished" if run.finished else "stopped")
        process_group.stop()


def derive(settings: RunSettings, task: Task, ranks: Ranks) -> Derived:
    """Return what follows from the settings. Raise UserError for all that is known to be wrong without starting anything."""
    if not settings.data.path:
        raise UserError("data.path is missing: name a store (make one with `cromic-ds prepare` or `cromic-ds sample`)")
    dataset = open_dataset(settings.data.path, settings.data.train_split)
    eval_dataset = open_dataset(settings.data.path, settings.data.eval_split)
    check_task(task, dataset, settings.data.path)
    device = local_device()
    source, loop = config.find_ds_config(settings.ds_config), settings.loop
    ds_config = config.load_ds_config(source)
    split = config.split_batch(ds_config, loop.global_batch, ranks.world_size, loop.micro_batch, device.type)
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    answers = dataset.answers if task.kind == "classify" else None
    fine_tuning = task.kind != "comments"
    starting = startup.make_model(settings.model, tokenizer, settings.seed, answers, fine_tuning)
    facts = config.ResolveFacts(
        batch=split,
        ranks_per_node=ranks.local_world_size,
        device=device.type,
        precision=choose_precision(settings.precision, device),
        clip=settings.optim.clip or 0.0,
        hidden_size=starting.model.config.d_model,
        source=str(source),
    )
    ds_config = settings.profile.applied_to(config.resolve(ds_config, facts))
    if loop.compile and ds_config["zero_optimization"]["stage"] == 3:
        raise UserError("loop.compile does not work under ZeRO-3 (hooks break the graph): use zero0, zero1 or zero2")
    total_steps = loop.steps or max(1, math.floor(loop.epochs * len(dataset) / split.global_batch))
    settings.profile.check_steps(total_steps)
    scored = settings_for(task, settings.eval)
    evaluation = Evaluation(scored, task, eval_dataset, settings.data, tokenizer, answers)
    return Derived(
        dataset=dataset,
        evaluation=evaluation,
        start=starting,
        split=split,
        ds_config=ds_config,
        memory=memory_plan(model_facts(starting.model), ds_config, ranks.world_size),
        kernels=select(device, settings.kernels, settings.kernels_debug),
        adam=choose_kernel(settings.optim.implementation, device, config.offloads_optimizer(ds_config)),
        lr_scales=lr_scales(starting.model, settings.optim, starting.taken),
        total_steps=total_steps,
    )


def start(
    settings: RunSettings,
    derived: Derived,
    folder: RunFolder,
    ranks: Ranks,
    guard: RankReporter,
    stop: StopRequest,
    make_objective: MakeObjective | None,
) -> Run:
    """Start all ranks together: check the hosts, load the newest checkpoint, and set up all that surrounds the loop."""
    dataset, evaluation, model = derived.dataset, derived.evaluation, derived.start.model
    values, total_steps, kept = startup.settings_dict(settings), derived.total_steps, settings.checkpoint

    guard.at("preflight")
    n_stored = model_facts(model).n_parameters * (2 if settings.loop.ema_decay else 1)
    n_checkpoints = kept.keep_last + 2  # the best one, and the one that is being written
    preflight(folder, guard.attempt, values, dataset.fingerprint, n_stored, n_checkpoints, ranks)
    log.info("weights: %s", derived.start.origin)
    if ranks.is_main:
        task, answers = evaluation.task.name, evaluation.answers
        startup.write_model_folder(folder.path, model, evaluation.tokenizer, settings.data, task, answers)
        write_json(folder.ds_config, derived.ds_config, indent=1)

    guard.at("loading")
    checkpoint = reader.newest_good(folder)
    if checkpoint is None:
        startup.calibrate_batch_norm(model, derived.start.taken, dataset, settings.data)
    learner = make_learner(settings, derived, ranks)
    if checkpoint is not None:
        learner.state = reader.load_checkpoint(learner.engine, checkpoint, learner.ema, lambda: guard.at("loading"))
        if learner.state.data_fingerprint != dataset.fingerprint:
            raise UserError(
                "the data has changed since this run started (other fingerprint): start a new run folder (--out), "
                "or put the data back"
            )
    first_step, engine = learner.state.step, learner.engine
    kernels = ", ".join(f"{what} {name}" for what, name in {**derived.kernels.names, "optimizer": derived.adam}.items())
    announce(settings, learner, dataset, derived.memory, kernels, total_steps)

    tracker = open_trackers(settings.tracking, folder.path, values, first_step or None, total_steps, ranks.rank)
    run = Run(
        learner=learner,
        batches=training_batches(
            dataset,
            settings.data,
            derived.split,
            ranks.rank,
            image_size=model.image_size,
            seed=settings.seed,
            first_step=first_step,
            last_step=total_steps,
            n_answers=len(evaluation.answers or []),
        ),
        objective=make_objective(folder, dataset, evaluation.tokenizer) if make_objective else None,
        settings=settings,
        total_steps=total_steps,
        evaluation=evaluation,
        checkpoints=CheckpointWriter(engine, folder, kept.keep_last, learner.ema, kept.in_background, tracker),
        tracker=tracker,
        usage=Usage(engine.forward_flops, engine.device),
        profiler=Profiler(settings.profile, folder, engine, ranks.rank, ranks.world_size),
        stop=stop,
        guard=guard,
    )
    if not run.finished and ranks.is_main:
        folder.finished.unlink(missing_ok=True)
    at_step(first_step)
    return run


def make_learner(settings: RunSettings, derived: Derived, ranks: Ranks) -> Learner:
    """Return the starting model under DeepSpeed, with its optimizer and averages, before the first step."""
    model, dataset = derived.start.model, derived.dataset
    install(model, derived.kernels)
    if settings.loop.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.to(local_device())  # pyright: ignore[reportArgumentType]
    offloaded = config.offloads_optimizer(derived.ds_config)
    optimizer, _ = build_optimizer(model, settings.optim, offloaded, derived.lr_scales)
    engine = Engine(model, optimizer, derived.ds_config, settings.loop.compile)
    ema = Ema(engine, settings.loop.ema_decay) if settings.loop.ema_decay else None
    of_tokenizer = tokenizer_fingerprint(derived.evaluation.tokenizer)
    state = TrainState(data_fingerprint=dataset.fingerprint, tokenizer_fingerprint=of_tokenizer)
    return Learner(engine, ema, state, derived.split, ranks, settings.seed, len(dataset))
