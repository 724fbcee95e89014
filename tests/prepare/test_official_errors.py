"""Errors in official files are reported and do not stop the preparation of the rest."""

import base64
import itertools
import json
import shutil

import pytest

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.store import answers_fingerprint, read_meta
from cromic_ds.errors import UserError
from cromic_ds.prepare import official as official_files
from cromic_ds.prepare.command import prepare
from cromic_ds.prepare.settings import PrepareSettings
from cromic_ds.settings import check_settings
from cromic_ds.tasks.fmiqa import FmIqaReader

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"
FIVE, TEN = [f"一个猫{i}" for i in range(5)], [f"一个猫{i}" for i in range(10)]


def fmiqa(official, *train, val=({"question_id": 1, "image_id": 42, "Question": "是什么", "Answer": "猫"},)) -> None:
    official.write("FM-IQA.json", {"train": train, "val": val})
    official.coco("train2014", 1, 2, 3)
    official.coco("val2014", 42)


def asked(id, image_id=1, **changes) -> dict:
    return {"question_id": id, "image_id": image_id, "Question": "是什么", "Answer": "猫", **changes}


def vqa2(official, questions: list, annotations: list) -> str:
    """Write the files of the train split, and return an answer vocabulary for them."""
    official.write(QUESTIONS, {"questions": questions})
    official.write(ANNOTATIONS, {"annotations": annotations})
    official.coco("train2014", 1, 2)
    return str(official.write("ans2label.json", {"cat": 0}))


def question(id, image_id=1) -> dict:
    return {"question_id": id, "image_id": image_id, "question": "what?"}


def annotation(id, image_id=1, n=10, **changes) -> dict:
    about = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": "cat"}
    return {"question_id": id, "image_id": image_id, "answers": [{"answer": "cat"}] * n, **about, **changes}


def test_everything_that_is_missing_is_listed_at_once(official):
    official.write("v2_mscoco_val2014_annotations.json", "{}")
    (official.root / "val2014").mkdir()  # empty
    with pytest.raises(UserError) as error:
        official.prepare("vqa2", split=["val", "train"])
    assert str(error.value) == (
        f"{official.root}: v2_OpenEnded_mscoco_val2014_questions.json, val2014/, {QUESTIONS}, {ANNOTATIONS}, train2014/ "
        "are missing; put what the owners distribute there, under these names"
    )
    assert sorted(path.name for path in official.root.parent.iterdir()) == ["official", "vocab.txt"]
    with pytest.raises(
        UserError, match=r"IC_train\.tsv, IC_train\.jsonl, IC_valid\.tsv, IC_valid\.jsonl, IC_test\.tsv are"
    ):
        official.prepare("muge")
    with pytest.raises(
        UserError, match=r"flickr30kzhmbosontest/ImageSets/flickr30kzhmbosontest\.txt, .*flickr30k-images/"
    ):
        official.prepare("flickr30k_cn", split=["test"])
    with pytest.raises(UserError, match=r"caption_test_a_images_20180103/ is missing"):
        official.prepare("aic_icc", split=["test"])


def test_splits_that_are_not_there_are_left_out_and_named(official, capsys):
    fmiqa(official, asked(1))
    shutil.rmtree(official.root / "val2014")
    store = official.prepare("fmiqa")
    assert list(read_meta(store)["splits"]) == ["train"]
    assert "without split val: val2014/ is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": ["trian"]}, r"fmiqa has no split 'trian' \(did you mean 'train'\?\); it has train, val"),
        ({"task": "fm-iqa"}, r"task is 'fm-iqa' \(did you mean 'fmiqa'\?\): it must be fmiqa or vqa2"),
        ({"root": "nowhere"}, "root is 'nowhere', which is no folder"),
        ({"answers": "x"}, "answers goes with task vqa2 only"),
        ({"images": "x"}, "images goes with text only"),
        ({"text": ["x"]}, "give either text"),
        ({"task": "", "text": ["x"], "images": "y"}, "root and split go with task only"),
        ({"tokenizer": ""}, "tokenizer is missing"),
        ({"min_answer_count": 0}, "min_answer_count is 0"),
        ({"max_comment_tokens": 2}, "max_comment_tokens is 2: it must be between 3"),
    ],
)
def test_settings_that_cannot_work(official, settings, message):
    fmiqa(official, asked(1))
    usual = {
        "task": "fmiqa",
        "root": str(official.root),
        "tokenizer": str(official.tokenizer),
        "out": str(official.out),
    }
    wrong = PrepareSettings(**usual | settings)
    with pytest.raises(UserError, match=message):
        check_settings(wrong)
        prepare(wrong)
    assert sorted(path.name for path in official.root.parent.iterdir()) == ["official", "vocab.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [{"question_id": 1,', r"FM-IQA\.json: not JSON after entry 0"),
        ('{"train": [{}, {"a": 1} "b"]}', r"FM-IQA\.json: not JSON after entry 2"),
        (b'{"train": ["\xff"]}', r"FM-IQA\.json: not JSON after entry 0"),
        ('{"training": []}', r"FM-IQA\.json: no list 'train', or an empty one"),
        ('[{"question_id": 1}]', r"FM-IQA\.json: no list 'train'"),
        ("<html>", r"FM-IQA\.json: not JSON"),
        ("", r"FM-IQA\.json: not JSON"),
    ],
)
def test_files_that_are_something_else_stop_it(official, content, message):
    fmiqa(official, asked(1))
    official.write("FM-IQA.json", content)
    with pytest.raises(UserError, match=message):
        official.prepare("fmiqa")
    assert not official.out.with_name("store.partial").exists()


