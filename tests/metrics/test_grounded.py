import numpy as np
import pytest

from cromic_ds.metrics.bootstrap import scores_of
from cromic_ds.metrics.grounded import add_grounded, states_answer
from cromic_ds.metrics.items import Items

COLORS = ["红色", "蓝色", "绿色"]
COMPOUNDS = [color + shape for color in COLORS for shape in ("圆形", "方形", "星形")]


def grounded(predictions, extras):
    ids = [str(k) for k in range(len(predictions))]
    items = Items(ids, ids)
    add_grounded(items, predictions, extras)
    return scores_of(items)


def test_overall_and_by_kind():
    extras = [
        {"answer": "红色", "alternatives": COLORS, "kind": "what"},
        {"answer": "蓝色", "alternatives": ["红色", "绿色"], "kind": "what"},
        {"answer": "绿色", "alternatives": COLORS, "kind": "where"},
        {"kind": "what"},
    ]
    predictions = ["是红色的圆", "红色和蓝色都有", "绿色，绿色！", "红色"]
    assert grounded(predictions, extras) == {"grounded": 2 / 3, "grounded_what": 1 / 2, "grounded_where": 1}


@pytest.mark.parametrize(
    ("text", "hit"), [("在左边", True), ("在左上边", False), ("在左边不在左上", False), ("", False)]
)
def test_the_longest_word_counts(text, hit):
    assert states_answer(text, {"answer": "左", "alternatives": ["左上", "右"]}) is hit


def test_an_alternative_within_the_answer_is_no_second_word():
    assert states_answer("在左上", {"answer": "左上", "alternatives": ["左"]}) is True


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("左边是蓝色方形，中间是红色圆形，右边是绿色星形", True),
        ("红色圆形、蓝色方形、绿色星形，还有一个红色圆形", True),
        ("红色圆形和蓝色方形", False),  # one is missing
        ("红色圆形、蓝色方形、绿色星形、红色星形", False),  # one too many
        ("红色的圆形、蓝色方形、绿色星形", False),  # not stated as a compound
    ],
)
def test_all_of_a_list_and_nothing_else(text, hit):
    extras = {"answer": ["红色圆形", "蓝色方形", "绿色星形"], "alternatives": COMPOUNDS, "kind": "caption"}
    assert states_answer(text, extras) is hit


@pytest.mark.parametrize("answer", [None, "", [], [""], 3, {"红色": 1}])
def test_without_an_answer(answer):
    assert states_answer("红色", {"answer": answer}) is None


def test_nothing_is_added_without_answers():
    assert grounded(["红色"], [{}]) == {}
    assert grounded([], []) == {}


def test_values_of_items():
    items = Items(["a", "b", "c"], ["x", "x", "y"])
    add_grounded(items, ["红", "红", "红"], [{"answer": "红"}, {}, {"answer": "蓝", "kind": "what"}])
    np.testing.assert_array_equal(items.means["grounded"], [1, np.nan, 0])
    assert items.groups[0].names == ["grounded_what"] and items.groups[0].codes.tolist() == [-1, -1, 0]
