"""The sample world as FM-IQA and VQA v2.0: several questions about each image, with file names as in COCO."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cromic_ds.data.order import order_key, permute
from cromic_ds.world import language
from cromic_ds.world.scenes import ATTRIBUTE_VALUES, Scene, SceneQuestion, question_extras, scene_questions
from cromic_ds.world.task_files import TaskFiles, WorldImage

COCO_IMAGES = 581_929  # the largest image id of COCO
COCO_KEY = 1  # different from those of other orders of the same seed

VQA_INFO = {
    "description": "The sample world in the format of VQA v2.0.",
    "url": "",
    "version": "2.0",
    "year": 2017,
    "contributor": "cromic_ds",
    "date_created": "2017-04-26 17:07:13",
}
VQA_LICENSE = {"url": "", "name": "MIT License"}
# VQA v2.0 calls a type of questions by their first words; the world's questions are Chinese for these.
VQA_QUESTION_TYPES = {"color": "what color is the", "shape": "what is the", "place": "where is the"}
VQA_PEOPLE = 10
WRONG_PEOPLE = (0.4, 0.3, 0.2, 0.1)  # how often 0, 1, 2, 3 of the ten people are wrong


class FmIqaFiles(TaskFiles):
    """`FM-IQA.json`, `{"train": [...], "val": [...]}`, and the images as `train2014/` and `val2014/` of COCO."""

    number = 1
    ascii = False

    def add(self, image: WorldImage) -> None:
        split = "train" if image.split == "train" else "val"
        lists = self.json.setdefault("FM-IQA.json", {"train": [], "val": []})
        id, rng = coco_id(image, self.seed), self.random(image)
        self.write_image(coco_file(f"{split}2014", id), image)
        for question in choose_questions(image.scene, rng):
            question_id = len(lists["train"]) + len(lists["val"]) + 1
            asked, answer = language.write_question(question, rng), language.write_answer(question, rng)
            lists[split].append({"question_id": question_id, "image_id": id, "Question": asked, "Answer": answer})
            self.ground(str(question_id), question_extras(question, image.scene))


class Vqa2Files(TaskFiles):
    """Questions and annotations of VQA v2.0 and its COCO images. The test's questions are answered in `grounding.jsonl` only.

    As in VQA v2.0, test-dev2015 is a part of test2015: the questions about every other image.

    `ans2label.json`, which the owners do not have, is an answer vocabulary for `cromic-ds prepare --answers`: in a small world
    not every answer occurs often enough to get into a vocabulary built from the annotations.
    """

    number = 2

    def __init__(self, folder: Path, seed: int):
        super().__init__(folder, seed)
        answers = [value for attribute in language.QUESTION_PHRASES for value in ATTRIBUTE_VALUES[attribute]]
        labels = {answer: label for label, answer in enumerate(answers)}
        (folder / "ans2label.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
        self._questions: dict[str, list[Any]] = {s: [] for s in ("train2014", "val2014", "test2015", "test-dev2015")}
        self._annotations: dict[str, list[Any]] = {s: [] for s in ("train2014", "val2014")}
        self._test_images = 0
        about = {"info": VQA_INFO, "task_type": "Open-Ended", "data_type": "mscoco", "license": VQA_LICENSE}
        for subset, questions in self._questions.items():
            content = about | {"data_subtype": subset, "questions": questions}
            self.json[f"v2_OpenEnded_mscoco_{subset}_questions.json"] = content
        about = {"info": VQA_INFO, "license": VQA_LICENSE}
        for subset, answered in self._annotations.items():
            content = about | {"data_subtype": subset, "annotations": answered, "data_type": "mscoco"}
            self.json[f"v2_mscoco_{subset}_annotations.json"] = content

    def add(self, image: WorldImage) -> None:
        subset = {"train": "train2014", "val": "val2014", "test": "test2015"}[image.split]
        id, rng = coco_id(image, self.seed), self.random(image)
        self.write_image(coco_file(subset, id), image)
        lists = [self._questions[subset]]
        if image.split == "test":
            self._test_images += 1
            if self._test_images % 2:
                lists.append(self._questions["test-dev2015"])
        for k, question in enumerate(choose_questions(image.scene, rng)):
            question_id = id * 1000 + k
            asked = {"image_id": id, "question": language.write_question(question, rng), "question_id": question_id}
            for questions in lists:
                questions.append(asked)
            if subset in self._annotations:
                about = {"image_id": id, "answer_type": "other", "question_id": question_id}
                self._annotations[subset].append(vqa_annotation(question, rng) | about)
            self.ground(str(question_id), question_extras(question, image.scene))


def coco_id(image: WorldImage, seed: int) -> int:
    """Return an image id in the range of COCO's, different for each image."""
    return 1 + int(permute(image.index, COCO_IMAGES, order_key(seed, COCO_KEY)))


def coco_file(subset: str, id: int) -> str:
    """Return the path of an image file below the task's folder."""
    return f"{subset}/COCO_{subset}_{id:012d}.jpg"


def choose_questions(scene: Scene, rng: np.random.Generator) -> list[SceneQuestion]:
    """Return two or three different questions about a scene, with the probabilities that they have in posts."""
    all_questions, probabilities = zip(*scene_questions(scene))
    count = rng.integers(2, 3 + 1)
    return [all_questions[i] for i in rng.choice(len(all_questions), size=count, replace=False, p=probabilities)]


def vqa_annotation(question: SceneQuestion, rng: np.random.Generator) -> dict[str, Any]:
    """Return the answers of ten people. Up to three of them name another value of the attribute and are less confident."""
    wrong = rng.choice(len(WRONG_PEOPLE), p=WRONG_PEOPLE)
    others = [value for value in ATTRIBUTE_VALUES[question.asked] if value != question.answer]
    given = [question.answer] * (VQA_PEOPLE - wrong) + [others[i] for i in rng.integers(len(others), size=wrong)]
    answers = [
        {"answer": answer, "answer_confidence": "yes" if answer == question.answer else "maybe", "answer_id": number}
        for number, answer in enumerate((given[i] for i in rng.permutation(VQA_PEOPLE)), 1)
    ]
    return {
        "question_type": VQA_QUESTION_TYPES[question.asked],
        "multiple_choice_answer": question.answer,
        "answers": answers,
    }
