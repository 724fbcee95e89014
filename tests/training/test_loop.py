"""The pieces around a step. (The loop itself, in real processes: test_pretrain_real.py.)"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from cromic_ds.batch import BatchSplit
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.engine.engine import StepResult
from cromic_ds.errors import UserError
from cromic_ds.ranks.launcher import Ranks
from cromic_ds.training.learner import Learner
from cromic_ds.training.loop import advance, agree, due, highest_loss, next_batches
from cromic_ds.training.settings import CheckpointSettings, GuardSettings, LoopSettings


class Saved:
    """Checkpoints, as `agree` sees them."""

    pending, writing, completed = False, False, 0

    def complete(self) -> None:
        self.pending, self.completed = False, self.completed + 1


def make_learner(ranks: Ranks | None = None, scaler=None, split: BatchSplit | None = None) -> Learner:
    ranks = ranks or Ranks()
    return Learner(
        engine=SimpleNamespace(scaler=scaler),
        ema=None,
        state=TrainState(),
        split=split or BatchSplit.derive(64, ranks.world_size),
        ranks=ranks,
        seed=7,
        epoch_size=1000,
    )


def result(loss: float = 1.0, skipped: bool = False) -> StepResult:
    return StepResult(loss=loss, n_targets=50, n_posts=8, grad_norm=1.0, skipped=skipped)


BATCHES = [SimpleNamespace(ids=["w1", "w2"]), SimpleNamespace(ids=["w3"])]
NOT_FINITE = result(math.nan, skipped=True)
GUARD = GuardSettings()


def test_due():
    assert [step for step in range(1, 10) if due(3, step)] == [3, 6, 9]
    assert not any(due(None, step) for step in range(10))


def test_advance_counts():
    learner = make_learner()
    advance(learner, result(), BATCHES, GUARD)
    advance(learner, NOT_FINITE, BATCHES, GUARD)
    advance(learner, result(), BATCHES, GUARD)
    state = learner.state
    assert (state.step, state.posts_seen, state.targets_seen, state.skipped_steps) == (3, 24, 150, 1)
    assert state.skipped_in_a_row == 0
    assert state.loss_scale is None


def test_five_nonfinite_steps_in_a_row_stop_the_run_and_name_the_examples():
    learner = make_learner()
    for _ in range(4):
        advance(learner, NOT_FINITE, BATCHES, GUARD)
    advance(learner, result(), BATCHES, GUARD)  # starts the count again
    for _ in range(4):
        advance(learner, NOT_FINITE, BATCHES, GUARD)
    with pytest.raises(UserError, match=r"5 steps in a row .* step 10 on the examples w1, w2, w3; lower optim.lr"):
        advance(learner, NOT_FINITE, BATCHES, GUARD)
    assert learner.state.skipped_steps == 9


def test_an_infinite_gradient_counts_as_an_infinite_loss_does():
    learner, guard = make_learner(), GuardSettings(max_nonfinite=2)
    advance(learner, result(1.0, skipped=True), BATCHES, guard)
    with pytest.raises(UserError, match="2 steps in a row"):
        advance(learner, result(math.inf, skipped=True), BATCHES, guard)


def test_fp16s_search_for_its_scale_does_not_count():
    scaler = SimpleNamespace(state_dict=lambda: {"value": 4.0, "steps_since_change": 0})
    learner, guard = make_learner(scaler=scaler), GuardSettings(max_nonfinite=2)
    for _ in range(10):
        advance(learner, result(1.0, skipped=True), BATCHES, guard)
    assert (learner.state.skipped_in_a_row, learner.state.skipped_steps) == (0, 10)
    assert learner.state.loss_scale == {"value": 4.0, "steps_since_change": 0}
    advance(learner, NOT_FINITE, BATCHES, guard)  # a loss that is not finite has nothing to do with the scale
    with pytest.raises(UserError, match="2 steps in a row"):
        advance(learner, NOT_FINITE, BATCHES, guard)


def test_a_step_is_skipped_above_a_multiple_of_the_mean_loss():
    state = TrainState(mean_loss=2.0)
    assert highest_loss(state, GuardSettings(max_loss_ratio=5)) == 10
    assert highest_loss(state, GuardSettings()) == math.inf
    assert highest_loss(TrainState(), GuardSettings(max_loss_ratio=5)) == math.inf  # before the first step


def test_seeds_do_not_depend_on_the_split():
    def by_micro_batch(world_size: int, accumulation: int, step: int) -> list[int]:
        split = BatchSplit(8, 8 // world_size // accumulation, world_size)
        of_rank = []
        for rank in range(world_size):
            learner = make_learner(Ranks(rank, world_size), split=split)
            learner.state.step = step
            of_rank.append(learner.micro_batch_seeds())
        return [of_rank[r][a] for a in range(accumulation) for r in range(world_size)]  # in the order of the positions

    for step in (0, 5):
        reference = by_micro_batch(1, 8, step)
        assert by_micro_batch(2, 4, step) == by_micro_batch(4, 2, step) == by_micro_batch(8, 1, step) == reference
    everything = [seed for step in range(50) for seed in by_micro_batch(2, 4, step)]
    assert len(set(everything)) == len(everything) == 400
    assert by_micro_batch(1, 2, 3) == by_micro_batch(1, 2, 3)


def batch(n_targets: int, *skipped: tuple[str, str]) -> SimpleNamespace:
    return SimpleNamespace(n_targets=n_targets, skipped=list(skipped))


def agreed(learner: Learner, batches: list, checkpoints=None, stopping: str | None = None) -> tuple[int, str]:
    return agree(learner, batches, checkpoints or Saved(), SimpleNamespace(signal=stopping), max_skip_rate=0.01)


def test_agree_counts_targets_and_stop_requests():
    assert agreed(make_learner(), [batch(30), batch(12)]) == (42, "")
    assert agreed(make_learner(), [batch(30)], stopping="SIGTERM") == (30, "SIGTERM")


def test_agree_completes_a_checkpoint_that_no_rank_writes_any_more():
    learner, checkpoints = make_learner(), Saved()
    agreed(learner, [batch(30)], checkpoints)
    assert checkpoints.completed == 0
    checkpoints.pending = checkpoints.writing = True
    agreed(learner, [batch(30)], checkpoints)
    assert checkpoints.completed == 0
    checkpoints.writing = False
    agreed(learner, [batch(30)], checkpoints)
    agreed(learner, [batch(30)], checkpoints)
    assert checkpoints.completed == 1


def test_agree_counts_unreadable_records_and_names_them(caplog):
    learner = make_learner(split=BatchSplit(8, 8))
    state = learner.state
    agreed(learner, [batch(30, ("w1", "has no image")), batch(12)])
    assert state.skipped_records == 1
    assert "step 1: example 'w1' left out: has no image" in caplog.text
    many = [batch(1, *((f"w{i}", "checksum") for i in range(10)))]
    with pytest.raises(UserError, match=r"11 of 1000 examples could not be read in epoch 0"):
        agreed(learner, many)
    state.step, state.records.count = 125, 0  # 125 · 8 posts: the next epoch
    agreed(learner, many)
    assert (state.records.epoch, state.records.count) == (1, 10)


def test_next_batches_measures_the_wait():
    batches, waited = next_batches(iter([[1], [2]]))
    assert batches == [1]
    assert 0 <= waited < 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (LoopSettings(epochs=0.0), "loop.epochs must be above 0"),
        (LoopSettings(steps=0), "loop.steps is 0: .* or null to train for loop.epochs"),
        (LoopSettings(ema_decay=1.0), "loop.ema_decay is 1.0: .* or null for no average"),
        (LoopSettings(patience=0), "loop.patience is 0: .* or null for never"),
        (CheckpointSettings(every=0), "checkpoint.every is 0: .* or null for only at the end"),
        (CheckpointSettings(keep_last=0), "checkpoint.keep_last is 0: keep at least 1"),
        (GuardSettings(hang_timeout=0.0), "guard.hang_timeout is 0.0: give seconds above 0"),
        (GuardSettings(max_nonfinite=0), "guard.max_nonfinite is 0: give at least 1 step"),
        (GuardSettings(max_loss_ratio=0.5), "guard.max_loss_ratio is 0.5: give a number above 1, or null for never"),
    ],
)
def test_settings_that_cannot_work(section, message):
    with pytest.raises(UserError, match=message):
        section.check()
