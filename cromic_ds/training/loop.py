"""The training loop, top to bottom. What happens around a step is one named call each."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cromic_ds.batch import Batch
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.checkpoints.writer import CheckpointWriter
from cromic_ds.engine.engine import StepResult
from cromic_ds.engine.profile import Profiler
from cromic_ds.errors import UserError
from cromic_ds.metrics.perplexity import perplexity
from cromic_ds.ranks.collectives import gather_objects, sum_over_ranks
from cromic_ds.ranks.reporter import RankReporter
from cromic_ds.ranks.signals import StopRequest
from cromic_ds.tracking import Tracker
from cromic_ds.tracking.log import at_step
from cromic_ds.training.evaluation import Evaluation, run_evaluation
from cromic_ds.training.learner import Learner, Objective
from cromic_ds.training.optimizer import learning_rate
from cromic_ds.training.settings import GuardSettings, RunSettings
from cromic_ds.training.usage import Usage

log = logging.getLogger(__name__)
MEAN_LOSS_STEPS = 50


@dataclass
class Run:
    """What a step works on (`learner`, `batches`, `objective`), and what surrounds it."""

    learner: Learner
    batches: Iterator[list[Batch]]  # this rank's micro-batches of each step, from state.step on
    objective: Objective | None
    settings: RunSettings
    total_steps: int
    evaluation: Evaluation
    checkpoints: CheckpointWriter
    tracker: Tracker
    usage: Usage
    profiler: Profiler
    stop: StopRequest
    guard: RankReporter

    @property
    def finished(self) -> bool:
        state, patience = self.learner.state, self.settings.loop.patience
        return state.step >= self.total_steps or (patience is not None and state.worse_in_a_row >= patience)


def train(run: Run) -> None:
    """Train until the last step, a stop request, or the end of `loop.patience`."""
    learner, state, settings = run.learner, run.learner.state, run.settings
    stopping = ""
    while not (run.finished or stopping):
        run.guard.at("reading data", state.step)
        run.profiler.begin(state.step + 1)
        batches, waited = next_batches(run.batches)
        batches, values = run.objective(learner, batches) if run.objective else (batches, {})
        batches = learner.draw(batches)
        run.guard.at("in a step")
        n_targets, stopping = agree(learner, batches, run.checkpoints, run.stop, settings.data.max_skip_rate)
        lr = learning_rate(settings.optim, state.step, run.total_steps)
        max_loss = highest_loss(state, settings.guard)
        result = learner.engine.train_step(batches, lr, n_targets, learner.micro_batch_seeds(), max_loss)
        advance(learner, result, batches, settings.guard)
        values = step_values(learner, result, batches, lr, values) | run.usage.step(result, batches, waited)
        run.tracker.log(state.step, values, "train")
        run.profiler.end(state.step)

        if state.step == run.total_steps or due(settings.eval.every, state.step):
            run_evaluation(run.evaluation, learner, run.checkpoints, run.tracker, run.guard)
            run.usage.restart()
        if run.finished or stopping or state.best_step == state.step or due(settings.checkpoint.every, state.step):
            save(run.checkpoints, state, run.guard, wait=run.finished or bool(stopping))
            run.usage.restart()
        if run.finished and state.step < run.total_steps:
            log.info("stopped: no better %s in %d evaluations", run.evaluation.task.best_metric, settings.loop.patience)
        elif stopping and not run.finished:
            log.info("stopped by %s after step %d; the same command resumes here", stopping, state.step)


def due(every: int | None, step: int) -> bool:
    """Return whether something that happens every so many steps, or never (null), happens after `step`."""
    return bool(every) and step % every == 0


def next_batches(batches: Iterator[list[Batch]]) -> tuple[list[Batch], float]:
    """Return the step's micro-batches, and the seconds spent waiting for them."""
    start = time.perf_counter()
    return next(batches), time.perf_counter() - start


