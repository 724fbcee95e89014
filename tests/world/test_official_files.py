import hashlib
import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings
from cromic_ds.world.official_files import TASK_FILES, official_images
from cromic_ds.world.posts import sample_posts
from cromic_ds.world.sample import sample
from cromic_ds.world.scenes import ATTRIBUTE_VALUES, OFFICIAL_SCENES, scene_to_json
from cromic_ds.world.settings import SampleSettings


def hashes(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def grounding(folder, task):
    return [json.loads(line) for line in (folder / task / "grounding.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "official"
    sample(SampleSettings(official=str(out), posts=50, seed=4, val_fraction=0.2, image_size=64))
    return out


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        sample(SampleSettings(official=str(tmp_path / name), posts=10, seed=seed, image_size=32))
    one, two, other = (hashes(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert not {digest for name, digest in one.items() if "ans2label" not in name} & set(other.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "other", "two"]  # nothing temporary is left


def test_every_task_has_the_same_images_and_its_own_words(official):
    assert sorted(p.name for p in official.iterdir()) == sorted(TASK_FILES)
    scenes = {task: [json.dumps(item["scene"]) for item in grounding(official, task)] for task in TASK_FILES}
    assert all(len(set(found)) == 50 for found in scenes.values())
    assert len({frozenset(found) for found in scenes.values()}) == 1
    for task in ("aic_icc", "flickr30k_cn", "muge"):
        assert len(scenes[task]) == 50
    for task in ("fmiqa", "vqa2"):
        assert 2 <= min(Counter(scenes[task]).values()) <= max(Counter(scenes[task]).values()) <= 3
        for item in grounding(official, task):
            assert set(item) == {"id", "kind", "attribute", "answer", "alternatives", "scene"}
            assert item["alternatives"] == list(ATTRIBUTE_VALUES[item["attribute"]])
            assert item["answer"] in item["alternatives"]
            assert item["kind"] in ("what", "where")
    fmiqa, vqa2 = (grounding(official, task) for task in ("fmiqa", "vqa2"))
    assert [item["answer"] for item in fmiqa] != [item["answer"] for item in vqa2]
    jpegs = {
        task: {path.read_bytes() for path in (official / task).rglob("*.jpg")} for task in TASK_FILES if task != "muge"
    }
    assert all(len(found) == 50 for found in jpegs.values())
    assert len({frozenset(found) for found in jpegs.values()}) == 1


def test_splits_and_posts_share_no_scene():
    settings = SampleSettings(posts=30, seed=4, val_fraction=0.1, image_size=32)
    drawn = list(official_images(settings))
    assert [image.split for image in drawn] == ["train"] * 24 + ["val"] * 3 + ["test"] * 3
    assert [image.index for image in drawn] == list(range(30))
    assert len({image.scene for image in drawn}) == 30
    posts = [post.extras["scene"] for post in sample_posts(settings)]
    assert not any(scene_to_json(image.scene) in posts for image in drawn)


def test_pictures_have_their_size():
    [*_, last] = official_images(SampleSettings(posts=3, val_fraction=0.4, image_size=48))
    pixels = np.asarray(Image.open(io.BytesIO(last.jpeg)))
    assert pixels.shape == (48, 48, 3) and pixels.std() > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "y"}, "give one of them"),
        ({"layout": "raw"}, "layout raw is of posts"),
        ({"posts": OFFICIAL_SCENES + 1}, "12096 scenes for the downstream tasks"),
        ({"posts": 4}, r"a split without any \(train 4, val 0, test 0\)"),
        ({"val_fraction": 0.5}, r"a split without any \(train 0, val 10, test 10\)"),
        ({"val_fraction": 0.8}, r"a split without any \(train -12, val 16, test 16\)"),
        ({"val_fraction": -1}, "between 0 and 1"),
        ({"image_size": 2000}, "between 32 and 1024"),
    ],
)
def test_wrong_settings_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check_settings(SampleSettings(**({"official": str(tmp_path / "x"), "posts": 20} | changes)))


def test_existing_folders_are_kept(official):
    before = hashes(official)
    with pytest.raises(UserError, match="already exists; remove it or choose another --official"):
        sample(SampleSettings(official=str(official), posts=20))
    assert hashes(official) == before


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    from cromic_ds.world import pictures as module

    def break_down(scene, rng, size):
        raise RuntimeError("no ink")

    monkeypatch.setattr(module, "draw_scene", break_down)
    with pytest.raises(RuntimeError, match="no ink"):
        sample(SampleSettings(official=str(tmp_path / "x"), posts=20))
    assert list(tmp_path.iterdir()) == []
