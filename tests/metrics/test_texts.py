import json
import math
from dataclasses import dataclass, field

import pytest

from cromic_ds.errors import UserError
from cromic_ds.metrics.texts import distinct_n, entropy_n, exact_match, measure_texts


@dataclass
class Record:
    id: str
    comments: list[str]
    extras: dict = field(default_factory=dict)


RECORDS = [
    Record("a", ["红色的圆在左边"], {"answer": "红色", "alternatives": ["蓝色"], "kind": "what"}),
    Record("b", ["蓝色的方块"]),
    Record("c", [" "]),
]
PREDICTIONS = ["红色的圆在左边", "", "不知道"]


def test_everything_in_one_flat_dict():
    measured = measure_texts(PREDICTIONS, RECORDS, "char", meteor=False, resamples=0)
    assert measured.intervals == {}
    scores = measured.flat()
    assert list(scores) == [
        *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "grounded", "grounded_what"),
        *("distinct_1", "distinct_2", "entropy_4", "n_items", "tokenization", "notes"),
    ]
    assert scores["rouge_l"] == 0.5
    assert scores["distinct_1"] == 1
    assert scores["entropy_4"] == pytest.approx(math.log(4))
    assert scores["grounded"] == 1
    assert (scores["n_items"], scores["tokenization"]) == (2, "char")
    assert scores["notes"] == [
        "without reference text, so not in the scores against references: 1 records",
        "empty predictions, scored as matching nothing: 1",
    ]
    assert json.loads(json.dumps(scores)) == scores


def test_items_and_counts():
    measured = measure_texts(PREDICTIONS, RECORDS, "char", meteor=False, resamples=50)
    items = measured.items
    assert measured.counts == {"items": 2, "images": 3}
    assert items["ids"] == items["images"] == ["a", "b", "c"]
    assert items["means"]["rouge_l"] == [1, 0, None]
    assert items["means"]["grounded"] == [1, None, None]
    assert items["bleu"] == [[7, 7, 7, 6, 5, 4], [0, 5, 0, 0, 0, 0], None]
    assert items["groups"] == [{"of": "grounded", "names": ["grounded_what"], "codes": [0, -1, -1]}]
    assert set(measured.scores) - set(measured.intervals) == {"distinct_1", "distinct_2", "entropy_4"}
    assert measured.intervals["rouge_l"] == [0, 1] and measured.intervals["grounded"] == [1, 1]
    assert json.loads(json.dumps(items)) == items


def test_records_of_one_image_and_repeated_ids():
    records = [Record("a", ["红色"], {"image_id": 7}), Record("a", ["蓝色"], {"image_id": 7})]
    measured = measure_texts(["红色", "红色"], records, "char", meteor=False)
    assert measured.items["images"] == ["7", "7"]
    assert measured.counts == {"items": 2, "images": 1}
    assert measured.intervals == {} and "there are no intervals over a single image" in measured.notes


def test_exact_match_on_request():
    measured = measure_texts(
        ["红色。", "蓝"], [Record("a", ["红色"]), Record("b", ["蓝色"])], "char", False, 0, exact=True
    )
    assert measured.scores["exact_match"] == 0.5


def test_one_image_is_noted():
    scores = measure_texts(["圆"], [Record("a", ["圆"])], "char", meteor=False, resamples=0)
    assert scores.notes == ["CIDEr of one image is 0 by its definition"]


def test_missing_meteor_is_noted(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    records = [Record("a", ["圆"]), Record("b", ["方"])]
    notes = measure_texts(["圆", "方"], records, "char", meteor=True, resamples=0).notes
    assert notes == ["METEOR is left out: no working Java was found"]


@pytest.mark.parametrize(
    ("predictions", "records"), [([], []), (["圆"], [Record("a", [""])]), (["圆"], [Record("a", [])])]
)
def test_nothing_to_score(predictions, records):
    with pytest.raises(UserError, match="nothing to score"):
        measure_texts(predictions, records, "char", meteor=False)


@pytest.mark.parametrize(
    ("prediction", "reference", "hit"),
    [
        ("红色。", "红色", True),
        (" 是 的 ！", "是的", True),
        ("ＮＢＡ球员", "nba 球员", True),
        ("１０个", "10个", True),
        ("红", "红色", False),
        ("3.5", "35", True),  # signs are removed, the decimal point too
        ("？", "！", False),  # nothing is left to compare
        ("", "", False),
    ],
)
def test_exact_match(prediction, reference, hit):
    assert exact_match(prediction, [reference]) is hit


def test_any_reference_will_do():
    assert exact_match("蓝色", ["红色", "蓝色。"])
    assert not exact_match("蓝色", [])


CORPUS = ["a b a", "a b", "", "c"]


def test_distinct_over_the_corpus():
    assert distinct_n(CORPUS, 1) == 3 / 6
    assert distinct_n(CORPUS, 2) == 2 / 3  # (a b) twice, (b a) once; none across two texts
    assert distinct_n(iter(CORPUS), 3) == 1


def test_entropy_in_nats():
    assert entropy_n(["a b c d"] * 3, 4) == 0
    assert entropy_n(["a b c d e", "f g h i"], 4) == pytest.approx(math.log(3))
    assert entropy_n(CORPUS, 2) == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))


@pytest.mark.parametrize("corpus", [[], [""], ["a b"]])
def test_no_ngrams(corpus):
    assert distinct_n(corpus, 4) == 0
    assert entropy_n(corpus, 4) == 0
