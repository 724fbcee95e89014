"""The order of examples: a pseudo-random permutation with random access, in O(1) memory for any size of the corpus.

Position p of an epoch maps to example `permute(p, n, key)`, a format-preserving cipher: a Feistel network permutes the
next power of two, and values outside [0, n) are sent through it again until they are inside (cycle walking: Black &
Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Nothing is shuffled, stored or scanned, so a run over 10⁹
examples starts at once and resumes anywhere.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ROUNDS = 6
MIN_BITS = 4  # on fewer bits the halves of the network are too small to mix
MAX_SIZE = 1 << 62

_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)  # MurmurHash3's 64-bit finalizer: every input bit reaches every output bit
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


def _digest(*parts: int, size: int) -> bytes:
    return hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=size).digest()


@lru_cache(maxsize=64)
def order_key(seed: int, epoch: int) -> tuple[int, ...]:
    """Return the round keys (`ROUNDS` unsigned 64-bit numbers) of the permutation of one epoch."""
    return tuple(np.frombuffer(_digest(seed, epoch, size=8 * ROUNDS), dtype="<u8").tolist())


def example_seed(seed: int, epoch: int, index: int) -> int:
    """Return a 64-bit seed for everything random about one example in one epoch, such as which comments are kept."""
    return int.from_bytes(_digest(seed, epoch, index, size=8), "little")


def _feistel(values: np.ndarray, bits: int, key: tuple[int, ...]) -> np.ndarray:
    """Apply a bijection of [0, 2**bits): each round xors one half with a hash of the other, so every round can be undone."""
    low_bits = np.uint64(bits // 2)
    masks = (np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1))
    halves = [values & masks[0], values >> low_bits]
    for i, round_key in enumerate(key):
        changed, source = i % 2, 1 - i % 2
        mixed = halves[source] ^ np.uint64(round_key)
        mixed = (mixed ^ (mixed >> _SHIFT)) * _MIX_1
        mixed = (mixed ^ (mixed >> _SHIFT)) * _MIX_2
        halves[changed] = halves[changed] ^ ((mixed ^ (mixed >> _SHIFT)) & masks[changed])
    return (halves[1] << low_bits) | halves[0]


def permute(position: int | np.ndarray, n: int, key: tuple[int, ...]) -> int | np.ndarray:
    """Map positions in [0, n) by the permutation of [0, n) that `key` chooses.

    Returns an int for an int, and an int64 array of the same shape for an array. Raises ValueError outside [0, n).
    """
    if not 1 <= n <= MAX_SIZE:
        raise ValueError(f"cannot permute {n} examples: the size must be between 1 and 2**62")
    positions = np.asarray(position, dtype=np.int64)
    if positions.size and (positions.min() < 0 or positions.max() >= n):
        raise ValueError(f"position outside [0, {n})")
    bits = max(MIN_BITS, (n - 1).bit_length())
    values = _feistel(positions.reshape(-1).astype(np.uint64), bits, key)
    outside = np.flatnonzero(values >= np.uint64(n))
    while outside.size:  # the domain is less than twice as large (n > 8): each pass moves more than half of them inside
        values[outside] = _feistel(values[outside], bits, key)
        outside = outside[values[outside] >= np.uint64(n)]
    return int(values[0]) if positions.ndim == 0 else values.astype(np.int64).reshape(positions.shape)


@dataclass(frozen=True)
class Order:
    """The order in which a run reads `n` examples: each epoch has a permutation that depends on (seed, epoch) alone.

    Positions count over all epochs and ranks: step t of a run with global batch G trains on [t·G, (t+1)·G).
    """

    n: int
    seed: int

    def indices(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (epochs, example indices) of `count` consecutive positions from `first`, as int64 arrays."""
        epochs, within = np.divmod(np.arange(first, first + count, dtype=np.int64), self.n)
        indices = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permute(within[here], self.n, order_key(self.seed, int(epoch)))
        return epochs, indices
