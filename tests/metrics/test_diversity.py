import math

import pytest

from cromic_ds.metrics.diversity import distinct_n, entropy_n

CORPUS = ["a b a", "a b", "", "c"]


def test_distinct_over_the_corpus():
    assert distinct_n(CORPUS, 1) == 3 / 6
    assert distinct_n(CORPUS, 2) == 2 / 3  # (a b) twice, (b a) once; none across two texts
    assert distinct_n(iter(CORPUS), 3) == 1


def test_entropy_in_nats():
    assert entropy_n(["a b c d"] * 3, 4) == 0
    assert entropy_n(["a b c d e", "f g h i"], 4) == pytest.approx(math.log(3))
    assert entropy_n(CORPUS, 2) == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))


@pytest.mark.parametrize("corpus", [[], [""], ["a b"]])
def test_no_ngrams(corpus):
    assert distinct_n(corpus, 4) == 0
    assert entropy_n(corpus, 4) == 0