def agree(
    learner: Learner, batches: list[Batch], checkpoints: CheckpointWriter, stop: StopRequest, max_skip_rate: float
) -> tuple[int, str]:
    """Return the target tokens of the global batch, and what asked all ranks to stop after this step ("" for nothing).

    One small all-reduce. It also counts the unreadable records, and completes a checkpoint that every rank has written.
    Raises UserError if more than `max_skip_rate` of an epoch's records are unreadable.
    """
    state = learner.state
    skipped = [record for batch in batches for record in batch.skipped]
    targets, n_skipped, stops, writing = sum_over_ranks(
        [sum(b.n_targets for b in batches), len(skipped), stop.signal is not None, checkpoints.writing]
    )
    if checkpoints.pending and not writing:
        checkpoints.complete()
    if n_skipped:
        named = [record for part in gather_objects(skipped) for record in part]
        for id, reason in named:
            log.warning("step %d: example %r left out: %s", state.step + 1, id, reason)
        state.skipped_records += int(n_skipped)
        epoch, size = state.step * learner.split.global_batch // learner.epoch_size, learner.epoch_size
        state.records.add(epoch, int(n_skipped), named, epoch_size=size, max_rate=max_skip_rate)
    return int(targets), (stop.signal or "another rank's signal") if stops else ""


def highest_loss(state: TrainState, guard: GuardSettings) -> float:
    """Return the upper bound on a micro-batch's loss per target token; above it the step is skipped."""
    return guard.max_loss_ratio * state.mean_loss if guard.max_loss_ratio and state.mean_loss else math.inf


def advance(learner: Learner, result: StepResult, batches: list[Batch], guard: GuardSettings) -> None:
    """Count the step. Raise UserError if it is the last of `guard.max_nonfinite` steps in a row that were skipped."""
    state, scaler = learner.state, learner.engine.scaler
    state.step += 1
    at_step(state.step)
    if not result.skipped:
        if learner.ema:
            learner.ema.update()
        mean = state.mean_loss
        state.mean_loss = result.loss if mean is None else mean + (result.loss - mean) / MEAN_LOSS_STEPS
    state.posts_seen += result.n_posts
    state.targets_seen += result.n_targets
    state.skipped_steps += result.skipped
    state.loss_scale = scaler.state_dict() if scaler else None
    # With fp16, steps with a finite loss are skipped while the loss scale is adjusted.
    bad = result.skipped and not (scaler and math.isfinite(result.loss))
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if bad else 0
    if not bad:
        return
    ids = [id for part in gather_objects([id for b in batches for id in b.ids]) for id in part]
    log.warning("step %d skipped: loss %s, gradient norm %s", state.step, result.loss, result.grad_norm)
    if state.skipped_in_a_row >= guard.max_nonfinite:
        raise UserError(
            f"{state.skipped_in_a_row} steps in a row had a non-finite loss or gradient, or a loss above guard.max_loss_ratio; "
            f"the last one is step {state.step} on the examples {', '.join(ids)}; lower optim.lr, look at these examples, "
            "or use precision fp32"
        )


def step_values(
    learner: Learner, result: StepResult, batches: list[Batch], lr: float, of_objective: dict[str, float]
) -> dict[str, float]:
    """Return what the step gave, for the log."""
    state, values = learner.state, {"loss": result.loss, **of_objective}
    if batches[0].answer_targets is None and not of_objective:  # the loss is nats per token of given texts
        values["perplexity"] = perplexity(result.loss, 1)
    return {
        **values,
        "lr": lr,
        "grad_norm": result.grad_norm,
        "epoch": state.step * learner.split.global_batch / learner.epoch_size,
        "n_targets": result.n_targets,
        "skipped_steps": state.skipped_steps,
        "skipped_records": state.skipped_records,
    }


def save(checkpoints: CheckpointWriter, state: TrainState, guard: RankReporter, wait: bool) -> None:
    """Start a checkpoint of this step. With `wait`, return when it is complete."""
    guard.at("saving", state.step)
    checkpoints.begin(state, lambda: guard.at("saving"))
    if wait:
        checkpoints.finish(lambda: guard.at("saving"))
