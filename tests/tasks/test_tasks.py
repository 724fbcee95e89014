import re

import pytest
from helpers.paths import REPOSITORY

from cromic_ds.data.dataset import Texts
from cromic_ds.errors import UserError
from cromic_ds.tasks import TASKS
from cromic_ds.tools.table.settings import TABLE_SCORES, TABLE_TASKS

CAPTIONS = ("aic_icc", "flickr30k_cn", "muge")


def test_what_each_task_is():
    assert list(TASKS) == ["comments", "fmiqa", "vqa2", *CAPTIONS]
    about = {
        t.name: (t.kind, t.reads_text, t.tokenization, t.best_metric, t.max_comment_tokens) for t in TASKS.values()
    }
    assert about == {
        "comments": ("comments", True, "char", "perplexity", 25),
        "fmiqa": ("answer", True, "char", "cider", 25),
        "vqa2": ("classify", True, "vqa", "accuracy", 25),
        "aic_icc": ("caption", False, "jieba", "cider", 72),
        "flickr30k_cn": ("caption", False, "char", "cider", 72),
        "muge": ("caption", False, "char", "cider", 72),
    }
    assert [t.name for t in TASKS.values() if not t.higher_is_better] == ["comments"]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "vqa2"])
def test_texts_are_scored_against_the_comments(name):
    task = TASKS[name]
    texts = [Texts("1", "", ["红色的圆。"], {"image_id": "x"}), Texts("2", "", ["蓝色的方块"], {"image_id": "y"})]
    scores = task.score(["红色的圆", "绿色"], texts, task.tokenization, False)
    measured = task.measure(["红色的圆", "绿色"], texts, task.tokenization, False, resamples=20)
    assert scores == measured.flat()
    assert (scores["tokenization"], scores["n_items"]) == (task.tokenization, 2)
    assert ("exact_match" in scores) == (name == "fmiqa")
    assert not any("pass" in key for key in scores)
    if name == "aic_icc":  # the period is not a token
        assert scores["rouge_l"] == 0.5
    if task.best_metric != "perplexity":
        assert task.best_metric in measured.intervals


def test_answers_are_scored_against_ten_people():
    extras = {
        "answers": ["red"] * 3 + ["blue"] * 7,
        "answer_type": "other",
        "question_type": "what color",
        "image_id": 1,
    }
    texts = [Texts("1", "what color?", ["blue"], extras), Texts("2", "what color?", ["blue"], extras | {"image_id": 2})]
    measured = TASKS["vqa2"].measure(["red", "Blue."], texts, "char", True, resamples=20)
    assert measured.scores == pytest.approx(
        {"accuracy": 0.95, "accuracy_other": 0.95, "accuracy_question_what_color": 0.95}
    )
    assert measured.tokenization == "vqa"
    scores = TASKS["vqa2"].score(["red", "Blue."], texts, "vqa", False)
    assert list(scores) == ["accuracy", "accuracy_other", "n_items", "tokenization", "notes"]


def test_choice_of_tokenization():
    assert TASKS["aic_icc"].choose_tokenization("task") == "jieba"
    assert TASKS["flickr30k_cn"].choose_tokenization("jieba") == "jieba"
    assert TASKS["vqa2"].choose_tokenization("task") == "vqa"
    with pytest.raises(UserError, match="--tokenization jieba: vqa2 compares whole answers"):
        TASKS["vqa2"].choose_tokenization("jieba")


def test_references():
    hidden = Texts("1", "", [], {"image_id": 1})
    assert not any(task.has_references(hidden) for task in TASKS.values())
    assert TASKS["muge"].has_references(Texts("1", "", ["红"], {}))
    assert not TASKS["muge"].has_references(Texts("1", "", [" "], {}))
    assert TASKS["vqa2"].has_references(Texts("1", "", [], {"answers": ["red"]}))


def test_the_document_has_every_task_with_its_length():
    text = (REPOSITORY / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` (\S.*?) \|.* (\d+) \|$", text, re.M)
    downstream = [task for task in TASKS.values() if task.reader]
    assert rows == [(task.name, task.title, str(task.max_comment_tokens)) for task in downstream]
    assert {task.max_post_tokens for task in downstream} == {40} and "questions have at most 40 tokens" in text


def test_the_columns_of_the_results_table():
    assert [task.title for task in TABLE_TASKS] == ["MUGE", "AIC-ICC", "Flickr30k-CN", "FM-IQA", "VQA v2.0"]
    assert {name: list(scores) for name, scores in TABLE_SCORES.items()} == {
        **{name: ["cider", "bleu_4", "rouge_l"] for name in CAPTIONS},
        "fmiqa": ["cider", "bleu_4", "exact_match"],
        "vqa2": ["accuracy"],
    }
