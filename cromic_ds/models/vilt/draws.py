"""Random choices of ViLT's pretraining losses, made on the host before a step: masked words, and posts under a wrong image.

The draws of a post follow from the seed and its place in the data set, so they are the same in any micro-batch. The wrong image
is that of its neighbor: a micro-batch is a piece of the step's posts, whose order is new in each epoch, and pieces of even size
never separate neighbors.
"""

import numpy as np
import torch
from torch import Tensor

from cromic_ds.batch import Batch
from cromic_ds.models.common.kernels import IGNORE

MASKED, REPLACED = 0.8, 0.1  # of the chosen tokens; the rest stay as they are (Devlin et al. 2019)


def generators(batch: Batch, seed: int) -> list[np.random.Generator]:
    """Return a generator for each post; numpy's can be seeded by several numbers. The index of an empty post is -1."""
    return [np.random.default_rng((seed, index + 1)) for index in batch.indices]


def masked_words(
    batch: Batch,
    draws: list[np.random.Generator],
    *,
    rate: float,
    mask_id: int,
    special_ids: tuple[int, ...],
    continues: np.ndarray,
) -> dict[str, Tensor]:
    """Mask whole words of the posts, each with probability `rate`, which is then also the expected share of tokens.

    Tokens in `special_ids` are never masked; `continues`: (V,) bool, True for a token that continues the word before it.

    Returns:
        masked_ids: (P, L), left out where no token is masked; masked_rows: (K,) into the flattened (P, L); masked_targets:
        (K,) the original tokens. Without a masked token K is 1 and the target is IGNORE, so that every rank computes the loss.
    """
    ids, length = batch.post_ids.numpy(), batch.post_ids.shape[1]
    masked, rows = ids.copy(), []
    for post, (draw, n) in enumerate(zip(draws, batch.post_lengths.tolist())):
        word = np.cumsum(~continues[ids[post, :n]]) - 1
        chosen = draw.random(n)[word] < rate
        places = np.flatnonzero(chosen & ~np.isin(ids[post, :n], special_ids))
        how, other = draw.random(len(places)), draw.integers(len(continues), size=len(places))
        new = np.where(how < MASKED + REPLACED, other, ids[post, places])
        if batch.weights[post] > 0:
            masked[post, places] = np.where(how < MASKED, mask_id, new)
            rows.append(post * length + places)
    drawn = {"masked_rows": np.zeros(1), "masked_targets": np.full(1, IGNORE)}
    if any(map(len, rows)):
        rows = np.concatenate(rows)
        drawn = {"masked_ids": masked, "masked_rows": rows, "masked_targets": ids.reshape(-1)[rows]}
    return {name: torch.from_numpy(values.astype(np.int64)) for name, values in drawn.items()}


def swapped_images(batch: Batch, draws: list[np.random.Generator], *, rate: float) -> dict[str, Tensor]:
    """Choose posts that are shown under their neighbor's image, each with probability `rate`. Posts 0 and 1 are neighbors, as
    are 2 and 3, and so on.

    Returns:
        swapped: (Q,) the posts; partners: (Q,) the posts whose image each gets; match_rows: (P,) into the P original posts
        followed by the Q swapped ones, one of the two for each post; match_targets: (P,) 1 where post and image belong
        together, 0 where not, IGNORE for a post without text or of weight 0. A post without a neighbor keeps its image.
    """
    counts = batch.weights > 0
    has_text = counts & (batch.post_lengths > 2)  # more than [CLS] [SEP]
    swapped: list[int] = []
    rows, targets = np.arange(batch.n_posts), np.where(has_text.numpy(), 1, IGNORE)
    for post, draw in enumerate(draws):
        neighbor = post ^ 1
        if draw.random() < rate and has_text[post] and neighbor < batch.n_posts and counts[neighbor]:
            rows[post], targets[post] = batch.n_posts + len(swapped), 0
            swapped.append(post)
    partners = [post ^ 1 for post in swapped]
    drawn = {"swapped": swapped, "partners": partners, "match_rows": rows, "match_targets": targets}
    return {name: torch.as_tensor(values, dtype=torch.int64) for name, values in drawn.items()}
