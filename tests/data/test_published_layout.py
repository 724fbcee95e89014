import os
import pickle
import shutil

import lmdb
import numpy as np
import pytest
import torch

from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.data.open_dataset import available_splits, open_dataset
from cromic_ds.data.tokenizer import SPECIAL
from cromic_ds.errors import UserError

VOCAB = [*SPECIAL.values(), *"你好吗猫"]  # 5 你, 6 好, 7 吗, 8 猫
POSTS = {"aa01": [2, 5, 6, 3], "bb02": [2, 8, 3]}
COMMENTS = {"aa01": [[2, 6, 3], [2, 8, 8, 3]], "bb02": [[2, 5, 6, 7, 3]]}


def pad(ids: list[int], length: int) -> list[int]:
    return ids + [0] * (length - len(ids))


def write(folder, name="sample", keys=("did2post", "did2cmts"), file_space="", key_space="", cut=0, **changes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCAB), encoding="utf-8")
    spell = {id: id[cut:] + file_space for id in POSTS}
    content = {
        "all_did": list(spell.values()),
        keys[0]: {spell[id]: pad(ids, 40) for id, ids in POSTS.items()},
        keys[1]: {spell[id]: [pad(c, 25) for c in group] for id, group in COMMENTS.items()},
    }
    torch.save(content | changes, folder / f"{name}.pt")
    images = folder / f"{name}_image_lmdb"
    if not images.exists():
        with lmdb.open(str(images), lock=False) as env, env.begin(write=True) as txn:
            for id in POSTS:
                txn.put((id + key_space).encode(), f"jpeg of {id}".encode())


@pytest.mark.parametrize("keys", [("did2post", "did2cmts"), ("id2post", "id2cmt")])
@pytest.mark.parametrize(("file_space", "key_space"), [("", ""), (" ", " "), (" ", ""), ("", " ")])
def test_both_pairs_of_keys_and_trailing_spaces(tmp_path, keys, file_space, key_space):
    write(tmp_path, keys=keys, file_space=file_space, key_space=key_space)
    data = open_dataset(tmp_path, "train")
    assert isinstance(data, Dataset) and len(data) == 2
    data = pickle.loads(pickle.dumps(data))
    tokens, texts = data.tokens(0), data.texts(1)
    assert (tokens.id, tokens.post.tolist(), [c.tolist() for c in tokens.comments]) == (
        "aa01",
        POSTS["aa01"],
        COMMENTS["aa01"],
    )
    assert tokens.post.dtype == np.int32
    assert (texts.id, texts.post, texts.comments) == ("bb02", "猫", ["你好吗"])
    assert [data.image(i) for i in range(2)] == [b"jpeg of aa01", b"jpeg of bb02"]


def test_one_file_serves_every_split(tmp_path):
    write(tmp_path)
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert train.single_file and train.fingerprint == val.fingerprint and val.split == "val"
    assert available_splits(tmp_path) == ["sample"]


def test_several_files_are_the_splits(tmp_path):
    for name in ("train", "val"):
        write(tmp_path, name)
    assert available_splits(tmp_path) == ["train", "val"]
    assert open_dataset(tmp_path, "val").file.name == "val.pt"
    assert open_dataset(tmp_path / "val.pt", "train").file.name == "val.pt"
    with pytest.raises(UserError, match=r"no split 'vall' \(did you mean 'val'\?\); its files are train, val"):
        open_dataset(tmp_path, "vall")


def test_truncated_ids_are_named_as_the_cause(tmp_path):
    write(tmp_path)
    write(tmp_path, "sample_id_keys", cut=2)
    shutil.rmtree(tmp_path / "sample_id_keys_image_lmdb")
    for path, split in ((tmp_path / "sample_id_keys.pt", "train"), (tmp_path, "sample_id_keys")):
        with pytest.raises(
            UserError, match=r"published converter cut off their first 2 characters \('01' is 'aa01' there\)"
        ):
            open_dataset(path, split)


def test_images_of_another_data_set(tmp_path):
    write(tmp_path)
    torch.save(
        {"all_did": ["zz"], "did2post": {"zz": [2, 5, 3]}, "did2cmts": {"zz": [[2, 5, 3]]}}, tmp_path / "sample.pt"
    )
    with pytest.raises(UserError, match=r"none of its ids is in sample_image_lmdb .*'zz'.*'aa01'"):
        open_dataset(tmp_path)


def test_incomplete_posts_are_unreadable_records(tmp_path):
    write(tmp_path, all_did=["aa01", "bb02", "gone"], did2cmts={"aa01": COMMENTS["aa01"], "bb02": []})
    data = open_dataset(tmp_path)
    for read, index, reason in [
        (data.tokens, 1, "no comments"),
        (data.tokens, 2, "empty post"),
        (data.image, 2, "missing"),
    ]:
        with pytest.raises(UnreadableRecord, match=reason):
            read(index)


def test_images_that_are_cut_off_under_a_reader_make_unreadable_records(tmp_path):
    write(tmp_path)
    data = open_dataset(tmp_path)
    assert data.image(0) == b"jpeg of aa01"
    os.truncate(tmp_path / "sample_image_lmdb" / "data.mdb", 8192)
    with pytest.raises(UnreadableRecord, match=r"aa01: .* data\.mdb has 8192 of its .* bytes: it was cut off"):
        data.image(0)
    assert data.tokens(0).id == "aa01"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "has no list all_did"),
        ({"all_did": ["a"]}, "neither did2post nor id2post"),
        ({"all_did": ["a"], "did2post": {"a": ["x"]}, "did2cmts": {"a": [[2]]}}, "lists of token ids"),
        ({"all_did": ["a"], "did2post": {"a": [[2]]}, "did2cmts": {"a": [[2]]}}, "lists of token ids"),
        (pytest, "cannot be read as plain data"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    write(tmp_path)
    torch.save(content if content is not pytest else {"all_did": pytest.approx(1)}, tmp_path / "sample.pt")
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_seed_posts(shared):
    data = open_dataset(shared / "seed_data", "train")
    assert len(data) == 10 and data.file.name == "example.pt"
    published = torch.load(data.file, weights_only=True)
    for i, id in enumerate(published["all_did"]):
        tokens = data.tokens(i)
        assert tokens.id == id.strip()
        assert tokens.post.tolist() == [t for t in published["did2post"][id] if t]
        assert [c.tolist() for c in tokens.comments] == [[t for t in c if t] for c in published["did2cmts"][id]]
        assert data.image(i)[:3] == b"\xff\xd8\xff"
    assert data.texts(0).post == "洗一身汗" and data.texts(0).comments[:2] == ["有钱人", "这车一直在瞪老子呀"]


def test_seed_file_with_truncated_ids(shared):
    with pytest.raises(UserError, match="converter cut off their first 2 characters"):
        open_dataset(shared / "seed_data" / "example_id_keys.pt", "train")
