import json
from collections import Counter

import numpy as np
import pytest

from cromic_ds.data.dataset import Texts
from cromic_ds.metrics.vqa_answers import soft_scores
from cromic_ds.world.ceilings import ceilings
from cromic_ds.world.question_files import COCO_IMAGES, choose_questions, coco_id, vqa_annotation
from cromic_ds.world.sample import sample
from cromic_ds.world.scenes import ATTRIBUTE_VALUES, OFFICIAL_SCENES, official_scene, question_extras, scene_questions
from cromic_ds.world.settings import SampleSettings
from cromic_ds.world.task_files import WorldImage

SUBSETS = ("train2014", "val2014", "test2015", "test-dev2015")


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "official"
    sample(SampleSettings(official=str(out), posts=50, seed=4, val_fraction=0.1, image_size=32))
    return out


def read(path):
    """Return the content of a JSON file, which must be written as by `json.dump`."""
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert text == json.dumps(content, ensure_ascii=text.isascii())
    return content


def grounding(folder):
    lines = (folder / "grounding.jsonl").read_text(encoding="utf-8").splitlines()
    items = {item["id"]: item for item in map(json.loads, lines)}
    assert len(items) == len(lines)
    return items


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_fmiqa(official):
    folder = official / "fmiqa"
    assert names(folder) == {"FM-IQA.json", "grounding.jsonl", "train2014", "val2014"}
    content, known = read(folder / "FM-IQA.json"), grounding(folder)
    assert list(content) == ["train", "val"]
    for split, n_images in (("train", 40), ("val", 10)):  # val has what other tasks have in val and test
        items = content[split]
        assert all(list(item) == ["question_id", "image_id", "Question", "Answer"] for item in items)
        files = {f"COCO_{split}2014_{item['image_id']:012d}.jpg" for item in items}
        assert len(files) == n_images and files == names(folder / f"{split}2014")
        for item in items:
            about = known[str(item["question_id"])]
            assert [value for value in about["alternatives"] if value in item["Answer"]] == [about["answer"]]
            assert not any(value in item["Question"] for value in about["alternatives"])
    ids = [item["question_id"] for split in content.values() for item in split]
    assert ids == list(range(1, len(known) + 1))
    assert list(known) == [str(id) for id in ids]


def test_vqa2_files(official):
    folder = official / "vqa2"
    assert names(folder) == {
        *(f"v2_OpenEnded_mscoco_{subset}_questions.json" for subset in SUBSETS),
        *(f"v2_mscoco_{subset}_annotations.json" for subset in SUBSETS[:2]),
        *SUBSETS[:3],
        *("grounding.jsonl", "ans2label.json"),
    }
    labels = read(folder / "ans2label.json")
    assert list(labels.values()) == list(range(15))
    assert set(labels) == {*ATTRIBUTE_VALUES["color"], *ATTRIBUTE_VALUES["shape"], *ATTRIBUTE_VALUES["place"]}


def test_vqa2_questions(official):
    folder = official / "vqa2"
    by_subset, known = {}, grounding(folder)
    for subset, n_images in zip(SUBSETS, (40, 5, 5, 3)):
        content = read(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json")
        assert list(content) == ["info", "task_type", "data_type", "license", "data_subtype", "questions"]
        assert (content["task_type"], content["data_type"]) == ("Open-Ended", "mscoco")
        assert content["data_subtype"] == subset
        by_subset[subset] = content["questions"]
        asked = Counter(question["image_id"] for question in content["questions"])
        assert len(asked) == n_images and set(asked.values()) <= {2, 3}
        for question in content["questions"]:
            assert list(question) == ["image_id", "question", "question_id"]
            assert question["question_id"] // 1000 == question["image_id"]
            assert question["question_id"] % 1000 < asked[question["image_id"]]
            assert not any(
                value in question["question"] for value in known[str(question["question_id"])]["alternatives"]
            )
        if subset != "test-dev2015":
            assert names(folder / subset) == {f"COCO_{subset}_{id:012d}.jpg" for id in asked}
    ids = [question["question_id"] for subset in SUBSETS[:3] for question in by_subset[subset]]
    assert [str(id) for id in ids] == list(known)
    assert [q for q in by_subset["test2015"] if q in by_subset["test-dev2015"]] == by_subset["test-dev2015"]


def test_vqa2_annotations(official):
    folder = official / "vqa2"
    known = grounding(folder)
    for subset in SUBSETS[:2]:
        content = read(folder / f"v2_mscoco_{subset}_annotations.json")
        asked = read(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json")["questions"]
        assert list(content) == ["info", "license", "data_subtype", "annotations", "data_type"]
        assert content["data_subtype"] == subset
        assert [(a["image_id"], a["question_id"]) for a in content["annotations"]] == [
            (q["image_id"], q["question_id"]) for q in asked
        ]
        for item in content["annotations"]:
            about = known[str(item["question_id"])]
            assert sorted(item) == [
                *("answer_type", "answers", "image_id", "multiple_choice_answer", "question_id", "question_type"),
            ]
            assert item["multiple_choice_answer"] == about["answer"]
            assert item["answer_type"] == "other"
            assert item["question_type"] in ("what color is the", "what is the", "where is the")
            assert [answer["answer_id"] for answer in item["answers"]] == list(range(1, 11))
            assert {answer["answer"] for answer in item["answers"]} <= set(about["alternatives"])


def test_ten_people_mostly_agree():
    wrong = Counter()
    for i in range(1000):
        rng = np.random.default_rng(i)
        question = choose_questions(official_scene(i, 0), rng)[0]
        given = Counter(answer["answer"] for answer in vqa_annotation(question, rng)["answers"])
        assert given.total() == 10
        assert soft_scores(given)[question.answer] == 1
        wrong[10 - given[question.answer]] += 1
    assert sorted(wrong) == [0, 1, 2, 3]
    assert [wrong[n] / 1000 for n in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.05)


def test_ids_of_images_differ():
    image = WorldImage(0, "train", official_scene(0, 0), b"")
    ids = set()
    for image.index in range(0, OFFICIAL_SCENES, 5):
        ids.add(coco_id(image, 7))
    assert len(ids) == len(range(0, OFFICIAL_SCENES, 5))
    assert min(ids) >= 1 and max(ids) <= COCO_IMAGES


def test_questions_come_as_often_as_in_posts_and_have_the_same_ceilings():
    class Asked:
        def __init__(self):
            rng = np.random.default_rng(0)
            scenes = [official_scene(i, 0) for i in range(800)]
            self.all = [(question, things) for things in scenes for question in choose_questions(things, rng)]

        def __len__(self):
            return len(self.all)

        def texts(self, i):
            return Texts(str(i), "", [], question_extras(*self.all[i]))

    asked = Asked()
    assert 2.4 < len(asked) / 800 < 2.6
    types = Counter((question.asked, question.named_by) for question, _ in asked.all)
    expected: Counter = Counter()
    for question, probability in scene_questions(official_scene(0, 0)):
        expected[question.asked, question.named_by] += probability
    for name, probability in expected.items():
        assert types[name] / len(asked) == pytest.approx(probability, abs=0.03)
    assert all(share < 0.5 for share in ceilings(asked).values())
