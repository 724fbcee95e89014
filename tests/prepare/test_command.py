import filecmp
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.data.store import read_meta
from cromic_ds.data.tokenizer import SPECIAL, load_tokenizer, tokenizer_fingerprint
from cromic_ds.errors import UserError
from cromic_ds.prepare.command import prepare
from cromic_ds.prepare.raw_lines import format_line
from cromic_ds.prepare.settings import PrepareSettings
from cromic_ds.settings import check_settings

VOCAB = [*SPECIAL.values(), *"你好吗猫红色0123456789", *(f"##{d}" for d in range(10))]


def jpeg(seed: int, width=80, height=64) -> bytes:
    file = io.BytesIO()
    color = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 255, 3))
    Image.new("RGB", (width, height), color).save(file, "JPEG")
    return file.getvalue()


def corpus(folder, n: int) -> PrepareSettings:
    """Write n usable posts with images, and return the settings that prepare them."""
    images = folder / "images"
    images.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(VOCAB), encoding="utf-8")
    lines = [format_line(f"id{i}", f"你好吗 {i}", ["好", f"猫 {i}"]) for i in range(n)]
    (folder / "posts.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for i in range(n):
        (images / f"id{i}.jpg").write_bytes(jpeg(i))
    return PrepareSettings(
        text=[str(folder / "posts.txt")],
        images=str(images),
        tokenizer=str(folder / "vocab.txt"),
        out=str(folder / "store"),
        short_side=64,
        records_per_shard=8,
        val_fraction=0.1,
        workers=1,
    )


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_same_stores(a, b) -> None:
    assert files(a) == files(b)
    assert [name for name in files(a) if not filecmp.cmp(a / name, b / name, shallow=False)] == []


def ids(store, split="train") -> list[str]:
    data = open_dataset(store, split)
    return [data.tokens(i).id for i in range(len(data))]


def rejects(store) -> list[dict]:
    return [json.loads(line) for line in (store / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


def test_store_holds_every_post_once(tmp_path):
    settings = corpus(tmp_path, 50)
    prepare(settings)
    store = tmp_path / "store"
    train, val = ids(store), ids(store, "val")
    assert sorted(train + val) == sorted(f"id{i}" for i in range(50)) and 1 <= len(val) <= 12
    assert train == sorted(train, key=lambda id: int(id[2:]))  # in the order of the input
    data = open_dataset(store, "train")
    tokenizer = load_tokenizer(data.tokenizer_path)
    for i in range(len(data)):
        tokens, texts = data.tokens(i), data.texts(i)
        number = int(tokens.id[2:])
        assert (texts.post, texts.comments, texts.extras) == (f"你好吗 {number}", ["好", f"猫 {number}"], {})
        assert tokens.post.tolist() == tokenizer(texts.post).input_ids
        assert [c.tolist() for c in tokens.comments] == [tokenizer(c).input_ids for c in texts.comments]
        assert data.image(i) == jpeg(number)  # has the right side already
    meta = read_meta(store)
    assert (meta["lines"], meta["rejects"], rejects(store)) == (50, {}, [])
    assert meta["splits"]["train"]["comments"] == 2 * len(train)
    assert not (tmp_path / "store.partial").exists()


def test_each_reason_is_listed_in_the_order_of_the_input(tmp_path):
    settings = corpus(tmp_path, 6)
    images = tmp_path / "images"
    (images / "html.jpg").write_bytes(b"<html>")
    (images / "cut.jpg").write_bytes(jpeg(1, 400, 300)[:1500])
    bomb = bytearray(jpeg(1))
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = bytes([255, 0, 255, 0])
    (images / "bomb.jpg").write_bytes(bomb)
    for id in ("blank", "silent"):
        (images / f"{id}.jpg").write_bytes(jpeg(1))
    bad = [
        (b"\n", "", "missing fields"),
        (b"x #EOS# only a post\n", "x", "missing fields"),
        (b"y #EOS#  #EOS# c\n", "y", "empty post"),
        (b"z #EOS# p #EOS#  \n", "z", "no comments"),
        ("id2 #EOS# 你 #EOS# 好\n".encode(), "id2", "duplicate id"),
        ("nowhere #EOS# 你 #EOS# 好\n".encode(), "nowhere", "missing image"),
        ("html #EOS# 你 #EOS# 好\n".encode(), "html", "not an image"),
        ("cut #EOS# 你 #EOS# 好\n".encode(), "cut", "truncated image"),
        ("bomb #EOS# 你 #EOS# 好\n".encode(), "bomb", "decompression bomb (more than 64 Mpixel)"),
        (b"u #EOS# \xff #EOS# c\n", "u", "bad UTF-8"),
        ("blank #EOS# \u0001 #EOS# 好\n".encode(), "blank", "empty post"),
        ("silent #EOS# 你 #EOS# \u0001\n".encode(), "silent", "no comments"),
    ]
    second = tmp_path / "second.txt"
    second.write_bytes(b"".join(line for line, _, _ in bad))
    settings.text.append(str(second))
    settings.max_reject_rate = 0.7
    prepare(settings)
    expected = [
        {"file": str(second), "line": n, "id": id, "reason": reason} for n, (_, id, reason) in enumerate(bad, 1)
    ]
    assert rejects(tmp_path / "store") == expected
    assert sorted(ids(tmp_path / "store") + ids(tmp_path / "store", "val")) == [f"id{i}" for i in range(6)]
    assert read_meta(tmp_path / "store")["rejects"] == {
        "empty post": 2,
        "missing fields": 2,
        "no comments": 2,
        **dict.fromkeys(sorted({r for *_, r in bad} - {"empty post", "missing fields", "no comments"}), 1),
    }


def test_first_usable_line_of_an_id_wins(tmp_path):
    settings = corpus(tmp_path, 3)
    lines = [
        "id0 #EOS#  #EOS# 好",
        "id0  #EOS# 猫 #EOS# 好",
        *(tmp_path / "posts.txt").read_text(encoding="utf-8").splitlines(),
    ]
    (tmp_path / "posts.txt").write_text("\n".join(lines), encoding="utf-8")
    settings.max_reject_rate, settings.val_fraction = 0.5, 0
    prepare(settings)
    assert [(r["line"], r["reason"]) for r in rejects(tmp_path / "store")] == [(1, "empty post"), (3, "duplicate id")]
    data = open_dataset(tmp_path / "store")
    assert [data.texts(i).post for i in range(3)] == ["猫", "你好吗 1", "你好吗 2"]
    assert list(read_meta(tmp_path / "store")["splits"]) == ["train"]


def test_too_many_rejects_stop_it_and_can_be_allowed(tmp_path):
    settings = corpus(tmp_path, 30)
    for i in range(0, 30, 5):
        (tmp_path / "images" / f"id{i}.jpg").unlink()
    with pytest.raises(
        UserError, match=r"of 30 lines cannot be used, more than max_reject_rate 0.1 .* missing image; see"
    ):
        prepare(settings)
    assert not (tmp_path / "store").exists()
    listed = rejects(tmp_path / "store.partial")
    assert len(listed) > 3 and {r["reason"] for r in listed} == {"missing image"}
    settings.max_reject_rate = 0.2
    prepare(settings)
    assert [r["id"] for r in rejects(tmp_path / "store")] == [f"id{i}" for i in range(0, 30, 5)]


def test_processes_and_sources_make_the_same_bytes(tmp_path):
    settings = corpus(tmp_path, 50)
    (tmp_path / "images" / "id7.jpg").unlink()
    prepare(settings)
    with lmdb.open(str(tmp_path / "env"), lock=False) as env, env.begin(write=True) as txn:
        for i in [i for i in range(50) if i != 7]:
            txn.put(f"id{i} ".encode(), jpeg(i))
    settings.images, settings.workers, settings.out = str(tmp_path / "env"), 2, str(tmp_path / "again")
    prepare(settings)
    assert_same_stores(tmp_path / "store", tmp_path / "again")


def test_texts_are_cut_to_their_maxima(tmp_path):
    settings = corpus(tmp_path, 4)
    settings.max_post_tokens, settings.max_comment_tokens = 4, 3
    prepare(settings)
    data = open_dataset(tmp_path / "store")
    separator = load_tokenizer(data.tokenizer_path).sep_token_id
    tokens = data.tokens(0)
    assert [len(tokens.post), *map(len, tokens.comments)] == [4, 3, 3]
    assert tokens.post[-1] == tokens.comments[1][-1] == separator
    assert data.texts(0).post == "你好吗 0"


def test_extras_are_stored_with_their_post(tmp_path):
    settings = corpus(tmp_path, 4)
    extras = tmp_path / "extras.jsonl"
    extras.write_text('{"id": "id2", "kind": "what", "answer": "红色"}\n', encoding="utf-8")
    settings.extras, settings.val_fraction = str(extras), 0
    prepare(settings)
    data = open_dataset(tmp_path / "store")
    assert [data.texts(i).extras for i in range(4)] == [{}, {}, {"kind": "what", "answer": "红色"}, {}]


def test_trained_tokenizer_knows_the_corpus(tmp_path):
    settings = corpus(tmp_path, 20)
    settings.tokenizer, settings.vocab_size = "train", 100
    prepare(settings)
    tokenizer = load_tokenizer(tmp_path / "store" / "tokenizer")
    assert tokenizer.unk_token_id not in tokenizer("你好吗 19 猫").input_ids
    assert read_meta(tmp_path / "store")["tokenizer"]["fingerprint"] == tokenizer_fingerprint(tokenizer)


def test_small_corpus_still_has_something_to_evaluate_on(tmp_path):
    settings = corpus(tmp_path, 4)
    settings.val_fraction = 1e-9
    prepare(settings)
    assert (len(ids(tmp_path / "store")), len(ids(tmp_path / "store", "val"))) == (3, 1)


def run_in_background(settings: PrepareSettings, before_image: str) -> subprocess.Popen:
    """Start `prepare` in a process that runs a statement before each image, for example to slow it down."""
    script = (
        "import json, os, signal, sys, time\n"
        "import cromic_ds.prepare.shards as shards\n"
        "from cromic_ds.prepare.command import *\n"
        "reencode = shards.reencode\n"
        "def changed(*arguments):\n"
        f"    {before_image}\n"
        "    return reencode(*arguments)\n"
        "shards.reencode = changed\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        prepare(PrepareSettings(**json.loads(sys.argv[1])))\n"
        "    except UserError as error:\n"
        "        sys.exit(str(error))\n"
    )
    file = Path(f"{settings.out}.py")  # a file, so that spawned workers import it too
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, str(file), json.dumps(vars(settings))]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed(tmp_path, workers):
    settings = corpus(tmp_path, 100)
    (tmp_path / "images" / "id50.jpg").unlink()
    prepare(settings)
    expected, settings.out, settings.workers = tmp_path / "store", str(tmp_path / "killed"), workers
    work = tmp_path / "killed.partial" / "work"

    def finished() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in work.glob("*-0*.json")}

    seen: dict[str, int] = {}
    for _ in range(2):
        process = run_in_background(settings, "time.sleep(0.01)")
        deadline = time.monotonic() + 60
        while len(finished()) < len(seen) + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.3)  # its workers notice
        now = finished()
        assert len(seen) + 3 <= len(now) < 13
        assert {name: now[name] for name in seen} == seen  # nothing was made again
        seen = now
    data_before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed.partial").rglob("*.lmdb/data.mdb")}
    prepare(settings)
    for path, written in data_before.items():
        name = path.parent.name.removeprefix("text-").removeprefix("image-").removesuffix(".lmdb")
        if f"{path.parent.parent.name}-{name}.json" in seen:
            assert (tmp_path / "killed" / path.relative_to(tmp_path / "killed.partial")).stat().st_mtime_ns == written
    assert_same_stores(expected, tmp_path / "killed")


