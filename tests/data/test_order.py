import time

import numpy as np
import pytest

from cromic_ds.data.order import MAX_SIZE, Order, example_seed, order_key, permute


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 15, 16, 17, 1000, 4095, 4096, 4097, 65537, 300_001])
def test_every_index_comes_exactly_once(n):
    indices = permute(np.arange(n), n, order_key(3, 1))
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(np.sort(indices), np.arange(n))


def test_one_position_is_the_same_as_the_array():
    key = order_key(5, 2)
    whole = permute(np.arange(1000), 1000, key)
    assert [permute(i, 1000, key) for i in range(1000)] == whole.tolist()
    assert isinstance(permute(17, 1000, key), int)
    assert permute(np.arange(6).reshape(2, 3), 1000, key).tolist() == whole[:6].reshape(2, 3).tolist()


def test_the_order_never_changes():
    """Another order would break the exact resume of all unfinished runs."""
    assert permute(np.arange(10), 10, order_key(0, 0)).tolist() == [9, 4, 1, 8, 7, 2, 0, 5, 3, 6]
    assert permute(123_456_789, 10**9 + 7, order_key(42, 3)) == 666_748_250
    assert example_seed(1, 2, 3) == 0x745B98A2A058642A


def test_random_access_at_a_large_prime_size():
    n = 10**9 + 7
    positions = np.array([0, 1, n // 2, n - 2, n - 1])
    started = time.perf_counter()
    indices = permute(positions, n, order_key(0, 0))
    assert time.perf_counter() - started < 0.1
    assert len(set(indices.tolist())) == 5
    assert (indices >= 0).all() and (indices < n).all()
    many = permute(np.arange(n - 100_000, n), n, order_key(0, 0))
    assert len(np.unique(many)) == 100_000
    # uniform over [0, n): mean within five standard errors
    assert abs(many.mean() / n - 0.5) < 5 * np.sqrt(1 / 12 / 100_000)


def test_epochs_and_seeds_shuffle_differently():
    n = 10_000
    orders = {(s, e): permute(np.arange(n), n, order_key(s, e)) for s in (0, 1) for e in (0, 1, 2)}
    identity = np.arange(n)
    for name, order in orders.items():
        assert (order == identity).sum() < 12, name  # a random permutation has one fixed point on average
        assert abs(np.corrcoef(identity, order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        for other, another in orders.items():
            assert name == other or (order == another).sum() < 12


def test_small_orders_reach_every_first_example():
    first = [permute(0, 10, order_key(seed, 0)) for seed in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert counts.min() > 140 and counts.max() < 265  # 200 ± 5 standard deviations


def test_positions_outside_are_refused():
    key = order_key(0, 0)
    for position in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            permute(position, 10, key)
    for n in (0, MAX_SIZE + 1):
        with pytest.raises(ValueError, match="between 1 and"):
            permute(0, n, key)


def test_order_counts_positions_over_epochs():
    order = Order(10, seed=4)
    epochs, indices = order.indices(8, 15)
    assert epochs.tolist() == [0] * 2 + [1] * 10 + [2] * 3
    assert sorted(indices[2:12].tolist()) == list(range(10))
    alone = [(p // 10, permute(p % 10, 10, order_key(4, p // 10))) for p in range(8, 23)]
    assert alone == list(zip(epochs.tolist(), indices.tolist()))


def test_example_seeds_differ():
    seeds = {example_seed(s, e, i) for s in range(3) for e in range(3) for i in range(100)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**64 for seed in seeds)
