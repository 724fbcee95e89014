import math

import pytest

from cromic_ds.metrics.agreement import cohen_kappa, wilson


@pytest.mark.parametrize(
    ("passed", "total", "interval"),
    [
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (29, 29, (0.8830, 1.0)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson(passed, total, interval):
    assert wilson(passed, total) == pytest.approx(interval, abs=5e-5)


def test_wilson_narrows_with_less_confidence_and_more_judgments():
    assert wilson(50, 100, 0.9)[0] == pytest.approx(0.4188, abs=5e-5)
    widths = [high - low for low, high in (wilson(n // 2, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("passed", "total", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses(passed, total, confidence):
    with pytest.raises(ValueError):
        wilson(passed, total, confidence)


def test_kappa():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreement 0.7, 0.5 by chance
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)
    assert cohen_kappa([(b, a) for a, b in pairs]) == pytest.approx(0.4)


def test_kappa_at_its_ends():
    assert cohen_kappa([(0, 0), (1, 1), (2, 2)]) == 1
    assert cohen_kappa([(True, False), (False, True)]) == -1
    assert cohen_kappa([("a", "a"), ("a", "b")]) == 0


@pytest.mark.parametrize("pairs", [[], [("yes", "yes")] * 5])
def test_kappa_undefined(pairs):
    assert math.isnan(cohen_kappa(pairs))