def test_failing_workers_are_reported_and_the_rest_goes_on_later(tmp_path):
    settings = corpus(tmp_path, 50)
    prepare(settings)
    settings.out, settings.workers = str(tmp_path / "again"), 2
    killed = run_in_background(settings, "os.kill(os.getpid(), signal.SIGKILL)")
    assert "a worker process was killed (exit code -9)" in killed.communicate()[1] and killed.returncode == 1
    failed = run_in_background(settings, "raise OSError('no such disk')")
    assert "OSError: no such disk" in failed.communicate()[1] and failed.returncode == 1
    prepare(settings)
    assert_same_stores(tmp_path / "store", tmp_path / "again")


def test_resuming_with_other_settings_or_input_is_refused(tmp_path):
    settings = corpus(tmp_path, 30)
    for i in range(20):
        (tmp_path / "images" / f"id{i}.jpg").unlink()
    with pytest.raises(UserError, match="missing image"):
        prepare(settings)
    settings.short_side = 32
    with pytest.raises(
        UserError, match=r"other settings \(short_side was 64, is 32\); use the same, or remove that folder"
    ):
        prepare(settings)
    settings.short_side = 64
    with (tmp_path / "posts.txt").open("a", encoding="utf-8") as file:
        file.write("new #EOS# 你 #EOS# 好\n")
    with pytest.raises(UserError, match=r"other settings \(text has changed\)"):
        prepare(settings)


