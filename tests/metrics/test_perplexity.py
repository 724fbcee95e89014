import math

import pytest

from cromic_ds.metrics.perplexity import perplexity


def test_perplexity():
    assert perplexity(math.log(8) * 5, 5) == pytest.approx(8)
    assert perplexity(1e6, 1) == math.inf
    assert math.isnan(perplexity(0.0, 0))