def test_entries_that_cannot_be_used(official, records):
    bad = [
        ("text", "", "not a JSON object"),
        ({"question_id": 2}, "2", "no image_id"),
        (asked(None), "1", "no question_id"),
        (asked(True), "True", "no question_id"),
        (asked(" "), " ", "empty question_id"),
        (asked(3, "x"), "3", "image_id is not a number of COCO"),
        (asked(4, Question=" \n"), "4", "empty Question"),
        (asked(5, Answer=["猫"]), "5", "no Answer"),
        (asked(1), "1", "duplicate id"),
        (asked(6, 4), "6", "missing image"),
        (asked(7, Answer="\u0001"), "7", "no comments"),
        (asked("8" * 600), "8" * 100, "question_id is too long"),
    ]
    fmiqa(official, asked(1), *(entry for entry, _, _ in bad), asked(9, 2))
    store = official.prepare("fmiqa", split=["train"], max_reject_rate=0.9)
    assert [r[0] for r in records(store)] == ["1", "9"]
    assert official.rejects() == [("FM-IQA.json#train", n, id, reason) for n, (_, id, reason) in enumerate(bad, 2)]
    assert read_meta(store)["lines"] == 14


def test_a_bad_image_rejects_all_its_records(official, records):
    fmiqa(official, asked(1, 2), asked(2, 1), asked(3, 3), asked(4, 2), asked(5, 2))
    (official.root / "train2014" / f"COCO_train2014_{2:012d}.jpg").write_bytes(official.jpeg(2)[:300])
    (official.root / "train2014" / f"COCO_train2014_{3:012d}.jpg").unlink()
    store = official.prepare("fmiqa", split=["train"], max_reject_rate=0.9)
    assert [r[0] for r in records(store)] == ["2"]
    reasons = {1: "truncated image", 3: "missing image", 4: "truncated image", 5: "truncated image"}
    assert official.rejects() == [("FM-IQA.json#train", n, str(n), reason) for n, reason in reasons.items()]


def test_questions_and_annotations_that_do_not_belong_together(official, records):
    questions = [question(id) for id in (10, 11, 12, 13, 14, 15, 16, 10)] + [question(17, "x")]
    annotations = [
        annotation(10),
        annotation(10),
        annotation(11, 2),
        annotation(12, n=9),
        annotation(13, multiple_choice_answer=None),
        annotation(14, answers="cat"),
        annotation(15, answers=[{"answer": 1}] * 10),
        annotation(99),
        "text",
        annotation(18, question_id=None, image_id=None),
    ]
    answers = vqa2(official, questions, annotations)
    store = official.prepare("vqa2", split=["train"], answers=answers, max_reject_rate=0.99)
    assert [r[0] for r in records(store)] == ["10"]
    assert official.rejects() == [
        (ANNOTATIONS, 2, "10", "duplicate id"),
        (ANNOTATIONS, 8, "99", "annotation without question"),
        (ANNOTATIONS, 9, "", "annotation without question"),
        (ANNOTATIONS, 10, "", "annotation without question"),
        (QUESTIONS, 2, "11", "annotation of another image"),
        (QUESTIONS, 3, "12", "9 answers instead of 10"),
        (QUESTIONS, 4, "13", "no multiple_choice_answer"),
        (QUESTIONS, 5, "14", "no answers instead of 10"),
        (QUESTIONS, 6, "15", "no answer"),
        (QUESTIONS, 7, "16", "no annotation"),
        (QUESTIONS, 8, "10", "duplicate id"),
        (QUESTIONS, 9, "17", "image_id is not a number of COCO"),
    ]


