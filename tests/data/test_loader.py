import dataclasses
import gc
import io
import pickle
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cromic_ds.batch import BatchSplit
from cromic_ds.data import loader
from cromic_ds.data.collate import SpecialTokens
from cromic_ds.data.dataset import Tokens, UnreadableRecord
from cromic_ds.data.images import training_image
from cromic_ds.data.loader import DataSettings, SkipCounter, eval_batches, training_batches
from cromic_ds.data.order import Order
from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings

SIZE = 16


def jpeg(index: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 24), (index % 256, 128, 0)).save(out, "JPEG", quality=95)
    return out.getvalue()


@dataclass
class Corpus:
    """`n` posts. The tokens of post i contain i, and those of its comment k contain i and k."""

    n: int
    comments: int = 4
    unreadable: frozenset[int] = frozenset()
    bad_images: frozenset[int] = frozenset()
    split: str = "train"
    fingerprint: str = "corpus"
    tokenizer_path: Path = Path("unused")

    def __len__(self):
        return self.n

    def tokens(self, i):
        if i in self.unreadable:
            raise UnreadableRecord(f"id{i}", "checksum does not match")
        comments = [np.array([101, 1000 + i, 2000 + k, 102], np.int32) for k in range(self.comments)]
        return Tokens(f"id{i}", np.array([101, 1000 + i, 102], np.int32), comments)

    def image(self, i):
        return jpeg(i)[:40] if i in self.bad_images else jpeg(i)


@pytest.fixture(autouse=True)
def known_special_tokens(monkeypatch):
    monkeypatch.setattr(loader, "special_tokens", lambda path: SpecialTokens(0, 101, 102))


WHOLE = BatchSplit(8, 8)


def train(corpus, settings=None, split=WHOLE, rank=0, first_step=0, last_step=4, image_size=0):
    settings = settings or DataSettings(workers=0)
    steps = {"first_step": first_step, "last_step": last_step}
    return training_batches(corpus, settings, split, rank, image_size=image_size, seed=3, **steps)


def kept(batch) -> dict[str, list[list[int]]]:
    """Return the comments in a batch by post id."""
    return {name: [c[c > 0].tolist() for c in batch.comment_ids[batch.owner == p]] for p, name in enumerate(batch.ids)}


def test_steps_take_the_positions_of_the_order():
    corpus, order = Corpus(21), Order(21, 3)
    for t, batches in enumerate(train(corpus)):
        assert len(batches) == 1
        assert batches[0].indices == order.indices(8 * t, 8)[1].tolist()
        assert batches[0].post_ids[:, 1].tolist() == [1000 + i for i in batches[0].indices]


@pytest.mark.parametrize(("micro_batch", "world_size"), [(8, 1), (4, 2), (2, 2), (1, 4), (2, 1)])
def test_the_global_batch_does_not_depend_on_its_split(micro_batch, world_size):
    corpus, settings = Corpus(21), DataSettings(workers=0, comments_per_post=2)
    whole = [batches[0] for batches in train(corpus, settings)]
    split = BatchSplit(8, micro_batch, world_size)
    ranks = [list(train(corpus, settings, split, rank)) for rank in range(world_size)]
    for t, expected in enumerate(whole):
        parts = [ranks[r][t][a] for a in range(split.accumulation) for r in range(world_size)]
        assert [i for part in parts for i in part.indices] == expected.indices
        assert {k: v for part in parts for k, v in kept(part).items()} == kept(expected)
        assert sum(part.n_targets for part in parts) == expected.n_targets


def test_a_resumed_run_repeats_the_steps():
    corpus, settings = Corpus(13), DataSettings(workers=0, comments_per_post=2)
    whole, resumed = list(train(corpus, settings)), list(train(corpus, settings, first_step=2))
    assert len(whole) == 4 and len(resumed) == 2
    for [a], [b] in zip(whole[2:], resumed):
        assert a.indices == b.indices and torch.equal(a.comment_ids, b.comment_ids)


def test_comments_are_drawn_again_each_epoch_and_kept_in_order():
    corpus, settings = Corpus(8, comments=6), DataSettings(workers=0, comments_per_post=2)
    epochs = [kept(batches[0]) for batches in train(corpus, settings, last_step=30)]
    assert all(len(c) == 2 and c[0][2] < c[1][2] for epoch in epochs for c in epoch.values())
    assert len({tuple(map(tuple, epoch["id3"])) for epoch in epochs}) > 5  # of 15 pairs
    counts = np.bincount([c[2] - 2000 for epoch in epochs for cs in epoch.values() for c in cs], minlength=6)
    assert counts.min() > 50 and counts.max() < 110  # 80 each in expectation
    assert all(
        len(c) == 6 for c in kept(next(train(corpus, DataSettings(workers=0, comments_per_post=None)))[0]).values()
    )


def test_long_texts_are_cut_and_keep_their_end():
    @dataclass
    class Long(Corpus):
        def tokens(self, i):
            text = np.array([101, *range(1000, 1050), 102], np.int32)
            return Tokens(f"id{i}", text, [text])

    [batch] = next(train(Long(8), DataSettings(workers=0, max_post_tokens=10, max_comment_tokens=5)))
    assert batch.post_ids[0].tolist() == [101, *range(1000, 1008), 102]
    assert batch.comment_ids[0].tolist() == [101, 1000, 1001, 1002, 102]


