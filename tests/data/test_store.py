import filecmp
import os
import pickle
import shutil

import lmdb
import numpy as np
import pytest

from cromic_ds.data import lmdb_cache
from cromic_ds.data.dataset import Dataset, UnreadableRecord
from cromic_ds.data.open_dataset import available_splits, open_dataset
from cromic_ds.data.record import Record
from cromic_ds.data.store import StoreDataset, answers_fingerprint
from cromic_ds.data.tokenizer import SPECIAL, encode, load_tokenizer
from cromic_ds.errors import UserError
from cromic_ds.prepare.store_writer import StoreWriter


@pytest.fixture
def tokenizer(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*SPECIAL.values(), *"你好吗猫"]), encoding="utf-8")
    return load_tokenizer(file)


def write(out, tokenizer, n=10, per_shard=4, share=1) -> None:
    noise = np.random.default_rng(0)
    with StoreWriter(out, tokenizer, records_per_shard=per_shard, image_short_side=64) as store:
        for i in range(n):
            post, *comments = encode(tokenizer, ["你好吗", "好", "猫" * (i % 3 + 1)], 40)
            texts = ["好", "猫" * (i % 3 + 1)]
            record = Record(f"id{i}", "你好吗", texts, post, comments, {"answer": i}, image_id=f"im{i // share}")
            store.add("train", record, noise.bytes(3000) if i % share == 0 else None)
        store.add("val", Record("bare"))


def same_files(a, b) -> bool:
    names = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in (a, b)]
    return names[0] == names[1] and all(filecmp.cmp(a / n, b / n, shallow=False) for n in names[0])


def test_what_was_written_is_read(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer)
    data = open_dataset(tmp_path / "store", "train")
    assert isinstance(data, Dataset) and len(data) == 10
    assert [data.tokens(i).id for i in range(10)] == [f"id{i}" for i in range(10)]
    tokens, texts = data.tokens(9), data.texts(9)
    assert tokens.post.tolist() == [2, 5, 6, 7, 3] and tokens.post.dtype == np.int32
    assert [c.tolist() for c in tokens.comments] == [[2, 6, 3], [2, 8, 3]]
    assert (texts.id, texts.post, texts.comments, texts.extras) == ("id9", "你好吗", ["好", "猫"], {"answer": 9})
    noise = np.random.default_rng(0)
    assert [data.image(i) for i in range(10)] == [noise.bytes(3000) for _ in range(10)]
    assert {path.name for path in (tmp_path / "store" / "train").iterdir()} == {
        f"{kind}-0000{number}.lmdb" for kind in ("image", "text") for number in range(3)
    }
    with pytest.raises(IndexError):
        data.tokens(10)


def test_record_without_image_post_or_comments(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer)
    data = StoreDataset(tmp_path / "store", "val")
    assert data.image(0) is None
    assert data.tokens(0).post.shape == (0,) and data.tokens(0).comments == []
    assert data.texts(0).extras == {}


def test_records_that_share_an_image_store_it_once(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer, n=12, per_shard=4, share=3)
    data = StoreDataset(tmp_path / "store", "train")
    shards = data.meta["splits"]["train"]["shards"]
    assert [(s["records"], s["images"]) for s in shards] == [(6, 2), (6, 2)]  # a shard ends where the image changes
    assert data.image(3) == data.image(4) == data.image(5) != data.image(6)


def test_answers_are_stored_with_their_vocabulary(tmp_path, tokenizer):
    answers = (np.array([70_000, 1], np.int32), np.array([0.9, 0.3], np.float32))
    vocabulary = [f"answer {i}" for i in range(70_001)]
    with StoreWriter(tmp_path / "store", tokenizer, answers=vocabulary, task="vqa2") as store:
        store.add("train", Record("a", "你", ["好"], *(np.array([2, 5, 3]), [np.array([2, 6, 3])]), answers=answers))
        store.add("train", Record("b"))
    data = pickle.loads(pickle.dumps(open_dataset(tmp_path / "store")))
    assert (data.task, data.answers, data.answers_fingerprint) == ("vqa2", vocabulary, answers_fingerprint(vocabulary))
    a, b = data.tokens(0), data.tokens(1)
    assert (a.answer_ids.tolist(), a.answer_ids.dtype) == ([70_000, 1], np.int32)
    assert np.array_equal(a.answer_scores, answers[1]) and a.answer_scores.dtype == np.float32
    assert (a.post.tolist(), [c.tolist() for c in a.comments], data.texts(0).post) == ([2, 5, 3], [[2, 6, 3]], "你")
    assert (b.answer_ids.shape, b.answer_scores.shape) == ((0,), (0,))
    (tmp_path / "store" / "answers.json").unlink()
    with pytest.raises(UserError, match=r"answers\.json: cannot be read"):
        _ = open_dataset(tmp_path / "store").answers


def test_store_without_answers(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer)
    data = open_dataset(tmp_path / "store")
    assert (data.task, data.answers, data.answers_fingerprint) == (None, None, None)
    assert (data.tokens(0).answer_ids, data.tokens(0).answer_scores) == (None, None)


def test_large_vocabulary_takes_four_bytes(tmp_path, tokenizer):
    tokenizer.add_tokens([f"t{i}" for i in range(66_000)])
    with StoreWriter(tmp_path / "store", tokenizer) as store:
        store.add("train", Record("a", post_tokens=np.array([2, 65_999, 3], np.int32)))
    data = StoreDataset(tmp_path / "store")
    assert data.meta["token_bytes"] == 4
    assert data.tokens(0).post.tolist() == [2, 65_999, 3]


