"""The pieces around a step. (The loop itself, in real processes: test_pretrain_real.py.)"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from cromic_ds.checkpoints.state import TrainState
from cromic_ds.engine.engine import StepResult
from cromic_ds.errors import UserError
from cromic_ds.ranks.launcher import Ranks
from cromic_ds.tasks import TASKS
from cromic_ds.training.loop import LoopSettings, advance, agree, due, next_batches, remember_best, seeds


class Saved:
    """Checkpoints, as `agree` sees them."""

    pending, writing, completed = False, False, 0

    def complete(self) -> None:
        self.pending, self.completed = False, self.completed + 1


def make_run(ranks: Ranks | None = None, scaler=None, **loop) -> SimpleNamespace:
    """What the functions of the loop read of a `Run`."""
    return SimpleNamespace(
        ranks=ranks or Ranks(),
        seed=7,
        loop=LoopSettings(**loop),
        data=SimpleNamespace(max_skip_rate=0.01),
        engine=SimpleNamespace(scaler=scaler),
        state=TrainState(),
        stop=SimpleNamespace(signal=None),
        checkpoints=Saved(),
        task=TASKS["comments"],
        dataset=range(1000),
        ema=None,
    )


def result(loss: float = 1.0, skipped: bool = False) -> StepResult:
    return StepResult(loss=loss, n_targets=50, n_posts=8, grad_norm=1.0, skipped=skipped)


BATCHES = [SimpleNamespace(ids=["w1", "w2"]), SimpleNamespace(ids=["w3"])]
NOT_FINITE = result(math.nan, skipped=True)


def test_due():
    assert [step for step in range(1, 10) if due(3, step)] == [3, 6, 9]
    assert not any(due(0, step) for step in range(10))


def test_advance_counts():
    run = make_run()
    advance(run, result(), BATCHES)
    advance(run, NOT_FINITE, BATCHES)
    advance(run, result(), BATCHES)
    state = run.state
    assert (state.step, state.posts_seen, state.targets_seen, state.skipped_steps) == (3, 24, 150, 1)
    assert state.skipped_in_a_row == 0
    assert state.loss_scale is None


def test_five_nonfinite_steps_in_a_row_stop_the_run_and_name_the_examples():
    run = make_run()
    for _ in range(4):
        advance(run, NOT_FINITE, BATCHES)
    advance(run, result(), BATCHES)  # starts the count again
    for _ in range(4):
        advance(run, NOT_FINITE, BATCHES)
    with pytest.raises(UserError, match=r"5 steps in a row .* step 10 on the examples w1, w2, w3; lower optim.lr"):
        advance(run, NOT_FINITE, BATCHES)
    assert run.state.skipped_steps == 9


def test_an_infinite_gradient_counts_as_an_infinite_loss_does():
    run = make_run(max_nonfinite=2)
    advance(run, result(1.0, skipped=True), BATCHES)
    with pytest.raises(UserError, match="2 steps in a row"):
        advance(run, result(math.inf, skipped=True), BATCHES)


def test_fp16s_search_for_its_scale_does_not_count():
    scaler = SimpleNamespace(state_dict=lambda: {"value": 4.0, "steps_since_change": 0})
    run = make_run(scaler=scaler, max_nonfinite=2)
    for _ in range(10):
        advance(run, result(1.0, skipped=True), BATCHES)
    assert (run.state.skipped_in_a_row, run.state.skipped_steps) == (0, 10)
    assert run.state.loss_scale == {"value": 4.0, "steps_since_change": 0}
    advance(run, NOT_FINITE, BATCHES)  # a loss that is not finite has nothing to do with the scale
    with pytest.raises(UserError, match="2 steps in a row"):
        advance(run, NOT_FINITE, BATCHES)


def test_seeds_do_not_depend_on_the_split():
    def by_micro_batch(world_size: int, accumulation: int, step: int) -> list[int]:
        of_rank = [seeds(make_run(Ranks(r, world_size)), step, accumulation) for r in range(world_size)]
        return [of_rank[r][a] for a in range(accumulation) for r in range(world_size)]  # in the order of the positions

    for step in (0, 5):
        reference = by_micro_batch(1, 8, step)
        assert by_micro_batch(2, 4, step) == by_micro_batch(4, 2, step) == by_micro_batch(8, 1, step) == reference
    everything = [seed for step in range(50) for seed in by_micro_batch(2, 4, step)]
    assert len(set(everything)) == len(everything) == 400
    assert seeds(make_run(), 3, 2) == seeds(make_run(), 3, 2)


def batch(n_targets: int, *skipped: tuple[str, str]) -> SimpleNamespace:
    return SimpleNamespace(n_targets=n_targets, skipped=list(skipped))


def test_agree_counts_targets_and_stop_requests():
    run = make_run()
    assert agree(run, [batch(30), batch(12)]) == (42, "")
    run.stop.signal = "SIGTERM"
    assert agree(run, [batch(30)]) == (30, "SIGTERM")


def test_agree_completes_a_checkpoint_that_no_rank_writes_any_more():
    run = make_run()
    agree(run, [batch(30)])
    assert run.checkpoints.completed == 0
    run.checkpoints.pending = run.checkpoints.writing = True
    agree(run, [batch(30)])
    assert run.checkpoints.completed == 0
    run.checkpoints.writing = False
    agree(run, [batch(30)])
    agree(run, [batch(30)])
    assert run.checkpoints.completed == 1


def test_agree_counts_unreadable_records_and_names_them(caplog):
    run = make_run(global_batch=8)
    agree(run, [batch(30, ("w1", "has no image")), batch(12)])
    assert run.state.skipped_records == 1
    assert "step 1: example 'w1' left out: has no image" in caplog.text
    many = [batch(1, *((f"w{i}", "checksum") for i in range(10)))]
    with pytest.raises(UserError, match=r"11 of 1000 examples could not be read in epoch 0"):
        agree(run, many)
    run.state.step, run.state.records.count = 125, 0  # 125 · 8 posts: the next epoch
    agree(run, many)
    assert (run.state.records.epoch, run.state.records.count) == (1, 10)


def test_next_batches_tells_the_seconds_waited():
    run = SimpleNamespace(batches=iter([[1], [2]]))
    batches, waited = next_batches(run)
    assert batches == [1]
    assert 0 <= waited < 1


def test_the_best_evaluation_is_remembered():
    run = make_run()
    for step, perplexity in ((10, 9.0), (20, 7.0), (30, 8.0)):
        run.state.step = step
        remember_best(run, {"perplexity": perplexity})
    assert (run.state.best_score, run.state.best_step) == (7.0, 20)
    remember_best(run, {})
    assert run.state.best_step == 20
