import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cromic_ds.errors import UserError
from cromic_ds.metrics.vqa import measure_answers, vqa_accuracy


@dataclass
class Record:
    id: str
    extras: dict
    comments: list[str] = field(default_factory=list)


def people(matching: int, answer: str = "red") -> list[str]:
    return [answer] * matching + ["blue"] * (10 - matching)


def test_equal_to_the_official_evaluation(shared: Path):
    rows = json.loads((shared / "golden" / "vqa_official_accuracy.json").read_text(encoding="utf-8"))
    assert len(rows) == 4000
    # The official tool prints a question's accuracy as a percentage rounded to two places.
    wrong = [row for row in rows if round(100 * vqa_accuracy(row[0], row[1]), 2) / 100 != row[2]]
    assert wrong == []


@pytest.mark.parametrize(("matching", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_leave_one_out(matching, accuracy):
    assert vqa_accuracy("red", people(matching)) == accuracy


def test_normalized_only_where_people_differ():
    assert vqa_accuracy("Two", ["2"] * 9 + ["3"]) == 1
    assert vqa_accuracy("Two", ["2"] * 10) == 0
    assert vqa_accuracy("yes", ["Yes"] * 10) == 0
    assert vqa_accuracy(" yes\n", ["yes"] * 9 + ["yes "]) == 1  # without the space all ten are the same
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["yes "]) == 0
    assert vqa_accuracy("dark\tred", ["dark red"] * 10) == 1
    assert vqa_accuracy("", ["the"] * 5 + ["red"] * 5) == 1  # an article alone is normalized to an empty answer


def answered(id: str, image: int, answers: list[str], answer_type: str, question_type: str, **extras) -> Record:
    about = {"image_id": image, "answers": answers, "answer_type": answer_type, "question_type": question_type}
    return Record(id, about | extras)


RECORDS = [
    answered("1", 10, people(10), "other", "what color is the", answer="red", kind="what"),
    answered("2", 10, people(2), "other", "what color"),
    answered("3", 11, ["yes"] * 10, "yes/no", "is the"),
    Record("4", {"image_id": 12, "answers": []}),
]


def test_overall_and_by_type():
    measured = measure_answers(["red", "red", "no", "red"], RECORDS, resamples=200)
    assert measured.scores == {
        "accuracy": pytest.approx(1.6 / 3),
        "accuracy_other": 0.8,
        "accuracy_yes_no": 0,
        "accuracy_question_is_the": 0,
        "accuracy_question_what_color": 0.6,
        "accuracy_question_what_color_is_the": 1,
        "grounded": 1,
        "grounded_what": 1,
    }
    assert measured.counts == {"items": 3, "images": 3}
    assert measured.tokenization == "vqa"
    assert measured.notes == ["without people's answers, so not scored: 1 questions"]
    assert measured.items["means"]["accuracy"] == [1, 0.6, 0, None]
    # The two of type "other" share an image, so a resample contains both or neither.
    assert measured.intervals["accuracy_other"] == pytest.approx([0.8, 0.8])
    assert measured.intervals["accuracy"] == pytest.approx([0, 0.8])
    assert json.loads(json.dumps(measured.items)) == measured.items


def test_without_question_types():
    scores = measure_answers(["red", "red", "no", ""], RECORDS, resamples=0, by_question_type=False).scores
    assert list(scores) == ["accuracy", "accuracy_other", "accuracy_yes_no", "grounded", "grounded_what"]


def test_empty_predictions_are_noted():
    assert measure_answers(["", " "], RECORDS[:2], resamples=0).notes == ["empty predictions: 2"]


@pytest.mark.parametrize("records", [[], [Record("1", {})]])
def test_nothing_to_score(records):
    with pytest.raises(UserError, match="nothing to score"):
        measure_answers(["red"] * len(records), records)
