import json
import math

import pytest

from cromic_ds.errors import UserError
from cromic_ds.metrics.perplexity import perplexity
from cromic_ds.metrics.results import score_predictions


def test_everything_in_one_flat_dict():
    predictions = {"a": "红色的圆在左边", "b": "", "c": "不知道"}
    references = {"a": ["红色的圆在左边"], "b": ["蓝色的方块"], "c": [" "]}
    extras = {"a": {"answer": "红色", "alternatives": ["蓝色"], "kind": "what"}, "z": {"answer": "x"}}
    scores = score_predictions(predictions, references, extras, "char", meteor=False)
    assert list(scores) == [
        *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"),
        *("distinct_1", "distinct_2", "entropy_4", "grounded", "grounded_what"),
        *("n_items", "tokenisation", "notes"),
    ]
    assert scores["rouge_l"] == 0.5
    assert scores["distinct_1"] == 1
    assert scores["entropy_4"] == pytest.approx(math.log(4))
    assert scores["grounded"] == 1
    assert (scores["n_items"], scores["tokenisation"]) == (2, "char")
    assert scores["notes"] == [
        "without reference text, so not in the captioning scores: 1 records",
        "empty predictions, scored as matching nothing: 1",
    ]
    assert json.loads(json.dumps(scores)) == scores


def test_one_image_is_noted():
    assert score_predictions({"a": "圆"}, {"a": ["圆"]}, meteor=False)["notes"] == [
        "CIDEr of one image is 0 by its definition"
    ]


def test_missing_meteor_is_noted(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    notes = score_predictions({"a": "圆", "b": "方"}, {"a": ["圆"], "b": ["方"]})["notes"]
    assert notes == ["METEOR is left out: no working Java was found"]


@pytest.mark.parametrize(
    ("references", "message"), [({"b": ["圆"]}, "'b' has no prediction"), ({"a": [""]}, "nothing to score")]
)
def test_bad_input(references, message):
    with pytest.raises(UserError, match=message):
        score_predictions({"a": "圆"}, references, meteor=False)


def test_perplexity():
    assert perplexity(math.log(8) * 5, 5) == pytest.approx(8)
    assert perplexity(1e6, 1) == math.inf
    assert math.isnan(perplexity(0.0, 0))
