import json
from collections import Counter

import pytest

from cromic_ds.metrics.vqa_answers import CONTRACTIONS, clean_answer, normalize_answer, soft_scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes!", "yes"),
        ("red-green", "red green"),
        ("red - green", "red green"),
        ("re-do red -", "redo red"),  # one space beside a mark, so the mark is removed everywhere
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("red,green", "red green"),
        ("10.30", "10.30"),
        ("5.", "5"),
        (".5", ".5"),
        ("e.g. a dog", "eg dog"),
        ("." * 40 + "x", "." * 8 + "x"),  # at most 32 periods are removed
        ("none", "0"),
        ("two the  Ten", "2 10"),
        ("The", ""),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("ow's'at", "'ow's'at"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("10:30 o'clock", "10:30 o'clock"),
        ("\tdog!\n", "dog"),
        ("50% & more", "50% & more"),
    ],
)
def test_quirks(text, expected):
    assert normalize_answer(text) == expected


def test_contractions_are_those_of_the_official_tool():
    assert len(CONTRACTIONS) == 118
    assert [key for key, value in CONTRACTIONS.items() if key.replace("'", "") != value.replace("'", "")] == []


def test_soft_scores_of_ten_answers():
    ten = Counter({"a": 4, "b": 3, "c": 2, "d": 1})
    assert soft_scores(ten) == {"a": 1.0, "b": 0.9, "c": 0.6, "d": 0.3}
    assert soft_scores({"a": 10, "b": 0}) == {"a": 1.0}


def test_official_accuracy_of_every_golden_row(shared):
    rows = json.loads((shared / "golden" / "vqa_official_accuracy.json").read_text(encoding="utf-8"))
    assert len(rows) == 4000
    for prediction, ten, accuracy in rows:
        read = clean_answer if len({clean_answer(answer) for answer in ten}) == 1 else normalize_answer
        counts = Counter(map(read, ten))
        # The mean over the ten subsets of nine is the soft score of the count.
        assert soft_scores(counts).get(read(prediction), 0) == pytest.approx(accuracy), (prediction, ten)
