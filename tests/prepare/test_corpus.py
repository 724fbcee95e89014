import numpy as np
import pytest

from cromic_ds.prepare.corpus import hash_fraction


def test_hash_fraction_is_uniform_and_fixed():
    fractions = np.array([hash_fraction(f"id{n}") for n in range(20_000)])
    assert fractions.min() >= 0 and fractions.max() < 1
    assert (fractions < 0.01).mean() == pytest.approx(0.01, abs=0.003)
    assert hash_fraction("3cc63526742cf257f2ef0800") == hash_fraction("3cc63526742cf257f2ef0800")
