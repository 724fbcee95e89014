"""Preparation of hand-written official files of each task."""

import base64
import json

import numpy as np
import pytest

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.store import read_meta
from cromic_ds.errors import UserError
from cromic_ds.prepare.command import prepare
from cromic_ds.prepare.official import READERS
from cromic_ds.prepare.settings import PrepareSettings
from cromic_ds.tasks.flickr30k_cn import join_words
from cromic_ds.world.sample import sample
from cromic_ds.world.settings import SampleSettings

TRAIN_QUESTIONS, VAL_QUESTIONS, TEST_QUESTIONS, DEV_QUESTIONS = (
    f"v2_OpenEnded_mscoco_{subset}_questions.json" for subset in ("train2014", "val2014", "test2015", "test-dev2015")
)
TRAIN_ANNOTATIONS, VAL_ANNOTATIONS = (f"v2_mscoco_{subset}_annotations.json" for subset in ("train2014", "val2014"))
AIC_TRAIN, AIC_TRAIN_IMAGES = "caption_train_annotations_20170902.json", "caption_train_images_20170902"
FIVE, TEN = [f"一个猫{i}" for i in range(5)], [f"一个猫{i}" for i in range(10)]


def fmiqa(id, image_id, question="是什么", answer="猫") -> dict:
    return {"question_id": id, "image_id": image_id, "Question": question, "Answer": answer}


def question(id: int, image_id: int, text: str = "what is it?") -> dict:
    return {"image_id": image_id, "question": text, "question_id": id}


def annotation(id: int, image_id: int, answer: str = "cat", answers: list[str] | None = None, **changes) -> dict:
    given = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers or [answer] * 10)]
    return {
        "question_type": "what is",
        "multiple_choice_answer": answer,
        "answers": given,
        "image_id": image_id,
        "answer_type": "other",
        "question_id": id,
        **changes,
    }