def test_caption_lists_of_aic_icc(official, records):
    file, folder = "caption_train_annotations_20170902.json", "caption_train_images_20170902"
    captions = [FIVE, FIVE[:4], [*FIVE, "猫"], "猫", [" "] * 5, [*FIVE[:3], "", 1], [*FIVE[:4], ""]]
    entries = [{"image_id": f"{n}.jpg", "caption": given} for n, given in enumerate(captions)]
    official.write(file, entries)
    for n in range(len(captions)):
        official.image(f"{folder}/{n}.jpg", n)
    store = official.prepare("aic_icc", max_reject_rate=0.9)
    assert [(r[0], r[2]) for r in records(store)] == [("0", FIVE), ("6", FIVE[:4])]  # an empty one of five is left out
    reasons = ["4 captions instead of 5", "6 captions instead of 5", "no captions", "empty captions", "no caption"]
    assert official.rejects() == [(file, n, f"{n - 1}.jpg", reason) for n, reason in enumerate(reasons, 2)]


def test_lines_of_flickr30k_cn(official, records):
    name = "flickr30kzhbbosontrain"
    ids, captions = f"{name}/ImageSets/{name}.txt", f"{name}/TextData/seg.{name}.caption.txt"
    lines = [*(f"1#zhb#{k} 猫" for k in range(5)), *(f"2#zhb#{k} 猫" for k in range(4))]
    lines += ["1#zhb#0 狗", "7#zhb#0 猫", "no caption", "3#zhb# 猫", "\udcff"]
    official.write(captions, "\n".join(lines).encode(errors="surrogateescape"))
    official.write(ids, "1\n2\n\n3\n1\n")
    for id in (1, 2, 3):
        official.image(f"flickr30k-images/{id}.jpg", id)
    store = official.prepare("flickr30k_cn", max_reject_rate=0.95)
    assert [r[:3] for r in records(store)] == [("1", "", ["猫"] * 5)]
    assert official.rejects() == [
        (captions, 10, "1", "duplicate id"),
        (captions, 11, "7", f"image is not in {name}.txt"),
        (captions, 12, "", "not <image id>#<language>#<number> <words>"),
        (captions, 13, "", "not <image id>#<language>#<number> <words>"),
        (captions, 14, "", "bad UTF-8"),
        (ids, 2, "2", "4 captions instead of 5"),
        (ids, 4, "3", "0 captions instead of 5"),
        (ids, 5, "1", "duplicate id"),
    ]


def test_rows_of_muge(official, records):
    good = base64.urlsafe_b64encode(official.jpeg(1))
    rows = {"a": good, "b": b"%%%", "c": good[:-7], "d": base64.b64encode(b"no image"), "e": good}
    official.write("IC_train.tsv", b"".join(id.encode() + b"\t" + row + b"\n" for id, row in rows.items()))
    lines = [json.dumps({"image_id": id, "text": TEN if id != "e" else FIVE}) for id in "abcdefa"]
    official.write("IC_train.jsonl", "\n".join([*lines, "{", '"text"', '{"image_id": "a\\ud800", "text": []}']))
    store = official.prepare("muge", max_reject_rate=0.95)
    assert [r[0] for r in records(store)] == ["a"]
    assert official.rejects() == [
        ("IC_train.jsonl", 2, "b", "broken base64"),
        ("IC_train.jsonl", 3, "c", "broken base64"),
        ("IC_train.jsonl", 4, "d", "not an image"),
        ("IC_train.jsonl", 5, "e", "5 captions instead of 10"),
        ("IC_train.jsonl", 6, "f", "missing image"),
        ("IC_train.jsonl", 7, "a", "duplicate id"),
        ("IC_train.jsonl", 8, "", "not JSON"),
        ("IC_train.jsonl", 9, "", "not a JSON object"),
        ("IC_train.jsonl", 10, "a?", "image_id is not valid Unicode"),
    ]
    official.write("IC_train.tsv", b"a " + good)
    with pytest.raises(UserError, match=r"IC_train\.tsv:1: no TAB"):
        official.prepare("muge", out=f"{official.out}2")


