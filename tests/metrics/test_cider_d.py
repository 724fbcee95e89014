"""CIDEr-D with fixed document frequencies, against pycocoevalcap's scorer."""

from __future__ import annotations

import math
import random
from collections import Counter
from zipfile import BadZipFile

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import precook

from cromic_ds.metrics import cider_d
from cromic_ds.metrics.cider_d import CiderD, DocumentFrequencies, ngram_counts

WORDS = ["一", "个", "红色", "圆", "形", "在", "上面", "下面", "方块", "。", "star", "3"]


def corpus(images: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """Return each image's references and a prediction for it, some of them empty, a single word or equal to a reference."""
    rng = random.Random(seed)

    def text(shortest: int = 1) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(shortest, 14)))

    references = [[text() for _ in range(rng.randint(1, 5))] for _ in range(images)]
    odd = [references[0][0], "", "红色", "unseen", "红色 红色 红色 红色 红色"]
    return references, [odd[i] if i < len(odd) else text(0) for i in range(images)]


@pytest.mark.parametrize("images", [2, 3, 40, 300])
def test_scores_equal_pycocoevalcaps_where_the_frequencies_come_from_the_same_images(images):
    references, predictions = corpus(images, seed=images)
    scorer = CiderD(DocumentFrequencies.count(references))
    ours = [scorer.scores([p], r)[0] for p, r in zip(predictions, references)]
    by_id = {i: r for i, r in enumerate(references)}
    mean, theirs = Cider().compute_score(by_id, {i: [p] for i, p in enumerate(predictions)})
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)
    assert np.mean(ours) == pytest.approx(mean, rel=1e-12)
    assert ours[0] > 1 > min(ours) == 0


def test_several_texts_of_an_image_are_scored_as_each_alone():
    references, predictions = corpus(30, seed=1)
    scorer = CiderD(DocumentFrequencies.count(references))
    for texts in references[:5]:
        assert scorer.scores(predictions, texts) == [scorer.scores([p], texts)[0] for p in predictions]


def test_a_table_holds_the_ngrams_of_several_images_with_their_counts():
    references, _ = corpus(50, seed=2)
    table = DocumentFrequencies.count(references)
    words = Counter(ngram for texts in references for ngram in set().union(*(precook(text) for text in texts)))
    assert table.n_images == 50
    assert sorted(table.counts[:-1].tolist()) == sorted(count for count in words.values() if count > 1)
    for ngram in list(words)[::7]:
        hashed = next(iter(ngram_counts(" ".join(ngram))[len(ngram) - 1]))
        assert table.idf([hashed]).item() == math.log(50) - math.log(words[ngram])
    assert table.idf([0, 2**64 - 1]).tolist() == [math.log(50)] * 2  # unseen
    assert table.idf([]).shape == (0,)


def test_counting_in_blocks_changes_nothing(monkeypatch):
    references, _ = corpus(80, seed=3)
    whole = DocumentFrequencies.count(references)
    monkeypatch.setattr(cider_d, "BLOCK", 300)
    in_blocks = DocumentFrequencies.count(iter(references))
    assert np.array_equal(whole.ngrams, in_blocks.ngrams)
    assert np.array_equal(whole.counts, in_blocks.counts)
    assert (whole.ngrams.dtype, whole.counts.dtype) == (np.uint64, np.uint32)
    assert (np.diff(whole.ngrams) > 0).all()


def test_ngrams_are_told_apart_by_their_order():
    """There are as many hashes as n-grams."""
    hashes = {
        h for seed in range(200) for counts in map(ngram_counts, corpus(5, seed)[0][0]) for c in counts for h in c
    }
    spelled = {g for seed in range(200) for text in corpus(5, seed)[0][0] for g in precook(text)}
    assert len(hashes) == len(spelled) > 3000
    assert ngram_counts("a b")[1] != ngram_counts("b a")[1]


def test_nothing_in_common_and_no_images_at_all():
    alone = DocumentFrequencies.count([["a b c"], ["d e"]])
    assert (len(alone.ngrams), alone.n_images) == (1, 2)
    assert CiderD(alone).scores(["a b c", "d e", ""], ["a b c"]) == pytest.approx([7.5, 0.0, 0.0])  # no 4-gram in it
    assert DocumentFrequencies.count([]).n_images == 0


def test_a_saved_table_is_the_same_and_names_its_source(tmp_path):
    table = DocumentFrequencies.count(corpus(20, seed=4)[0])
    path = tmp_path / "df.npz"
    table.save(path, "data char 20")
    again, source = DocumentFrequencies.load(path)
    assert source == "data char 20"
    assert (again.n_images, again.ngrams.tolist(), again.counts.tolist()) == (
        20,
        table.ngrams.tolist(),
        table.counts.tolist(),
    )
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadZipFile):
        DocumentFrequencies.load(path)
