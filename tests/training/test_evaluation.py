"""Which evaluation is the best so far. (Evaluations in real runs: test_pretrain_real.py.)"""

from __future__ import annotations

from cromic_ds.checkpoints.state import TrainState
from cromic_ds.inference.settings import EvalSettings
from cromic_ds.tasks import TASKS
from cromic_ds.training.evaluation import remember_best, settings_for


def test_the_best_evaluation_is_remembered():
    state, task = TrainState(), TASKS["comments"]
    for step, perplexity in ((10, 9.0), (20, 7.0), (30, 8.0), (40, 7.0)):
        state.step = step
        remember_best(state, task, {"perplexity": perplexity})
    assert (state.best_score, state.best_step, state.worse_in_a_row) == (7.0, 20, 2)
    remember_best(state, task, {})
    assert (state.best_step, state.worse_in_a_row) == (20, 2)
    state.step = 50
    remember_best(state, task, {"perplexity": 6.0})
    assert (state.best_score, state.best_step, state.worse_in_a_row) == (6.0, 50, 0)


def test_higher_is_better_for_captions():
    state, task = TrainState(step=10), TASKS["muge"]
    remember_best(state, task, {"cider": 0.5})
    state.step = 20
    remember_best(state, task, {"cider": 0.4})
    assert (state.best_score, state.best_step) == (0.5, 10)


def test_the_task_chooses_the_tokenization_if_the_settings_do_not():
    task = TASKS["muge"]
    assert settings_for(task, EvalSettings()).tokenization == task.tokenization
    given = EvalSettings(tokenization="bert", beams=3)
    assert settings_for(task, given) == given
