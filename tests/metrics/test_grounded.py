import pytest

from cromic_ds.errors import UserError
from cromic_ds.metrics.grounded import grounded_accuracy

COLOURS = ["红色", "蓝色", "绿色"]


def test_overall_and_by_kind():
    extras = {
        "a": {"answer": "红色", "alternatives": COLOURS, "kind": "what"},
        "b": {"answer": "蓝色", "alternatives": ["红色", "绿色"], "kind": "what"},
        "c": {"answer": "绿色", "alternatives": COLOURS, "kind": "where"},
        "d": {},
    }
    predictions = {"a": "是红色的圆", "b": "红色和蓝色都有", "c": "绿色，绿色！", "d": "红色"}
    assert grounded_accuracy(predictions, extras) == {
        "grounded": 2 / 3,
        "grounded_what": 1 / 2,
        "grounded_where": 1,
    }


@pytest.mark.parametrize(("text", "hit"), [("在左边", 1), ("在左上边", 0), ("在左边不在左上", 0), ("", 0)])
def test_the_longest_word_counts(text, hit):
    extras = {"a": {"answer": "左", "alternatives": ["左上", "右"]}}
    assert grounded_accuracy({"a": text}, extras) == {"grounded": hit}


def test_an_alternative_within_the_answer_is_no_second_word():
    assert grounded_accuracy({"a": "在左上"}, {"a": {"answer": "左上", "alternatives": ["左"]}}) == {"grounded": 1}


def test_without_answers():
    assert grounded_accuracy({"a": "红色"}, {"a": {}}) == {}
    assert grounded_accuracy({}, {}) == {}


def test_missing_prediction():
    with pytest.raises(UserError, match="'a' has an answer but no prediction"):
        grounded_accuracy({}, {"a": {"answer": "红色"}})
