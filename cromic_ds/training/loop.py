"""The training loop, top to bottom, and what happens around a step: each one clearly named call."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cromic_ds.batch import Batch
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.checkpoints.writer import CheckpointWriter
from cromic_ds.data.dataset import Dataset
from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.data.order import example_seed
from cromic_ds.engine.ema import Ema
from cromic_ds.engine.engine import Engine, StepResult
from cromic_ds.engine.profile import Profiler
from cromic_ds.errors import UserError
from cromic_ds.inference.scoring import generate_predictions, sample_rows, score_predictions, teacher_forced
from cromic_ds.inference.settings import EvalSettings
from cromic_ds.metrics.perplexity import perplexity
from cromic_ds.ranks.collectives import average_buffers, gather_objects, sum_over_ranks
from cromic_ds.ranks.launcher import Ranks
from cromic_ds.ranks.reporter import RankReporter
from cromic_ds.ranks.signals import StopRequest
from cromic_ds.tasks import Task
from cromic_ds.tracking import Tracker
from cromic_ds.tracking.log import at_step
from cromic_ds.training.optimizer import OptimizerSettings
from cromic_ds.training.schedule import learning_rate
from cromic_ds.training.usage import Usage

log = logging.getLogger(__name__)
MEAN_LOSS_STEPS = 50


@dataclass
class LoopSettings:
    """How long a run trains, on how much at a time, and what it keeps."""

    epochs: float = 5.0
    """Passes over the training split; not used where `steps` is given."""
    steps: int = 0
    """Optimizer steps in total; 0 = from `epochs`."""
    global_batch: int = 64
    """Posts per optimizer step, over all ranks and accumulation steps."""
    micro_batch: int = 0
    """Posts per rank in one forward pass; 0 = the largest that fits the arithmetic, at most 64 on a GPU, 8 on a CPU."""
    save_every: int = 500
    """Steps between checkpoints; 0 = only at the end."""
    save_in_background: bool = True
    """Train on while a checkpoint is written, from a copy of it in host memory (each rank's part: up to 16 bytes a parameter in
    all); false = wait."""
    keep_last: int = 2
    """Newest checkpoints to keep; the best one stays as well."""
    max_nonfinite: int = 5
    """Stop after this many steps in a row that were skipped because a loss or gradient was not finite, or a loss too high."""
    max_loss_ratio: float = 0.0
    """Skip a step, on all ranks, if the mean loss of a micro-batch is above this many times the running mean of the loss over
    about the last 50 steps (5, say); 0 = never."""
    activation_checkpointing: bool = False
    """Recompute the transformer layers' activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the transformer layers with torch.compile (ZeRO stages 0 to 2)."""
    ema_decay: float = 0.0
    """Evaluate and export an exponential moving average of the weights with this decay (0.999, say); 0 = none."""
    patience: int = 0
    """Stop after this many evaluations in a row without a better score of the task; 0 = never."""
    hang_timeout: float = 900.0
    """Seconds without progress (a step, a batch of an evaluation, a checkpoint) after which a rank counts as hanging and the
    run is ended on all hosts; before the first step at least 600."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if self.hang_timeout <= 0:
            raise UserError(f"loop.hang_timeout is {self.hang_timeout}: give seconds above 0 (a day is 86400)")
        if not 0 < self.epochs < math.inf or self.steps < 0:
            raise UserError("loop.epochs must be above 0, loop.steps 0 (from the epochs) or more")
        if self.max_loss_ratio and not 1 < self.max_loss_ratio < math.inf:
            raise UserError(
                f"loop.max_loss_ratio is {self.max_loss_ratio}: give a number above 1, or 0 to skip no spike"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"loop.ema_decay is {self.ema_decay}: give a decay below 1, or 0 for no average")
        if self.patience < 0:
            raise UserError(f"loop.patience is {self.patience}: give a number of evaluations, or 0 for never")


# What changes a step's batches just before it (self-critical training samples its targets), with values for the log.
Objective = Callable[["Run", list[Batch]], tuple[list[Batch], dict[str, float]]]


@dataclass
class Run:
    """Everything the loop works with."""

    folder: Path
    ranks: Ranks
    seed: int
    total_steps: int
    loop: LoopSettings
    optim: OptimizerSettings
    eval: EvalSettings
    data: DataSettings
    task: Task
    objective: Objective | None
    engine: Engine
    ema: Ema | None
    state: TrainState
    checkpoints: CheckpointWriter
    batches: Iterator[list[Batch]]  # this rank's micro-batches of each step, from state.step on
    dataset: Dataset
    eval_dataset: Dataset
    answers: list[str] | None  # where answers are classified
    tokenizer: PreTrainedTokenizerBase
    image_size: int  # side of the crops in pixels; 0 = the model reads no images
    tracker: Tracker
    usage: Usage
    profiler: Profiler
    stop: StopRequest
    guard: RankReporter

    @property
    def finished(self) -> bool:
        return self.state.step >= self.total_steps or 0 < self.loop.patience <= self.state.worse_in_a_row


def train(run: Run) -> None:
    """Train from the state's step to the last one, to a stop request, or until the score no longer rises."""
    while not run.finished:
        step = run.state.step
        run.guard.at("reading data", step)
        run.profiler.begin(step + 1)
        batches, waited = next_batches(run)
        batches, values = run.objective(run, batches) if run.objective else (batches, {})
        drawn = seeds(run, step, len(batches))
        # What is drawn for an example follows from the step and the example, however the global batch is split.
        drawn_in_step = example_seed(run.seed, step, -1)
        batches = [run.engine.model.draw(batch, drawn_in_step) for batch in batches]
        run.guard.at("in a step")
        n_targets, stopping = agree(run, batches)
        lr = learning_rate(run.optim, step, run.total_steps)
        result = run.engine.train_step(batches, lr, n_targets, drawn, highest_loss(run))
        advance(run, result, batches)
        log_step(run, result, values, lr, waited, batches)
        run.profiler.end(step + 1)

        last = run.state.step == run.total_steps
        if last or due(run.eval.every, run.state.step):
            evaluate(run)
        best = run.state.best_step == run.state.step
        if run.finished or best or stopping or due(run.loop.save_every, run.state.step):
            save(run, wait=bool(run.finished or stopping))
        if run.finished and not last:
            log.info("stopped: no better %s in %d evaluations", run.task.best_metric, run.loop.patience)
        elif stopping and not last:
            log.info("stopped by %s after step %d; the same command goes on from here", stopping, run.state.step)
            return