def test_unreadable_records_and_images_are_skipped_and_named():
    corpus = Corpus(8, unreadable=frozenset({2}), bad_images=frozenset({5}))
    [batch] = next(train(corpus, image_size=SIZE))
    assert sorted(batch.indices) == [0, 1, 3, 4, 6, 7]
    assert batch.images.shape == (6, 3, SIZE, SIZE)
    skipped = dict(batch.skipped)
    assert set(skipped) == {"id2", "id5"}
    assert skipped["id2"] == "checksum does not match" and "image" in skipped["id5"]


def test_a_skipped_example_keeps_no_other_alive(monkeypatch):
    images = []

    def remembered(*given):
        image = training_image(*given)
        images.append(weakref.ref(image))
        return image

    monkeypatch.setattr(loader, "training_image", remembered)
    gc.disable()  # arrays hold memory that the collector does not see
    try:
        alone = {"image_size": SIZE, "micro_batch": 4, "rank": 0, "world_size": 1}
        [batch] = eval_batches(Corpus(4, bad_images=frozenset({2})), DataSettings(workers=0), **alone)
        assert [id for id, _ in batch.skipped] == ["id2"]
        assert len(images) == 3 and not any(image() is not None for image in images)
    finally:
        gc.enable()


def test_a_corpus_without_images_is_refused_only_where_images_are_read():
    class TextOnly(Corpus):
        def image(self, i):
            return None

    [batch] = next(train(TextOnly(8)))
    assert batch.images is None and batch.skipped == []
    [batch] = next(train(TextOnly(8), image_size=SIZE))
    assert batch.n_targets == 0 and {reason for _, reason in batch.skipped} == {"has no image"}


def test_reader_processes_give_the_same_batches():
    corpus = Corpus(21, unreadable=frozenset({4}), bad_images=frozenset({5}))
    run = dict(split=BatchSplit(8, 2), image_size=SIZE, last_step=3)
    alone = [b for batches in train(corpus, **run) for b in batches]
    read = [b for batches in train(corpus, DataSettings(workers=2), **run) for b in batches]
    assert len(alone) == len(read) == 12
    for a, b in zip(alone, read):
        assert (a.indices, a.skipped, a.n_targets) == (b.indices, b.skipped, b.n_targets)
        assert torch.equal(a.images, b.images) and torch.equal(a.post_rows, b.post_rows)
        assert b.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("n", "limit", "world_size"), [(10, None, 1), (10, None, 4), (10, 7, 2), (3, 50, 4), (1, None, 3)]
)
def test_evaluation_reads_each_example_once(n, limit, world_size):
    corpus = Corpus(n)
    run = dict(image_size=0, micro_batch=2, world_size=world_size, limit=limit)
    ranks = [list(eval_batches(corpus, DataSettings(workers=0), rank=r, **run)) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    indices = [i for batches in ranks for b in batches for i in b.indices if i >= 0]
    assert sorted(indices) == list(range(min(n, limit or n)))
    for batch in (b for batches in ranks for b in batches):
        assert (batch.n_targets == 0) == (batch.indices == [-1])


def test_evaluation_takes_the_first_comments():
    settings = DataSettings(workers=0, eval_comments_per_post=3)
    [batch] = eval_batches(Corpus(2, comments=5), settings, image_size=0, micro_batch=2, rank=0, world_size=1)
    assert [c[2] for c in kept(batch)["id1"]] == [2000, 2001, 2002]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"comments_per_post": -1}, "data.comments_per_post"),
        ({"eval_comments_per_post": 0}, "eval_comments_per_post is 0: give a count, or null for all"),
        ({"max_post_tokens": 2}, "data.max_post_tokens"),
        ({"workers": -2}, "data.workers"),
        ({"max_skip_rate": 2.0}, "data.max_skip_rate"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, message):
    with pytest.raises(UserError, match=message):
        check_settings(DataSettings(**settings))


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="split 'train' of /some/store is empty"):
        train(Corpus(0), DataSettings(path="/some/store"))


def test_skip_counter_stops_above_its_share():
    counter = SkipCounter()
    counter.add(0, 5, [("a", "x")], epoch_size=1000, max_rate=0.01)
    counter.add(0, 5, [("b", "y")], epoch_size=1000, max_rate=0.01)
    resumed = SkipCounter(**dataclasses.asdict(counter))
    with pytest.raises(UserError, match=r"11 of 1000 examples .* epoch 0 .*'a' x; 'b' y; 'c' z"):
        resumed.add(0, 1, [("c", "z")], epoch_size=1000, max_rate=0.01)
    counter.add(1, 10, [], epoch_size=1000, max_rate=0.01)  # a new epoch counts from nothing
    assert (counter.epoch, counter.count) == (1, 10)


def test_workers_by_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loader.auto_workers() == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda pid: set(range(16)))
    assert loader.auto_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader.auto_workers() == 4


def test_batches_can_be_pickled():
    [batch] = next(train(Corpus(8), image_size=SIZE))
    assert torch.equal(pickle.loads(pickle.dumps(batch)).images, batch.images)
