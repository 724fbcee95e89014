"""The files in data/ are those that the commands in data/README.md make."""

import base64
import io
import json
import re

import numpy as np
import pytest
from helpers.paths import REPOSITORY
from PIL import Image

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.store import read_meta
from cromic_ds.world.sample import sample
from cromic_ds.world.settings import SampleSettings

DATA = REPOSITORY / "data"
COMMAND = re.compile(
    r"cromic-ds sample --out data/(\w+) --posts (\d+) --seed (\d+) --val_fraction ([\d.]+) --layout (\w+)"
)
OFFICIAL_COMMAND = re.compile(
    r"cromic-ds sample --official data/(\w+) --posts (\d+) --seed (\d+) --val_fraction ([\d.]+) --image_size (\d+)"
)
OFFICIAL_TEXTS = sorted(
    str(path.relative_to(DATA)) for path in (DATA / "official").rglob("*") if path.suffix in (".json", ".jsonl", ".txt")
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make the examples again with the commands of the README, and return their folder."""
    folder = tmp_path_factory.mktemp("examples")
    commands = COMMAND.findall((DATA / "README.md").read_text(encoding="utf-8"))
    assert [out for out, *_ in commands] == ["raw", "published", "store"]
    for out, posts, seed, val_fraction, layout in commands:
        about = {"posts": int(posts), "seed": int(seed), "val_fraction": float(val_fraction)}
        sample(SampleSettings(out=str(folder / out), layout=layout, **about))
    [(out, posts, seed, val_fraction, size)] = OFFICIAL_COMMAND.findall(
        (DATA / "README.md").read_text(encoding="utf-8")
    )
    about = {"posts": int(posts), "seed": int(seed), "val_fraction": float(val_fraction), "image_size": int(size)}
    sample(SampleSettings(official=str(folder / out), **about))
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_same_picture(shipped: bytes, new: bytes, side: int = 128):
    """Pixels may differ a little between versions of the JPEG library."""
    a, b = (np.asarray(Image.open(io.BytesIO(jpeg))).astype(int) for jpeg in (shipped, new))
    assert a.shape == b.shape == (side, side, 3)
    assert np.abs(a - b).mean() < 1


@pytest.mark.parametrize("layout", ["raw", "published", "store", "official"])
def test_the_same_files(layout, made):
    assert files(DATA / layout) == files(made / layout)


def test_all_together_stay_small():
    assert sum(path.stat().st_blocks * 512 for path in DATA.rglob("*") if path.is_file()) <= 2_000_000


@pytest.mark.parametrize(
    "file",
    ["raw/lines.txt", "raw/extras.jsonl", "published/vocab.txt", "store/tokenizer/tokenizer.json", *OFFICIAL_TEXTS],
)
def test_text_files_are_equal_to_the_byte(file, made):
    assert (DATA / file).read_bytes() == (made / file).read_bytes()


def test_raw_images(made):
    for new in sorted((made / "raw" / "images").iterdir()):
        assert_same_picture((DATA / "raw" / "images" / new.name).read_bytes(), new.read_bytes())


def test_official_images(made):
    images = [path for path in files(made / "official") if path.endswith(".jpg")]
    assert len(images) == 4 * 8
    for image in images:
        assert_same_picture((DATA / "official" / image).read_bytes(), (made / "official" / image).read_bytes(), 96)
    for name in ("IC_train.tsv", "IC_valid.tsv", "IC_test.tsv"):
        shipped, new = (
            [line.split("\t") for line in (folder / "official" / "muge" / name).read_text().splitlines()]
            for folder in (DATA, made)
        )
        assert [id for id, _ in shipped] == [id for id, _ in new]
        for (_, a), (_, b) in zip(shipped, new):
            assert_same_picture(base64.urlsafe_b64decode(a), base64.urlsafe_b64decode(b), 96)


@pytest.mark.parametrize("layout", ["published", "store"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_records(layout, split, made):
    shipped, new = open_dataset(DATA / layout, split), open_dataset(made / layout, split)
    assert len(shipped) == len(new) == {"train": 18, "val": 6}[split]
    for i in range(len(new)):
        a, b = shipped.tokens(i), new.tokens(i)
        assert a.id == b.id
        assert a.post.tolist() == b.post.tolist()
        assert [c.tolist() for c in a.comments] == [c.tolist() for c in b.comments]
        assert shipped.texts(i) == new.texts(i)
        assert_same_picture(shipped.image(i), new.image(i))


def test_store_description(made):
    shipped, new = read_meta(DATA / "store"), read_meta(made / "store")
    for meta in (shipped, new):
        for split in meta["splits"].values():
            for shard in split["shards"]:
                shard.pop("digest")  # follows the bytes of the JPEGs
    assert shipped == new


def test_the_readme_explains_every_field():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    extras = json.loads((DATA / "raw" / "extras.jsonl").read_text(encoding="utf-8").splitlines()[0])
    official = [json.loads(line) for file in OFFICIAL_TEXTS if file.endswith("l") for line in lines(DATA / file)]
    official += [json.loads((DATA / file).read_text("utf-8")) for file in OFFICIAL_TEXTS if file.endswith("json")]
    for field in [*extras, *extras["scene"][0], *read_meta(DATA / "store"), *fields(official)]:
        assert field in text
    for attributes in extras["scene"]:
        for value in attributes.values():
            assert value in text


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def fields(content) -> set[str]:
    """Return all keys of the objects in a JSON value, except those that are answers."""
    if isinstance(content, list):
        return set().union(*map(fields, content))
    if isinstance(content, dict) and all(key.isascii() for key in content):
        return set(content).union(*map(fields, content.values()))
    return set()