def test_same_records_make_the_same_bytes(tmp_path, tokenizer):
    for name in ("a", "b"):
        write(tmp_path / name, tokenizer)
    assert same_files(tmp_path / "a", tmp_path / "b")
    assert StoreDataset(tmp_path / "a").fingerprint == StoreDataset(tmp_path / "b").fingerprint
    write(tmp_path / "c", tokenizer, n=11)
    assert StoreDataset(tmp_path / "a").fingerprint != StoreDataset(tmp_path / "c").fingerprint


def test_map_grows_with_content(tmp_path, tokenizer):
    with StoreWriter(tmp_path / "store", tokenizer) as store:
        for i in range(40):
            store.add("train", Record(f"{40 - i}", image_id=f"{40 - i}"), bytes([i]) * 1_000_000)
    data = StoreDataset(tmp_path / "store")
    assert all(data.image(i) == bytes([i]) * 1_000_000 for i in range(40))
    assert (tmp_path / "store/train/image-00000.lmdb/data.mdb").stat().st_size < 42_000_000


def test_damaged_and_missing_values_are_unreadable_records(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer)
    data = StoreDataset(tmp_path / "store", "train")
    lmdb_cache._open.clear()
    with lmdb.open(str(tmp_path / "store/train/text-00000.lmdb"), lock=False) as env, env.begin(write=True) as txn:
        damaged = bytearray(txn.get((1).to_bytes(8, "big")))
        damaged[-3] ^= 1
        txn.put((1).to_bytes(8, "big"), bytes(damaged))
        txn.delete((2).to_bytes(8, "big"))
    with lmdb.open(str(tmp_path / "store/train/image-00000.lmdb"), lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"im0", txn.get(b"im0")[:-1])
        txn.delete(b"im3")
    for read, index, reason in [
        (data.tokens, 1, r"train\[1\]: damaged"),
        (data.texts, 2, r"train\[2\]: missing"),
        (data.image, 0, r"id0: its image is damaged"),
        (data.image, 3, r"id3: its image is missing"),
    ]:
        with pytest.raises(UnreadableRecord, match=reason):
            read(index)
    assert data.tokens(0).id == "id0"
    error = pickle.loads(pickle.dumps(UnreadableRecord("a", "b")))
    assert (error.id, error.reason) == ("a", "b")


def test_a_file_that_is_cut_off_makes_unreadable_records_and_no_bus_error(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer)
    data = StoreDataset(tmp_path / "store")
    assert data.image(0)
    path = tmp_path / "store/train/image-00000.lmdb/data.mdb"
    whole = path.read_bytes()
    for there in (len(whole) - 4096, 0):
        os.truncate(path, there)
        with pytest.raises(UnreadableRecord, match=f"data.mdb has {there} of its {len(whole)} bytes: it was cut off"):
            data.image(0)
    path.write_bytes(whole)
    assert data.image(0)
    lmdb_cache._open.clear()
    os.truncate(path, len(whole) - 4096)
    with pytest.raises(UnreadableRecord, match="it was cut off"):
        data.image(0)


def test_another_store_in_the_place_of_this_one_is_not_read(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer, per_shard=5)
    data = StoreDataset(tmp_path / "store")
    assert data.tokens(0).id == "id0"
    (tmp_path / "store").rename(tmp_path / "old")
    write(tmp_path / "store", tokenizer, n=11, per_shard=5)
    assert data.tokens(1).id == "id1"  # of the file that is open
    with pytest.raises(UnreadableRecord, match="another store is in its place since this program started"):
        data.tokens(7)
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "old", tmp_path / "store")
    assert data.tokens(7).id == "id7"


def test_two_readers_a_fork_and_a_pickle_share_nothing(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer)
    first, second = (StoreDataset(tmp_path / "store") for _ in range(2))
    assert first.image(3) == second.image(3) == pickle.loads(pickle.dumps(first)).image(3)
    child = os.fork()
    if child == 0:
        os._exit(0 if second.image(3) == first.image(3) and second.tokens(9).id == "id9" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert first.tokens(0).id == "id0"


def test_more_shards_than_open_environments(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(lmdb_cache, "MAX_OPEN", 3)
    write(tmp_path / "store", tokenizer, per_shard=1)
    data = StoreDataset(tmp_path / "store")
    assert [data.tokens(i % 10).id for i in range(30)] == [f"id{i % 10}" for i in range(30)]


def test_nothing_is_left_when_writing_fails(tmp_path, tokenizer):
    with (
        pytest.raises(ValueError, match="does not hold the image"),
        StoreWriter(tmp_path / "store", tokenizer) as store,
    ):
        store.add("train", Record("a", image_id="x"))
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.txt"]


def test_errors_say_what_to_do(tmp_path, tokenizer):
    write(tmp_path / "store", tokenizer)
    assert available_splits(tmp_path / "store") == ["train", "val"]
    with pytest.raises(UserError, match=r"no split 'vall' \(did you mean 'val'\?\); it has train, val"):
        open_dataset(tmp_path / "store", "vall")
    with pytest.raises(UserError, match="already exists"):
        StoreWriter(tmp_path / "store", tokenizer)
    with pytest.raises(UserError, match="no such data set"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(UserError, match="neither a store"):
        open_dataset(tmp_path)
    meta = tmp_path / "store" / "store.json"
    meta.write_text(meta.read_text(encoding="utf-8").replace('"version": 2', '"version": 9'), encoding="utf-8")
    with pytest.raises(UserError, match="format version 9, this program reads 2"):
        open_dataset(tmp_path / "store")
    meta.write_text("{")
    with pytest.raises(UserError, match="not readable"):
        open_dataset(tmp_path / "store")