def due(every: int | None, step: int) -> bool:
    return bool(every) and step % every == 0


def next_batches(run: Run) -> tuple[list[Batch], float]:
    """The step's micro-batches, and the seconds spent waiting for them."""
    start = time.perf_counter()
    batches = next(run.batches)
    return batches, time.perf_counter() - start


def agree(run: Run, batches: list[Batch]) -> tuple[int, str]:
    """What all ranks must know before the step: the global batch's target tokens, unreadable records, a stop request, a
    checkpoint that is written.

    One small all-reduce. The stop request is agreed on here so that every rank stops after the same step.
    """
    skipped = [record for batch in batches for record in batch.skipped]
    targets, n_skipped, stops, writing = sum_over_ranks(
        [sum(b.n_targets for b in batches), len(skipped), run.stop.signal is not None, run.checkpoints.writing]
    )
    if run.checkpoints.pending and not writing:
        run.checkpoints.complete()
    if n_skipped:
        named = [record for part in gather_objects(skipped) for record in part]
        for id, reason in named:
            log.warning("step %d: example %r left out: %s", run.state.step + 1, id, reason)
        run.state.skipped_records += int(n_skipped)
        epoch = run.state.step * run.loop.global_batch // len(run.dataset)
        run.state.records.add(
            epoch, int(n_skipped), named, epoch_size=len(run.dataset), max_rate=run.data.max_skip_rate
        )
    return int(targets), (run.stop.signal or "another rank's signal") if stops else ""


def seeds(run: Run, step: int, accumulation: int) -> list[int]:
    """One seed for each of this rank's micro-batches, for dropout: a function of (seed, step, global micro-batch)."""
    first = step * accumulation * run.ranks.world_size
    numbers = [first + a * run.ranks.world_size + run.ranks.rank for a in range(accumulation)]
    return [example_seed(run.seed, step, number) for number in numbers]


def highest_loss(run: Run) -> float:
    """Of a micro-batch, per target token, with which a step is still taken."""
    mean = run.state.mean_loss
    return run.loop.max_loss_ratio * mean if run.loop.max_loss_ratio and mean else math.inf


