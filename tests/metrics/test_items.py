import json

import numpy as np
import pytest

from cromic_ds.metrics.items import Items, group


def example() -> Items:
    return Items(
        ["a", "b"],
        ["x", "y"],
        {"cider": np.array([0.1 + 0.2, np.nan])},
        [group("cider", ["long", None])],
        np.array([[3.0, 4, 2, 1, 0, 0], [np.nan] * 6]),
    )


def test_through_json_and_back():
    made = json.loads(json.dumps(example().to_json()))
    assert made == {
        "ids": ["a", "b"],
        "images": ["x", "y"],
        "means": {"cider": [0.1 + 0.2, None]},
        "groups": [{"of": "cider", "names": ["cider_long"], "codes": [0, -1]}],
        "bleu": [[3, 4, 2, 1, 0, 0], None],
    }
    again = Items.from_json(made)
    assert again.to_json() == made
    assert (again.means["cider"][0], np.isnan(again.bleu[1]).all()) == (0.1 + 0.2, True)
    empty = Items([], [], {"m": np.array([])}, bleu=np.empty((0, 6)))
    assert Items.from_json(empty.to_json()).to_json() == empty.to_json()


def test_groups_are_named_in_alphabetical_order():
    made = group("accuracy_question", ["is the", None, "how many", "is the", ""], of="accuracy")
    assert made.names == ["accuracy_question_how many", "accuracy_question_is the"]
    assert (made.of, made.codes.tolist()) == ("accuracy", [1, -1, 0, 1, -1])


@pytest.mark.parametrize(
    "change",
    [
        {"images": ["x"]},
        {"means": {"cider": [1]}},
        {"means": {"cider": ["much", 1]}},
        {"groups": [{"of": "bleu", "names": ["n"], "codes": [0, 0]}]},
        {"groups": [{"of": "cider", "names": ["n"], "codes": [0, 1]}]},
        {"bleu": [[1, 2], [3, 4]]},
        {"bleu": [None]},
    ],
)
def test_what_does_not_fit_is_refused(change):
    with pytest.raises(ValueError):
        Items.from_json(example().to_json() | change)