def test_published_layout_converts(tmp_path, shared):
    seed = shared / "seed_data"
    prepare(PrepareSettings(published=str(seed), out=str(tmp_path / "store"), val_fraction=0.2, workers=1))
    prepare(PrepareSettings(published=str(seed), out=str(tmp_path / "retokenized"), tokenizer="train", workers=1))
    published = open_dataset(seed)
    position = {published.tokens(i).id: i for i in range(10)}
    seen = []
    for split in ("train", "val"):
        data = open_dataset(tmp_path / "store", split)
        for i in range(len(data)):
            tokens, j = data.tokens(i), position[data.tokens(i).id]
            seen.append(j)
            assert tokens.post.tolist() == published.tokens(j).post.tolist()
            assert [c.tolist() for c in tokens.comments] == [c.tolist() for c in published.tokens(j).comments]
            assert data.texts(i).comments == published.texts(j).comments
            assert data.image(i) == published.image(j)
    assert sorted(seen) == list(range(10))
    other = open_dataset(tmp_path / "retokenized")
    j = position[other.tokens(0).id]
    assert other.texts(0).post == published.texts(j).post
    assert other.tokens(0).post.tolist() == load_tokenizer(other.tokenizer_path)(published.texts(j).post).input_ids


def test_raw_seed_lines(tmp_path, shared):
    seed = shared / "seed_data"
    settings = PrepareSettings(
        text=[str(seed / "example.txt")],
        images=str(seed / "example_image_lmdb"),
        tokenizer=str(seed / "vocab.txt"),
        out=str(tmp_path / "store"),
        workers=1,
    )
    prepare(settings)
    assert {s: m["records"] for s, m in read_meta(tmp_path / "store")["splits"].items()} == {"train": 9, "val": 1}
    assert rejects(tmp_path / "store") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "out is missing"),
        ({"images": ""}, "images is missing"),
        ({"images": "nowhere"}, "nowhere: no such image folder"),
        ({"text": []}, "either text"),
        ({"text": ["nowhere.txt"]}, "nowhere.txt: no such text file"),
        ({"published": "x"}, "either text"),
        ({"text": [], "images": "", "published": "nowhere"}, "nowhere: not in the published layout"),
        ({"tokenizer": ""}, "tokenizer is missing"),
        ({"extras": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"val_fraction": 0.9}, "val_fraction is 0.9: it must be between 0 and 0.5"),
        ({"jpeg_quality": 0}, "jpeg_quality is 0"),
        ({"workers": 0}, "workers is 0: it must be between 1 and 4096"),
    ],
)
def test_wrong_settings_leave_nothing_behind(tmp_path, changes, message):
    settings = corpus(tmp_path, 2)
    before = files(tmp_path)
    for name, value in changes.items():
        setattr(settings, name, value)
    with pytest.raises(UserError, match=message):
        check_settings(settings)
        prepare(settings)
    assert files(tmp_path) == before


def test_existing_store_and_running_preparation_are_not_touched(tmp_path):
    settings = corpus(tmp_path, 40)
    process = run_in_background(settings, "time.sleep(0.02)")
    while not list((tmp_path / "store.partial" / "work").glob("*-0*.json")):
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process is preparing this store"):
        prepare(settings)
    assert process.wait() == 0
    with pytest.raises(UserError, match="already exists; remove it or choose another"):
        prepare(settings)
