import math

import numpy as np
import pytest

from cromic_ds.metrics.bootstrap import interval, intervals, p_value, resample, scores_of
from cromic_ds.metrics.items import Items, group


def example(n: int = 60, images: int = 20, seed: int = 0) -> Items:
    draw = np.random.default_rng(seed)
    length = draw.integers(3, 12, n)
    matched = [np.maximum(length - k - draw.integers(0, 4, n), 0) for k in range(4)]
    bleu = np.stack([length, draw.integers(3, 12, n), *matched], axis=1).astype(float)
    grounded = np.where(draw.random(n) < 0.3, np.nan, draw.integers(0, 2, n))
    kinds = ["what" if k % 3 else None for k in range(n)]
    return Items(
        [str(k) for k in range(n)],
        [f"image {k % images}" for k in range(n)],
        {"cider": draw.random(n), "grounded": grounded},
        [group("grounded", kinds)],
        bleu,
    )


def repeated(items: Items, rows: np.ndarray) -> Items:
    """Return the corpus of the items at `rows`, each as often as it occurs there."""
    return Items(
        [items.ids[k] for k in rows],
        [items.images[k] for k in rows],
        {name: values[rows] for name, values in items.means.items()},
        [type(g)(g.of, g.names, g.codes[rows]) for g in items.groups],
        items.bleu[rows],
    )


def test_a_resample_is_the_corpus_of_the_drawn_images():
    items = example()
    names, image = np.unique(items.images, return_inverse=True)
    drawn = resample(items, 70, seed=5)  # more than one block
    draw = np.random.default_rng(5)
    for k in range(70):
        chosen = draw.integers(len(names), size=len(names))
        corpus = repeated(items, np.concatenate([np.flatnonzero(image == i) for i in chosen]))
        assert {name: values[k] for name, values in drawn.items()} == pytest.approx(scores_of(corpus))


def test_means_and_parts():
    items = Items(
        ["a", "b", "c"],
        ["x", "x", "y"],
        {"accuracy": np.array([1, 0.6, np.nan])},
        [group("accuracy", ["other", None, "number"])],
    )
    assert scores_of(items) == {"accuracy": 0.8, "accuracy_other": 1}  # no question of type number contributes
    drawn = resample(items, 400, seed=0)
    assert np.isnan(drawn["accuracy_number"]).all()
    # One draw of two images in four does not contain x, so there is nothing to average.
    assert np.isnan(drawn["accuracy"]).mean() == pytest.approx(0.25, abs=0.06)
    assert intervals(items, 400, seed=0) == {"accuracy": [0.8, 0.8], "accuracy_other": [1, 1]}


def test_bleu_is_unknown_where_no_item_has_a_reference():
    items = Items(["a", "b"], ["x", "y"], bleu=np.array([[4.0, 4, 4, 3, 2, 1], [np.nan] * 6]))
    drawn = resample(items, 400, seed=0)["bleu_4"]
    assert np.isnan(drawn).mean() == pytest.approx(0.25, abs=0.06)
    assert intervals(items, 400, seed=0)["bleu_4"] == pytest.approx([1, 1])
    assert scores_of(Items(["b"], ["y"], bleu=items.bleu[1:])) == {}


def test_draws_follow_from_the_images_and_the_seed():
    first, second = example(seed=1), example(seed=2)
    second.bleu, second.groups = None, []
    second.means = {"cider": first.means["cider"]}
    np.testing.assert_allclose(resample(first, 50, 3)["cider"], resample(second, 50, 3)["cider"], rtol=1e-12)
    assert (resample(first, 50, 3)["cider"] != resample(first, 50, 4)["cider"]).all()


def test_interval_of_a_mean_is_that_of_theory():
    draw = np.random.default_rng(0)
    values = draw.normal(size=900)
    ids = [str(k) for k in range(900)]
    low, high = intervals(Items(ids, ids, {"m": values}), 4000, seed=0)["m"]
    spread = 1.96 * values.std() / 30
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.005)


def test_records_of_an_image_are_resampled_together():
    draw = np.random.default_rng(0)
    values = np.repeat(draw.normal(size=100), 9)
    ids = [str(k) for k in range(900)]
    by_image = intervals(Items(ids, [str(k // 9) for k in range(900)], {"m": values}), 1000, seed=0)["m"]
    by_record = intervals(Items(ids, ids, {"m": values}), 1000, seed=0)["m"]
    # Nine copies of a number are one observation, so the correct interval is three times as wide.
    assert (by_image[1] - by_image[0]) / (by_record[1] - by_record[0]) == pytest.approx(3, rel=0.1)


def test_percentiles():
    assert interval(np.arange(101.0)) == pytest.approx([2.5, 97.5])
    assert interval(np.array([np.nan, 2.0])) == [2, 2]
    assert interval(np.array([np.nan])) is None
    assert intervals(example(), 0, seed=0) == {}


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        (np.ones(999), 2 / 1000),
        (-np.ones(999), 2 / 1000),
        (np.array([-1.0] * 99 + [1.0] * 900), 0.2),
        (np.zeros(999), 1),
        (np.array([1.0, -1.0]), 1),
    ],
)
def test_p_value(differences, p):
    assert p_value(differences) == pytest.approx(p)


def test_p_value_of_nothing():
    assert math.isnan(p_value(np.array([np.nan])))


def test_p_values_of_equal_systems_are_spread_evenly():
    draw = np.random.default_rng(1)
    ids = [str(k) for k in range(200)]
    values = []
    for seed in range(200):
        a, b = (resample(Items(ids, ids, {"m": draw.normal(size=200)}), 200, seed)["m"] for _ in "ab")
        values.append(p_value(a - b))
    assert np.mean(np.array(values) < 0.5) == pytest.approx(0.5, abs=0.1)
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.06)
