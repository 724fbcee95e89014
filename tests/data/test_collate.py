import numpy as np
import pytest
import torch

from cromic_ds.data.collate import LoadedExample, SpecialTokens, blank_batch, collate
from cromic_ds.data.dataset import UnreadableRecord

SPECIAL = SpecialTokens(pad=0, cls=101, sep=102)


def example(index, post, comments, side=0):
    image = np.full((side, side, 3), index, dtype=np.uint8) if side else None
    return LoadedExample(
        f"id{index}", index, np.array(post, np.int32), [np.array(c, np.int32) for c in comments], image
    )


def random_examples(n, seed=0):
    rng = np.random.default_rng(seed)

    def text(longest):
        return [101, *rng.integers(200, 300, rng.integers(0, longest)), 102]

    return [example(i, text(30), [text(12) for _ in range(rng.integers(1, 6))]) for i in range(n)]


def test_two_posts_by_hand():
    batch = collate(
        [example(7, [101, 5, 102], [[101, 6, 7, 102], [101, 102]]), example(9, [101, 102], [[101, 8, 102]])],
        special=SPECIAL,
        image_size=0,
    )
    assert batch.post_ids.tolist() == [[101, 5, 102], [101, 102, 0]]
    assert batch.post_lengths.tolist() == [3, 2]
    assert batch.comment_ids.tolist() == [[101, 6, 7, 102], [101, 102, 0, 0], [101, 8, 102, 0]]
    assert batch.owner.tolist() == [0, 0, 1]
    assert batch.rows.tolist() == [0, 1, 2, 3, 6, 7]  # (3, 3) inputs: 3, 1 and 2 of them have a target
    assert batch.tokens_per_post == 4
    assert batch.post_rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert (batch.n_targets, batch.weights.tolist()) == (6, [1.0, 1.0])
    assert (batch.ids, batch.indices, batch.skipped, batch.images) == (["id7", "id9"], [7, 9], [], None)
    assert {t.dtype for t in (batch.post_ids, batch.post_lengths, batch.comment_ids, batch.owner)} == {torch.int64}
    assert batch.rows.dtype == batch.post_rows.dtype == torch.int64
    assert batch.weights.dtype == torch.float32


@pytest.mark.parametrize("seed", range(5))
def test_rows_gather_the_tokens_of_each_post(seed):
    """Compare with plain loops: `rows` selects all targets in order, `post_rows` moves them to one run per post."""
    examples = random_examples(9, seed)
    batch = collate(examples, special=SPECIAL, image_size=0)
    targets = [c[1:].tolist() for e in examples for c in e.comments]
    assert batch.comment_ids.shape[1] == max(map(len, targets)) + 1
    assert batch.post_ids.shape[1] == max(len(e.post) for e in examples)
    assert batch.comment_ids[:, 1:].reshape(-1)[batch.rows].tolist() == [t for comment in targets for t in comment]
    by_post = torch.full((len(examples) * batch.tokens_per_post,), -1)
    by_post[batch.post_rows] = batch.comment_ids[:, 1:].reshape(-1)[batch.rows]
    expected = [[t for c in e.comments for t in c[1:].tolist()] for e in examples]
    longest = max(map(len, expected))
    assert batch.tokens_per_post == longest
    assert by_post.reshape(len(examples), -1).tolist() == [row + [-1] * (longest - len(row)) for row in expected]
    assert batch.n_targets == len(batch.rows) == sum(map(len, expected))


def test_skipped_examples_are_left_out_and_named():
    first, second = random_examples(2)
    batch = collate([first, UnreadableRecord("bad", "checksum"), second], special=SPECIAL, image_size=0)
    assert batch.ids == ["id0", "id1"]
    assert batch.skipped == [("bad", "checksum")]
    whole = collate([first, second], special=SPECIAL, image_size=0)
    assert torch.equal(batch.comment_ids, whole.comment_ids) and batch.n_targets == whole.n_targets


@pytest.mark.parametrize("examples", [[], [UnreadableRecord("bad", "checksum")]])
def test_a_batch_without_examples_is_blank_but_computable(examples):
    batch = collate(examples, special=SPECIAL, image_size=8)
    assert batch.post_ids.tolist() == batch.comment_ids.tolist() == [[101, 102]]
    assert (batch.owner.tolist(), batch.rows.tolist(), batch.post_rows.tolist()) == ([0], [0], [0])
    assert (batch.weights.tolist(), batch.n_targets, batch.indices) == ([0.0], 0, [-1])
    assert batch.images.shape == (1, 3, 8, 8) and batch.images.dtype == torch.uint8
    assert batch.skipped == [(e.id, e.reason) for e in examples]
    assert blank_batch(SPECIAL, 0).images is None


def test_images_are_channels_last_in_memory():
    rng = np.random.default_rng(0)
    examples = random_examples(2)
    for e in examples:
        e.image = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    images = collate(examples, special=SPECIAL, image_size=4).images
    assert images.shape == (2, 3, 4, 5) and images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[1, 2].tolist() == examples[1].image[:, :, 2].tolist()


def test_posts_and_comments_may_be_missing():
    """Image-only tasks have no posts, and test splits have no comments."""
    batch = collate([example(0, [], [[101, 5, 102]]), example(1, [], [])], special=SPECIAL, image_size=0)
    assert batch.post_ids.shape == (2, 0) and batch.post_lengths.tolist() == [0, 0]
    assert batch.rows.tolist() == [0, 1] and batch.n_targets == 2
    batch = collate([example(0, [101, 102], [])], special=SPECIAL, image_size=0)
    assert batch.comment_ids.shape[0] == batch.rows.shape[0] == batch.tokens_per_post == batch.n_targets == 0
