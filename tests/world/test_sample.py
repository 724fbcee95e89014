import hashlib
import json

import numpy as np
import pytest

from cromic_ds.data.images import training_image
from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.tokenizer import decode_text, load_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings
from cromic_ds.world.sample import sample
from cromic_ds.world.settings import SampleSettings


def hashes(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("layout", ["store", "raw", "published"])
def test_the_same_seed_gives_the_same_bytes(layout, tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        sample(SampleSettings(out=str(tmp_path / name), posts=20, seed=seed, layout=layout))
    one, two, other = (hashes(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "other", "two"]  # nothing temporary is left


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "store"
    sample(SampleSettings(out=str(out), posts=60, seed=1, val_fraction=0.25))
    return out


def test_store(store):
    train, val = open_dataset(store, "train"), open_dataset(store, "val")
    assert (len(train), len(val)) == (45, 15)
    scenes = [json.dumps(d.texts(i).extras["scene"]) for d in (train, val) for i in range(len(d))]
    assert len(set(scenes)) == 60  # so none is in both splits
    tokenizer = load_tokenizer(train.tokenizer_path)
    texts, tokens = train.texts(7), train.tokens(7)
    assert texts.id == tokens.id == "w1-000007"
    assert decode_text(tokenizer, tokens.post) == texts.post
    assert [decode_text(tokenizer, c) for c in tokens.comments] == texts.comments
    assert all(texts.extras["answer"] in comment for comment in texts.comments)
    assert set(texts.extras) == {"kind", "attribute", "answer", "alternatives", "scene"}
    crop = training_image(train.image(7), 112)
    assert crop.shape == (112, 112, 3) and crop.std() > 10


def test_the_layouts_say_the_same(store, tmp_path):
    for layout in ("raw", "published"):
        sample(SampleSettings(out=str(tmp_path / layout), posts=60, seed=1, val_fraction=0.25, layout=layout))
    val = open_dataset(store, "val")
    published = open_dataset(tmp_path / "published", "val")
    lines = (tmp_path / "raw" / "lines.txt").read_text(encoding="utf-8").splitlines()
    extras = [json.loads(line) for line in (tmp_path / "raw" / "extras.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(published) == len(val) == 15
    assert len(lines) == len(extras) == 60
    assert [e["split"] for e in extras] == ["train"] * 45 + ["val"] * 15
    for i in range(15):
        texts, tokens, same = val.texts(i), val.tokens(i), published.tokens(i)
        assert tokens.id == same.id == extras[45 + i]["id"]
        assert np.array_equal(tokens.post, same.post)
        assert all(np.array_equal(a, b) for a, b in zip(tokens.comments, same.comments, strict=True))
        assert val.image(i) == published.image(i) == (tmp_path / "raw" / "images" / f"{texts.id}.jpg").read_bytes()
        assert lines[45 + i] == f"{texts.id} #EOS# {texts.post} #EOS# {' #EOC# '.join(texts.comments)}"
        assert texts.extras.items() <= extras[45 + i].items()


def test_published_files_are_as_published(tmp_path):
    import torch

    sample(SampleSettings(out=str(tmp_path / "p"), posts=4, val_fraction=0, layout="published"))
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["train.pt", "train_image_lmdb", "vocab.txt"]
    content = torch.load(tmp_path / "p" / "train.pt", weights_only=True)
    assert list(content) == ["all_did", "did2post", "did2cmts"]
    assert content["all_did"][0] == "w0-000000 "
    assert {len(post) for post in content["did2post"].values()} == {40}
    assert {len(comment) for comments in content["did2cmts"].values() for comment in comments} == {25}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "--out, or --official"),
        ({"posts": 0}, "between 1 and"),
        ({"posts": 40_000}, "36288 scenes for posts"),
        ({"val_fraction": 1.5}, "between 0 and 1"),
        ({"image_size": 8}, "between 32 and 1024"),
    ],
)
def test_wrong_settings_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check_settings(SampleSettings(**({"out": str(tmp_path / "x")} | changes)))


def test_existing_folders_are_kept(store):
    before = hashes(store)
    with pytest.raises(UserError, match="already exists"):
        sample(SampleSettings(out=str(store), posts=3))
    assert hashes(store) == before


@pytest.mark.parametrize("layout", ["store", "raw", "published"])
def test_a_failure_leaves_nothing(layout, tmp_path, monkeypatch):
    from cromic_ds.world import pictures as module

    def break_down(scene, rng, size):
        raise RuntimeError("no ink")

    monkeypatch.setattr(module, "draw_scene", break_down)
    with pytest.raises(RuntimeError, match="no ink"):
        sample(SampleSettings(out=str(tmp_path / "x"), posts=3, layout=layout))
    assert list(tmp_path.iterdir()) == []
