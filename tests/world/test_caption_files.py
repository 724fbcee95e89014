import base64
import json

import pytest

from cromic_ds.metrics.grounded import states_answer
from cromic_ds.world.caption_files import TAG_OF, tagged, without_marks
from cromic_ds.world.language import CAPTION_PHRASES, COMPOUNDS, without_spaces
from cromic_ds.world.sample import sample
from cromic_ds.world.settings import SampleSettings

SPLITS = {"train": 20, "val": 5, "test": 5}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "official"
    sample(SampleSettings(official=str(out), posts=30, seed=4, val_fraction=1 / 6, image_size=32))
    return out


def read_lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def grounding(folder):
    items = {item["id"]: item for item in map(json.loads, read_lines(folder / "grounding.jsonl"))}
    assert len(items) == 30
    for item in items.values():
        assert set(item) == {"id", "kind", "answer", "alternatives", "scene"}
        assert item["kind"] == "caption"
        assert item["answer"] == [thing["color"] + thing["shape"] for thing in item["scene"]]
        assert item["alternatives"] == list(COMPOUNDS)
    return items


def assert_true(captions, about, count):
    """Assert that the captions differ, and that each names the three things in order and no other."""
    assert len(set(captions)) == len(captions) == count
    for caption in captions:
        assert sorted((c for c in COMPOUNDS if c in caption), key=caption.index) == about["answer"]


def test_aic_icc(official):
    folder = official / "aic_icc"
    known = grounding(folder)
    seen = []
    for split, name in (("train", "train_annotations_20170902"), ("val", "validation_annotations_20170910")):
        text = (folder / f"caption_{name}.json").read_text(encoding="ascii")
        items = json.loads(text)
        assert text == json.dumps(items)
        images = {path.name for path in (folder / f"caption_{name.replace('annotations', 'images')}").iterdir()}
        assert len(items) == SPLITS[split] and images == {item["image_id"] for item in items}
        for item in items:
            assert list(item) == ["url", "image_id", "caption"]
            id, extension = item["image_id"].split(".")
            assert len(bytes.fromhex(id)) == 20 and extension == "jpg"
            assert_true(item["caption"], known[id], 5)
            seen.append(id)
    seen += sorted(path.stem for path in (folder / "caption_test_a_images_20180103").iterdir())
    assert seen[:25] == list(known)[:25] and set(seen) == set(known)
    assert len(list(folder.iterdir())) == 6


def test_flickr30k_cn(official):
    folder = official / "flickr30k_cn"
    known = grounding(folder)
    seen = []
    for split, name in zip(SPLITS, ("flickr30kzhbbosontrain", "flickr30kzhbbosonval", "flickr30kzhmbosontest")):
        ids = read_lines(folder / name / "ImageSets" / f"{name}.txt")
        lines = read_lines(folder / name / "TextData" / f"seg.{name}.caption.txt")
        assert len(ids) == SPLITS[split] and len(lines) == 5 * len(ids)
        by = "zhm" if split == "test" else "zhb"
        keys, captions = zip(*(line.split(" ", 1) for line in lines))
        assert list(keys) == [f"{id}#{by}#{k}" for id in ids for k in range(5)]
        for i, id in enumerate(ids):
            assert id.isdigit() and len(id) <= 10
            words = [caption.split(" ") for caption in captions[5 * i : 5 * i + 5]]
            if split == "test":
                assert all(token.count(":") == 1 and token.split(":")[1] for c in words for token in c)
                texts = ["".join(token.split(":")[0] for token in c) for c in words]
            else:
                texts = ["".join(word or "，" for word in c) for c in words]
            assert_true(texts, known[id], 5)
        seen += ids
    assert seen == list(known)
    assert {path.name for path in (folder / "flickr30k-images").iterdir()} == {f"{id}.jpg" for id in seen}


def test_captions_are_grounded_in_their_own_picture_only(official):
    known = list(grounding(official / "muge").values())
    items = [json.loads(line) for line in read_lines(official / "muge" / "IC_train.jsonl")]
    for i, item in enumerate(items):
        assert all(states_answer(text, known[i]) for text in item["text"])
        assert not any(states_answer(text, known[i - 1]) for text in item["text"])


def test_marks_and_tags_of_captions():
    caption = "左边 是 红色 圆形 ， 中间 是 蓝色 方形 、"
    assert without_marks("左边 红色 圆形 ， 右边 蓝色 方形") == "左边 红色 圆形  右边 蓝色 方形"
    assert tagged(caption).startswith("左边:f 是:vshi 红色:n 圆形:n ，:wd 中间:f")
    for phrasing in CAPTION_PHRASES:
        words = phrasing.format(l="红色 圆形", m="蓝色 方形", r="黑色 星形")
        assert all(word in TAG_OF for word in words.split())
        assert without_spaces(words) == words.replace(" ", "")
        assert without_marks(words).replace("  ", "，").replace(" ", "") == (
            without_spaces(words).replace("、", "，").replace("：", "，")
        )


def test_muge(official):
    folder = official / "muge"
    known = grounding(folder)
    seen = []
    for split, name in zip(SPLITS, ("IC_train", "IC_valid", "IC_test")):
        rows = [line.split("\t") for line in read_lines(folder / f"{name}.tsv")]
        items = [json.loads(line) for line in read_lines(folder / f"{name}.jsonl")]
        assert [id for id, _ in rows] == [item["image_id"] for item in items]
        assert len(rows) == SPLITS[split]
        for id, encoded in rows:
            assert len(bytes.fromhex(id)) == 16
            assert not set(encoded) & set("+/")
            assert base64.urlsafe_b64decode(encoded)[:3] == b"\xff\xd8\xff"
        for item in items:
            if split == "test":
                assert list(item) == ["image_id"]  # the captions are hidden; grounding.jsonl knows them
            else:
                assert list(item) == ["image_id", "text"]
                assert_true(item["text"], known[item["image_id"]], 10)
        seen += [id for id, _ in rows]
    assert seen == list(known)
    assert len(list(folder.iterdir())) == 7


def test_pictures_are_the_same_in_a_folder_and_in_a_tsv(official):
    rows = [line.split("\t")[1] for line in read_lines(official / "muge" / "IC_test.tsv")]
    jpegs = {path.read_bytes() for path in (official / "aic_icc" / "caption_test_a_images_20180103").iterdir()}
    assert {base64.urlsafe_b64decode(row) for row in rows} == jpegs