def advance(run: Run, result: StepResult, batches: list[Batch]) -> None:
    """Count the step; stop the run where too many in a row gave no update."""
    state = run.state
    state.step += 1
    at_step(state.step)
    if run.ema and not result.skipped:
        run.ema.update()
    state.posts_seen += result.n_posts
    state.targets_seen += result.n_targets
    state.skipped_steps += result.skipped
    if not result.skipped:
        mean = state.mean_loss
        state.mean_loss = result.loss if mean is None else mean + (result.loss - mean) / MEAN_LOSS_STEPS
    state.loss_scale = run.engine.scaler.state_dict() if run.engine.scaler else None
    # With fp16 a skipped step whose loss is finite is the loss scale finding its size.
    bad = result.skipped and not (run.engine.scaler and math.isfinite(result.loss))
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if bad else 0
    if not bad:
        return
    ids = [id for part in gather_objects([id for b in batches for id in b.ids]) for id in part]
    log.warning("step %d skipped: loss %s, gradient norm %s", state.step, result.loss, result.grad_norm)
    if state.skipped_in_a_row >= run.loop.max_nonfinite:
        raise UserError(
            f"{state.skipped_in_a_row} steps in a row had a non-finite loss or gradient (or a loss above loop.max_loss_ratio), "
            f"the last one step {state.step} on the examples {', '.join(ids)}; lower optim.lr, look at these examples, or use "
            "precision fp32"
        )


def log_step(
    run: Run, result: StepResult, more: dict[str, float], lr: float, waited: float, batches: list[Batch]
) -> None:
    values = {
        "loss": result.loss,
        **({"perplexity": perplexity(result.loss, 1)} if run.answers is None and not more else {}),
        **more,
        "lr": lr,
        "grad_norm": result.grad_norm,
        "epoch": run.state.step * run.loop.global_batch / len(run.dataset),
        "n_targets": result.n_targets,
        "skipped_steps": run.state.skipped_steps,
        "skipped_records": run.state.skipped_records,
        **run.usage.step(result.n_posts, result.n_targets, waited, batches),
    }
    run.tracker.log(run.state.step, values, "train")


def evaluate(run: Run) -> None:
    """Loss over the split, then texts for its first examples, their scores and pictures; with the averaged weights where
    there are some."""
    # No step comes for a while: what is written would wait for one to become a checkpoint.
    run.checkpoints.finish(lambda: run.guard.at("saving"))
    settings, start = run.eval, time.perf_counter()
    shard = {
        "image_size": run.image_size,
        "micro_batch": settings.micro_batch,
        "rank": run.ranks.rank,
        "world_size": run.ranks.world_size,
        "n_answers": len(run.answers or []),
    }
    average_buffers(run.engine.model)
    with run.ema.applied() if run.ema else nullcontext():
        values = teacher_forced(
            run.engine.loss_sum,
            run.guard.each(eval_batches(run.eval_dataset, run.data, limit=settings.examples, **shard), "evaluating"),
        )
        predictions = {}
        if settings.generate:
            with run.engine.full_weights() as model:
                batches = eval_batches(run.eval_dataset, run.data, limit=settings.generate, **shard)
                batches = run.guard.each(batches, "generating")
                predictions = generate_predictions(model, run.tokenizer, batches, settings.decoding, run.answers)
    run.guard.at("scoring")
    if predictions and run.ranks.is_main:
        values |= score_predictions(run.task, run.eval_dataset, predictions, settings.tokenization)
        run.tracker.samples(run.state.step, sample_rows(run.eval_dataset, predictions, settings.pictures))
    values["seconds"] = time.perf_counter() - start
    remember_best(run, values)
    run.tracker.log(run.state.step, values, "eval")
    run.usage.restart()


def remember_best(run: Run, values: dict) -> None:
    """Note whether this is the best evaluation so far, the same on every rank."""
    better = gather_objects(values.get(run.task.best_metric))[0]
    if better is None:
        return
    best = run.state.best_score
    if best is None or (better > best if run.task.higher_is_better else better < best):
        run.state.best_score, run.state.best_step, run.state.worse_in_a_row = better, run.state.step, 0
    else:
        run.state.worse_in_a_row += 1


def save(run: Run, wait: bool) -> None:
    """Start a checkpoint; `wait` until it is complete."""
    run.guard.at("saving", run.state.step)
    run.checkpoints.begin(run.state, lambda: run.guard.at("saving"))
    if wait:
        run.checkpoints.finish(lambda: run.guard.at("saving"))
    run.usage.restart()