def vqa2(official, train: list[tuple[dict, dict]], val: list[tuple[dict, dict]] = (), tests: bool = False) -> None:
    for pairs, questions, annotations, folder in (
        (train, TRAIN_QUESTIONS, TRAIN_ANNOTATIONS, "train2014"),
        (val or [(question(9000, 9), annotation(9000, 9))], VAL_QUESTIONS, VAL_ANNOTATIONS, "val2014"),
    ):
        official.write(questions, {"info": {"year": 2017}, "questions": [q for q, _ in pairs]})
        official.write(annotations, {"annotations": [a for _, a in pairs], "data_type": "mscoco"})
        official.coco(folder, *{q["image_id"] for q, _ in pairs})
    if tests:
        asked = [question(k, k // 1000) for k in (7000, 7001, 8000)]
        official.write(TEST_QUESTIONS, {"questions": asked})
        official.write(DEV_QUESTIONS, {"questions": asked[1:2]})
        official.coco("test2015", 7, 8)


def aic(official, *entries, images=("a", "b")) -> None:
    official.write(AIC_TRAIN, list(entries))
    for number, name in enumerate(images):
        official.image(f"{AIC_TRAIN_IMAGES}/{name}.jpg", number)


def flickr(official, ids: list[str], lines: list[str], folder="flickr30kzhbbosontrain") -> None:
    official.write(f"{folder}/ImageSets/{folder}.txt", "".join(f"{id}\n" for id in ids))
    official.write(f"{folder}/TextData/seg.{folder}.caption.txt", "".join(f"{line}\n" for line in lines))
    for id in ids:
        official.image(f"flickr30k-images/{id}.jpg", int(id))


def muge_row(official, id: str, number: int) -> bytes:
    return id.encode() + b"\t" + base64.urlsafe_b64encode(official.jpeg(number)) + b"\n"


def json_lines(*items) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def test_fmiqa(official, records):
    train = [fmiqa(7, "9"), fmiqa(8, 25, "好吗", "好"), fmiqa("9", "9", " 红色？ ", " 是 ")]
    official.write("FM-IQA.json", {"train": train, "val": [fmiqa(7, 42)]})
    official.coco("train2014", 9, 25)
    official.coco("val2014", 42)
    store = official.prepare("fmiqa")
    assert records(store) == [
        ("7", "是什么", ["猫"], {"image_id": "9"}),
        ("9", "红色？", ["是"], {"image_id": "9"}),  # an image's questions follow each other
        ("8", "好吗", ["好"], {"image_id": "25"}),
    ]
    assert records(store, "val") == [("7", "是什么", ["猫"], {"image_id": "42"})]  # the id of another split
    data = open_dataset(store)
    assert [data.image(i) for i in range(3)] == [official.jpeg(number) for number in (9, 9, 25)]
    assert (data.task, data.answers, data.answers_fingerprint, data.tokens(0).answer_ids) == ("fmiqa", None, None, None)
    meta = read_meta(store)
    assert (meta["lines"], meta["rejects"], meta["max_comment_tokens"]) == (4, {}, 25)
    assert {s: (m["records"], m["comments"], m["images"]) for s, m in meta["splits"].items()} == {
        "train": (3, 3, 2),
        "val": (1, 1, 1),
    }


def test_vqa2(official, records):
    ten = ["Cat"] * 4 + ["a dog"] * 3 + ["two", "2", "mouse"]
    train = [
        (question(5000, 5), annotation(5000, 5, "cat", ten)),
        (question(6000, 6), annotation(6000, 6, "dog")),
        (question(5001, 5, "how many?"), annotation(5001, 5, "2", ["2"] * 10)),
    ]
    val = [(question(9000 + i, 9), annotation(9000 + i, 9, "dog" if i else "two")) for i in range(2)]
    vqa2(official, train, val, tests=True)
    store = official.prepare("vqa2", min_answer_count=2)
    about = {"image_id": "5", "answer_type": "other", "question_type": "what is"}
    assert records(store) == [
        ("5000", "what is it?", ["cat"], about | {"answers": ten}),
        ("5001", "how many?", ["2"], about | {"answers": ["2"] * 10}),
        ("6000", "what is it?", ["dog"], about | {"answers": ["dog"] * 10, "image_id": "6"}),
    ]
    data = open_dataset(store)
    assert data.answers == ["2", "dog"]  # "2" from train and "two" from val; "cat" is only once the majority's
    tokens = [data.tokens(i) for i in range(3)]
    assert [t.answer_ids.tolist() for t in tokens] == [[0, 1], [0], [1]]
    assert np.array_equal(np.concatenate([t.answer_scores for t in tokens]), np.array([0.6, 0.9, 1, 1], np.float32))
    assert (tokens[0].answer_ids.dtype, tokens[0].answer_scores.dtype) == (np.int32, np.float32)
    assert [r[0] for r in records(store, "test")] == ["7000", "7001", "8000"]
    assert records(store, "test-dev") == [("7001", "what is it?", [], {"image_id": "7"})]
    test = open_dataset(store, "test")
    assert (len(test.tokens(0).answer_ids), test.tokens(0).comments) == (0, [])
    assert test.answers_fingerprint == data.answers_fingerprint == read_meta(store)["answers"]["fingerprint"]
    assert test.image(2) == official.jpeg(8)


def test_vqa2_without_annotations_needs_a_vocabulary(official, records):
    official.write(DEV_QUESTIONS, {"questions": [question(7001, 7)]})
    official.coco("test2015", 7)
    with pytest.raises(UserError, match=f"{TRAIN_ANNOTATIONS}, {VAL_ANNOTATIONS} are missing; .* with --answers"):
        official.prepare("vqa2", split=["test-dev"])
    answers = official.write("ans2label.json", {"dog": 1, "cat": 0})
    store = official.prepare("vqa2", split=["test-dev"], answers=str(answers))
    assert open_dataset(store, "test-dev").answers == ["cat", "dog"]
    again = official.prepare("vqa2", answers=str(store), out=f"{official.out}2")  # a store's; all splits that are there
    assert open_dataset(again, "test-dev").answers_fingerprint == open_dataset(store, "test-dev").answers_fingerprint


def test_aic_icc_one_level_down(official, records):
    below = "ai_challenger_caption_train_20170902"
    entries = [{"url": "", "image_id": "b.jpg", "caption": FIVE}, {"url": "", "image_id": "a.jpg", "caption": FIVE}]
    official.write(f"{below}/{AIC_TRAIN}", entries)
    for number, name in enumerate("ab"):
        official.image(f"{below}/{AIC_TRAIN_IMAGES}/{name}.jpg", number)
        official.image(f"caption_test_b_images_20180103/t{name}.jpg", number)
    store = official.prepare("aic_icc")
    assert records(store) == [(id, "", FIVE, {"image_id": id}) for id in "ba"]
    assert records(store, "test") == [(id, "", [], {"image_id": id}) for id in ("ta", "tb")]
    data = open_dataset(store)
    assert data.tokens(0).post.shape == (0,) and len(data.tokens(0).comments) == 5
    assert (data.image(0), open_dataset(store, "test").image(0)) == (official.jpeg(1), official.jpeg(0))
    assert read_meta(store)["max_comment_tokens"] == 72


@pytest.mark.parametrize("name", ["", "Jan"])
def test_flickr30k_cn(official, records, name):
    flickr(
        official,
        ["22", "1"],
        [*(f"1#zhb#{k} 一个 猫 {k}" for k in (4, 3, 2, 1, 0)), *(f"22#zhb#{k} 猫  狗 " for k in range(5))],
        f"flickr30kzhb{name}bosontrain",
    )
    lines = [f"333#zhm#{k} 图:n 里:f ，:wd 一个:m 猫:n" for k in range(5)]
    flickr(official, ["333"], lines, f"flickr30kzhm{name}bosontest")
    store = official.prepare("flickr30k_cn", split=["train", "test"])
    assert records(store) == [
        ("22", "", ["猫，狗"] * 5, {"image_id": "22"}),  # in the order of ImageSets
        ("1", "", [f"一个猫{k}" for k in range(5)], {"image_id": "1"}),
    ]
    assert records(store, "test") == [("333", "", ["图里，一个猫"] * 5, {"image_id": "333"})]
    assert open_dataset(store).image(1) == official.jpeg(1)


@pytest.mark.parametrize(
    ("words", "caption"),
    [
        ("两 个 人", "两个人"),
        ("一个 人  在 街上", "一个人，在街上"),
        ("  猫   狗  ", "猫，狗"),
        ("人:n ：:wm T:nx 恤:ng", "人：T恤"),
        ("12:30 ::w", "12:30:"),
        ("", ""),
    ],
)
def test_segmented_captions_are_joined(words, caption):
    assert join_words(words) == caption


def test_muge(official, records):
    for name in ("train", "valid", "test"):
        official.write(f"IC_{name}.tsv", b"".join(muge_row(official, f"{name}{i}", i) for i in range(2)))
    official.write("IC_train.jsonl", json_lines(*({"image_id": f"train{i}", "text": TEN} for i in (1, 0))))
    official.write("IC_valid.jsonl", json_lines({"image_id": "valid0", "text": TEN}))
    store = official.prepare("muge")
    assert records(store) == [(id, "", TEN, {"image_id": id}) for id in ("train1", "train0")]
    assert [r[0] for r in records(store, "val")] == ["valid0"]
    assert records(store, "test") == [(id, "", [], {"image_id": id}) for id in ("test0", "test1")]
    assert [open_dataset(store).image(i) for i in range(2)] == [official.jpeg(1), official.jpeg(0)]
    official.write("IC_test.jsonl", json_lines({"image_id": "test1", "text": ""}))
    assert [r[0] for r in records(official.prepare("muge", out=f"{official.out}2"), "test")] == ["test1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The sample world's official files: 20 images per task, 4 of them in val and 4 in test."""
    folder = tmp_path_factory.mktemp("world") / "official"
    sample(SampleSettings(official=str(folder), posts=20, seed=5, val_fraction=0.2, image_size=64))
    return folder


@pytest.mark.parametrize("task", READERS)
def test_the_sample_world_can_be_prepared_whole(world, tmp_path, task):
    store = tmp_path / "store"
    more = {"answers": str(world / task / "ans2label.json")} if task == "vqa2" else {}
    settings = {"extras": str(world / task / "grounding.jsonl"), "short_side": 64, "workers": 1, **more}
    prepare(PrepareSettings(task=task, root=str(world / task), tokenizer="train", out=str(store), **settings))
    meta = read_meta(store)
    assert meta["rejects"] == {}
    images = {split: counts["images"] for split, counts in meta["splits"].items()}
    expected = {"fmiqa": {"train": 12, "val": 8}, "vqa2": {"train": 12, "val": 4, "test": 4, "test-dev": 2}}
    assert images == expected.get(task, {"train": 12, "val": 4, "test": 4})
    for split in images:
        data = open_dataset(store, split)
        for i in range(len(data)):
            texts = data.texts(i)
            assert {"image_id", "answer", "alternatives", "kind"} <= set(texts.extras)
            if task == "vqa2" and texts.comments:
                labels, scores = data.tokens(i).answer_ids.tolist(), data.tokens(i).answer_scores
                assert data.answers[labels[int(scores.argmax())]] == texts.comments[0]


def test_records_of_an_image_are_in_one_shard_and_it_is_decoded_once(official, records, monkeypatch):
    from cromic_ds.prepare import shards

    images = [int(i) for i in np.random.default_rng(0).integers(1, 6, 40)]
    official.write("FM-IQA.json", {"train": [fmiqa(n, image) for n, image in enumerate(images)], "val": [fmiqa(0, 1)]})
    official.coco("train2014", *set(images))
    official.coco("val2014", 1)
    decoded = []
    monkeypatch.setattr(shards, "reencode", lambda encoded, *_: decoded.append(encoded) or encoded)
    store = official.prepare("fmiqa", split=["train"], records_per_shard=10)
    assert sorted(decoded) == sorted(official.jpeg(i) for i in range(1, 6))
    order = list(dict.fromkeys(images))
    assert [r[0] for r in records(store)] == [str(n) for image in order for n in range(40) if images[n] == image]
    sizes, ends = [images.count(image) for image in order], []
    for size in sizes:  # a shard is full with ten records or more
        if ends and ends[-1] < 10:
            ends[-1] += size
        else:
            ends.append(size)
    shards_made = read_meta(store)["splits"]["train"]["shards"]
    assert [s["records"] for s in shards_made] == ends and sum(s["images"] for s in shards_made) == 5


def test_extras_are_added(official, records):
    aic(official, {"image_id": "a.jpg", "caption": FIVE}, {"image_id": "b.jpg", "caption": FIVE})
    extras = official.write("extras.jsonl", json_lines({"id": "b", "answer": ["猫"]}))
    store = official.prepare("aic_icc", extras=str(extras))
    assert [r[3] for r in records(store)] == [{"image_id": "a"}, {"image_id": "b", "answer": ["猫"]}]
