"""The evaluations of a run, and which of them is the best so far."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerFast

from cromic_ds.checkpoints.state import TrainState
from cromic_ds.checkpoints.writer import CheckpointWriter
from cromic_ds.data.dataset import Dataset
from cromic_ds.data.loader import DataSettings, eval_batches
from cromic_ds.inference.decoding import decoding_for
from cromic_ds.inference.scoring import generate_predictions, sample_rows, score_predictions, teacher_forced
from cromic_ds.inference.settings import DecodingSettings, EvalSettings
from cromic_ds.ranks.collectives import average_buffers, gather_objects
from cromic_ds.ranks.reporter import RankReporter
from cromic_ds.tasks import Task
from cromic_ds.tracking import Tracker
from cromic_ds.training.learner import Learner


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated on what; the same for all evaluations of a run."""

    settings: EvalSettings
    task: Task
    dataset: Dataset
    data: DataSettings
    tokenizer: PreTrainedTokenizerFast
    answers: list[str] | None  # where answers are classified


def settings_for(task: Task, settings: EvalSettings) -> EvalSettings:
    """Return the settings, with the task's tokenization if they leave the choice to it."""
    return replace(settings, tokenization=task.choose_tokenization(settings.tokenization))


def run_evaluation(
    evaluation: Evaluation, learner: Learner, checkpoints: CheckpointWriter, tracker: Tracker, guard: RankReporter
) -> None:
    """Compute the loss over the split, generate texts for its first examples and score them; log all, with sample pictures.

    Uses the averaged weights if the run has them.
    """
    # A checkpoint is completed in the all-reduce of a step, and for a while there will be none.
    checkpoints.finish(lambda: guard.at("saving"))
    settings, task, dataset, state = evaluation.settings, evaluation.task, evaluation.dataset, learner.state
    engine, answers = learner.engine, evaluation.answers
    start = time.perf_counter()
    decoding = decoding_for(task, DecodingSettings(beams=settings.beams))
    shard = {
        "image_size": engine.model.image_size,
        "micro_batch": settings.micro_batch,
        "n_answers": len(answers or []),
        "rank": learner.ranks.rank,
        "world_size": learner.ranks.world_size,
    }
    average_buffers(engine.model)
    with learner.ema.applied() if learner.ema else nullcontext():
        batches = eval_batches(dataset, evaluation.data, limit=settings.examples, **shard)
        values = teacher_forced(engine.loss_sum, guard.each(batches, "evaluating"))
        predictions = {}
        if settings.generate:
            with engine.full_weights() as model:
                batches = eval_batches(dataset, evaluation.data, limit=settings.generate, **shard)
                batches = guard.each(batches, "generating")
                predictions = generate_predictions(model, evaluation.tokenizer, batches, decoding, answers)
    guard.at("scoring")
    if predictions and learner.ranks.is_main:
        values |= score_predictions(task, dataset, predictions, settings.tokenization)
        tracker.samples(state.step, sample_rows(dataset, predictions, settings.pictures))
    values["seconds"] = time.perf_counter() - start
    remember_best(state, task, values)
    tracker.log(state.step, values, "eval")


def remember_best(state: TrainState, task: Task, values: dict) -> None:
    """Note in the state whether this is the best evaluation so far. Collective: every rank notes what rank 0 scored."""
    value = gather_objects(values.get(task.best_metric))[0]
    if value is None:
        return
    best = state.best_score
    if best is None or (value > best if task.higher_is_better else value < best):
        state.best_score, state.best_step, state.worse_in_a_row = value, state.step, 0
    else:
        state.worse_in_a_row += 1
