import json

import pytest

from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings
from cromic_ds.tasks.results import read_result
from cromic_ds.tools.score import ScoreSettings, score

CAPTIONS = [
    (
        "a",
        ["红色的圆在左边", "左边有红色的圆"],
        {"image_id": "a", "answer": ["红色"], "alternatives": ["蓝色"], "kind": "caption"},
    ),
    ("b", ["蓝色的方块在右边"], {"image_id": "b", "answer": ["蓝色"], "alternatives": ["红色"], "kind": "caption"}),
    ("c", ["绿色的星在中间"], {"image_id": "c"}),
]
TEXTS = {"b": "蓝色的方块在右边", "a": "蓝色的圆", "c": "绿色的星在中间"}


@pytest.fixture
def muge(make_store, tmp_path):
    """Settings that score TEXTS, which are not in the store's order."""
    store = make_store("muge", val=CAPTIONS, test=[("d", [], {"image_id": "d"})])
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps({"image_id": i, "text": t}) + "\n" for i, t in TEXTS.items()), encoding="utf-8")
    return ScoreSettings(task="muge", predictions=str(path), references=str(store), meteor=False, resamples=100)


def test_captions(muge, tmp_path, capsys):
    score(muge)
    result = json.loads((tmp_path / "predictions.jsonl.scores.json").read_text(encoding="utf-8"))
    assert list(result) == [
        *("task", "scores", "intervals", "counts", "tokenization", "notes"),
        *("data", "decoding", "model", "predictions", "items"),
    ]
    assert (result["task"], result["tokenization"]) == ("muge", "char")
    assert result["scores"]["grounded"] == 0.5
    assert result["scores"]["rouge_l"] == pytest.approx((2 + 2.44 * 0.75 * 3 / 7 / (3 / 7 + 1.44 * 0.75)) / 3)
    assert result["counts"] == {"items": 3, "images": 3}
    assert result["data"]["path"] == muge.references and result["data"]["split"] == "val"
    assert len(result["data"]["fingerprint"]) == 16
    assert (result["decoding"], result["model"], result["predictions"]) == (None, None, muge.predictions)
    assert result["items"]["ids"] == ["a", "b", "c"] and result["items"]["means"]["grounded"] == [0, 1, None]
    assert result["intervals"]["grounded"] == [0, 1]
    printed = capsys.readouterr().out
    assert "grounded          0.5000  [0.0000, 1.0000]" in printed
    assert "3 items, 3 images; tokenization char" in printed
    assert read_result(tmp_path / "predictions.jsonl.scores.json")["items"].ids == ["a", "b", "c"]


def test_own_tokenization_and_result_file(muge, tmp_path):
    muge.tokenization, muge.out = "jieba", str(tmp_path / "scores.json")
    score(muge)
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["tokenization"] == "jieba"


def test_answers(make_store, tmp_path):
    def question(id, image, answers, kind):
        about = {"image_id": image, "answers": answers, "answer_type": kind, "question_type": "is the"}
        return id, answers[:1], about

    records = [question("1", 9, ["yes"] * 10, "yes/no"), question("2", 9, ["red"] * 2 + ["blue"] * 8, "other")]
    store = make_store("vqa2", val=records)
    path = tmp_path / "predictions.json"
    path.write_text('[{"question_id": 2, "answer": "Red"}, {"question_id": 1, "answer": "yes "}]')
    score(ScoreSettings(task="vqa2", predictions=str(path), references=str(store)))
    result = json.loads((tmp_path / "predictions.json.scores.json").read_text())
    expected = {"accuracy": 0.8, "accuracy_yes_no": 1, "accuracy_other": 0.6, "accuracy_question_is_the": 0.8}
    assert result["scores"] == pytest.approx(expected)
    assert result["tokenization"] == "vqa"
    assert result["notes"] == ["there are no intervals over a single image"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ""}, "--task is missing"),
        ({"predictions": ""}, "--predictions is missing"),
        ({"references": ""}, "--references is missing"),
        ({"task": "mug"}, r"--task mug: unknown \(did you mean 'muge'\?\)"),
        ({"task": "vqa2"}, "prepared for muge, not for vqa2"),
        ({"task": "vqa2", "tokenization": "char"}, "compares whole answers"),
        ({"split": "test"}, "split test has no references, so only the task's server can score it"),
        ({"split": "train"}, "no split 'train'"),
        ({"resamples": -1}, "--resamples -1"),
        ({"out": "/nowhere/scores.json"}, "no such folder"),
        ({"out": "/tmp"}, "is a folder"),
        ({"references": "/nowhere"}, "no such data set"),
    ],
)
def test_settings_that_do_not_fit(muge, changes, message):
    for name, value in changes.items():
        setattr(muge, name, value)
    with pytest.raises(UserError, match=message):
        check_settings(muge)
        score(muge)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": "z", "text": "x"}', r"predictions.jsonl: of the split's 3 ids .* but 1 foreign \(z\)"),
        ('{"image_id": "a", "text": "x"}', r"but 1 duplicate \(a\)"),
        ('{"image_id": "a"}', "line 4: expected an object"),
    ],
)
def test_predictions_that_do_not_fit(muge, tmp_path, line, message):
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=message):
        score(muge)
    assert not (tmp_path / "predictions.jsonl.scores.json").exists()


def test_missing_predictions(muge, tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"image_id": "a", "text": "x"}\n')
    with pytest.raises(UserError, match=r"but 2 missing \(b, c\)"):
        score(muge)


def test_a_damaged_store(muge, tmp_path):
    data = tmp_path / "store" / "val" / "text-00000.lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes().replace("绿色".encode(), "黄色".encode()))
    with pytest.raises(UserError, match="a record of split val is damaged"):
        score(muge)