def test_too_many_rejects_stop_it_and_it_goes_on_without_reading_again(official, records, monkeypatch):
    fmiqa(official, *(asked(n, n % 4) for n in range(1, 13)))
    (official.root / "train2014" / f"COCO_train2014_{2:012d}.jpg").unlink()
    with pytest.raises(UserError, match=r"6 of 12 lines cannot be used, .*: 6 missing image; see"):
        official.prepare("fmiqa", split=["train"], max_reject_rate=0.2)
    monkeypatch.setattr(official_files, "collect_records", None)  # would fail
    store = official.prepare("fmiqa", split=["train"], max_reject_rate=0.6)
    assert sorted(int(r[0]) for r in records(store)) == [1, 3, 5, 7, 9, 11]


def test_interrupted_while_reading(official, records, monkeypatch):
    fmiqa(official, *(asked(n, 1 + n % 3) for n in range(20)))
    whole = official.prepare("fmiqa", out=f"{official.out}2")
    entries = FmIqaReader.entries

    def interrupted(*arguments):
        yield from itertools.islice(entries(*arguments), 7)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FmIqaReader, "entries", interrupted)
        official.prepare("fmiqa")
    assert not official.out.exists()
    assert read_meta(official.prepare("fmiqa")) == read_meta(whole)


def test_continuing_with_other_files_is_refused(official):
    fmiqa(official, asked(1), asked(2, 4))
    with pytest.raises(UserError, match="missing image"):
        official.prepare("fmiqa", split=["train"])
    fmiqa(official, asked(1), asked(2, 2))
    with pytest.raises(UserError, match=r"other settings \(official files has changed\)"):
        official.prepare("fmiqa", split=["train"])


def test_processes_make_the_same_store(official):
    fmiqa(official, *(asked(n, 1 + n % 3) for n in range(40)))
    one = read_meta(official.prepare("fmiqa", records_per_shard=5))
    two = read_meta(official.prepare("fmiqa", records_per_shard=5, workers=2, out=f"{official.out}2"))
    assert one == two and [s["records"] for s in one["splits"]["train"]["shards"]] == [14, 13, 13]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"cat": 0, "dog": 2}, r"its 2 indices are not 0 to 1, each once"),
        ({"cat": 0, "dog": 0}, r"its 2 indices are not 0 to 1, each once"),
        ({"cat": 1, "dog": 2}, r"its 2 indices are not 0 to 1, each once"),
        ({"cat": "0"}, "an index is not a whole number"),
        ({"cat": True}, "an index is not a whole number"),
        (["cat", "cat"], "'cat' is in it more than once"),
        (["cat", 1], "neither indices by answer nor a list of answers"),
        ([], "empty"),
        ({}, "empty"),
        ("cat", "Expecting value"),
        ("3", "neither indices by answer nor a list of answers"),
    ],
)
def test_wrong_answer_vocabularies(official, content, reason):
    vqa2(official, [question(1)], [annotation(1)])
    answers = official.write("answers.json", content)
    with pytest.raises(UserError, match=rf"answers\.json: not an answer vocabulary \({reason}.*\); give"):
        official.prepare("vqa2", split=["train"], answers=str(answers))
    assert not official.out.with_name("store.partial").exists()


def test_vocabulary_of_something_else(official):
    vqa2(official, [question(1)], [annotation(1)])
    answers = official.write("answers.json", ["horse"])
    with pytest.raises(UserError, match=rf"answers\.json: {ANNOTATIONS} gives none of its answers"):
        official.prepare("vqa2", split=["train"], answers=str(answers))
    with pytest.raises(UserError, match=r"No such file"):
        official.prepare("vqa2", split=["train"], answers="nowhere.json")
    with pytest.raises(UserError, match=r"train2014/answers\.json: not an answer vocabulary \(No such"):
        official.prepare("vqa2", split=["train"], answers=str(official.root / "train2014"))


def test_no_answer_is_frequent_enough(official):
    vqa2(official, [question(1)], [annotation(1)])
    official.write("v2_mscoco_val2014_annotations.json", {"annotations": [annotation(2)]})
    with pytest.raises(UserError, match=r"no answer occurs 3 times in .*; lower min_answer_count"):
        official.prepare("vqa2", split=["train"], min_answer_count=3)
    store = official.prepare("vqa2", split=["train"], min_answer_count=2)
    assert open_dataset(store).answers == ["cat"]


def test_another_vocabulary_in_a_store_is_noticed(official):
    answers = vqa2(official, [question(1)], [annotation(1)])
    store = official.prepare("vqa2", split=["train"], answers=answers)
    assert open_dataset(store).answers_fingerprint == answers_fingerprint(["cat"])
    (store / "answers.json").write_text('["dog"]')
    with pytest.raises(UserError, match="not the answers that the store was prepared with"):
        _ = open_dataset(store).answers
