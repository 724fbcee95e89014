"""A `TrainState` survives JSON to the last bit."""

from __future__ import annotations

import dataclasses
import json

from cromic_ds.checkpoints.state import TrainState
from cromic_ds.data.loader import SkipCounter


def test_a_state_survives_json():
    state = TrainState(
        step=1200,
        posts_seen=76_800,
        targets_seen=2_000_000_000_000,
        skipped_steps=3,
        skipped_in_a_row=1,
        skipped_records=2,
        records=SkipCounter(epoch=4, count=2, named=[("w1", "has no image"), ("w 2 ", "checksum")]),
        loss_scale={"value": 65536.0, "steps_since_change": 17},
        best_score=1 / 3,
        best_step=900,
        worse_in_a_row=2,
        mean_loss=2.5,
        data_fingerprint="d" * 16,
        tokenizer_fingerprint="t" * 16,
    )
    back = TrainState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert [tuple(name) for name in back.records.named] == state.records.named
    back.records.named = state.records.named  # JSON knows no tuples
    assert back == state
    assert all(getattr(state, f.name) != f.default for f in dataclasses.fields(state))  # none was left out above


def test_a_fresh_state_survives_json():
    assert TrainState.from_dict(json.loads(json.dumps(TrainState().to_dict()))) == TrainState()


def test_a_resumed_skip_counter_continues_to_count():
    state = TrainState()
    state.records.add(0, 2, [("a", "x")], epoch_size=1000, max_rate=0.01)
    back = TrainState.from_dict(json.loads(json.dumps(state.to_dict())))
    back.records.add(0, 3, [("b", "y")], epoch_size=1000, max_rate=0.01)
    assert back.records.count == 5
