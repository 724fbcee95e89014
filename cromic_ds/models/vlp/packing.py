"""Unified VLP's draws and index arithmetic: from a `Batch` to the stream of tokens that the layers run on.

Legend: P posts, N comments, T comment targets (padded), M target tokens, K image tokens, R rows, S tokens of the longest
row, X tokens of the stream; `layers.py` says what rows and targets are.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cromic_ds.batch import Batch
from cromic_ds.errors import UserError
from cromic_ds.models.vlp.config import VLPConfig
from cromic_ds.models.vlp.layers import TokenStream

IMAGE, POST, COMMENT = 0, 1, 2  # the parts of a sequence, as columns of `segments`


class Draw(NamedTuple):  # the random choices of a masked step
    bidirectional: Tensor  # (N,) bool: the comments that are read in both directions
    masked: Tensor  # (M,) bool: the target tokens to predict
    inputs: Tensor  # (M,) the target tokens as they are read


def draw_masks(batch: Batch, seed: int, config: VLPConfig) -> Draw:
    """Draw directions, masked tokens and their replacements on the host.

    Each post has its own generator, seeded by (`seed`, its index in the data set), so what is drawn for a post does not depend
    on the others of its micro-batch.
    """
    targets, owner = targets_of(batch), batch.owner.numpy()
    ids, comment = targets.ids.numpy(), targets.comment.numpy()
    counts = np.bincount(comment, minlength=len(owner))
    comments_of = np.bincount(owner, minlength=batch.n_posts)
    tokens_of = np.bincount(owner[comment], minlength=batch.n_posts)
    direction, key, fate, word = [], [], [], []
    for index, n_comments, n_tokens in zip(batch.indices or range(batch.n_posts), comments_of, tokens_of):
        rng = np.random.default_rng([seed, index + 1])  # the index of an empty post is -1
        direction.append(rng.random(n_comments))
        key.append(rng.random(n_tokens))
        fate.append(rng.random(n_tokens))
        word.append(rng.integers(config.vocab_size, size=n_tokens))
    direction, key, fate, word = (np.concatenate(part) for part in (direction, key, fate, word))

    rank = np.empty_like(comment)
    rank[np.lexsort((key, comment))] = np.arange(len(comment)) - (np.cumsum(counts) - counts)[comment]
    masked = rank < np.maximum(1, np.rint(config.mask_rate * counts))[comment]
    replacement = np.where(fate < config.mask_token_rate, config.mask_token_id, word)
    changed = masked & (fate < config.mask_token_rate + config.random_token_rate)
    drawn = (direction < config.bidirectional_rate, masked, np.where(changed, replacement, ids))
    return Draw(*map(torch.from_numpy, drawn))


def pack_rows(
    config: VLPConfig,
    post_ids: Tensor,
    post_lengths: Tensor,
    n_image: int,
    length: int = 0,
    comments: tuple[Tensor, Tensor, Tensor] | None = None,
    source_mode: str = "seq2seq",
) -> tuple[dict[str, Tensor], Tensor]:
    """Return rows [CLS] image [SEP] post [SEP], with the comment behind it where it is bidirectional, without padding: first
    the sources of the posts, then the comments in bidirectional mode, as tensors of a `TokenStream`, and their lengths (R,).

    Args:
        post_ids: (P, L) [CLS] … [SEP], right-padded; L = 0 for images alone.
        n_image: image tokens K; without an image the source is the post alone.
        length: upper bound T on the tokens behind a source.
        comments: posts of the bidirectional comments (B,), tokens after [CLS] (B, T), and which of these are real (B, T).
        source_mode: mode whose segment ids the sources have.
    """
    assert config.segments is not None  # the config fills them in
    n, device = post_ids.shape[0], post_ids.device
    owner, tokens, real = comments or (post_lengths[:0], post_ids[:0, :0], post_ids[:0, :0].bool())
    posts = torch.cat([torch.arange(n, device=device), owner])
    # A wide table with everything side by side; afterwards only real tokens are kept.
    head = [config.bos_token_id] + n_image * [config.pad_token_id] + bool(n_image) * [config.eos_token_id]
    texts = post_ids[posts, 1:]
    widths = (len(head), texts.shape[1], tokens.shape[1])
    check_positions(config, widths[0] + widths[1] + length)
    heads = torch.tensor(head, device=device).expand(len(posts), -1)
    ids = torch.cat([heads, texts, torch.cat([tokens.new_zeros(n, widths[2]), tokens])], dim=1)
    real_text = torch.arange(widths[1], device=device) < post_lengths[posts, None] - 1
    real_comment = torch.cat([real.new_zeros(n, widths[2]), real])
    kept = torch.cat([torch.ones_like(heads, dtype=torch.bool), real_text, real_comment], dim=1)
    part = torch.tensor([IMAGE if n_image else POST, POST, COMMENT], device=device)
    part = part.repeat_interleave(torch.tensor(widths, device=device))
    segments = torch.tensor([config.segments[source_mode], config.segments["bidirectional"]], device=device)
    types = segments[(torch.arange(len(posts), device=device) >= n).long()][:, part]
    column = torch.arange(sum(widths), device=device)
    is_image = ((column > 0) & (column <= n_image)).expand_as(kept)

    within, lengths = kept.cumsum(1) - 1, kept.sum(1)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
    stream = {"ids": ids[kept], "positions": within[kept], "types": types[kept], "row_posts": posts, "mask": mask}
    places = {"image_slots": is_image[kept], "slots": mask.flatten()}
    return stream | {name: place.nonzero().squeeze(1) for name, place in places.items()}, lengths


def comment_segment(config: VLPConfig) -> int:
    assert config.segments is not None  # the config fills them in
    return config.segments["seq2seq"][COMMENT]


def join(
    config: VLPConfig, full: dict[str, Tensor], ids: Tensor, positions: Tensor, **others: Tensor
) -> dict[str, Tensor]:
    """Return the tensors of a `TokenStream`: full rows, and behind them comment tokens (O,) at positions (O,) of the whole
    sequence; `others` have the names that they have in the stream."""
    behind = {"ids": ids, "positions": positions, "types": torch.full_like(ids, comment_segment(config))}
    return {**full, **others, **{name: torch.cat([full[name], values]) for name, values in behind.items()}}


def token_stream(batch: Batch, tensors: dict[str, Tensor]) -> TokenStream:
    """Return a `TokenStream` with these tensors and the sizes of the batch."""
    n_comments, width = batch.comment_ids.shape
    streams = tensors["own_mask"].shape[0] // max(width - 1, 1)  # two where committed tokens and queries are apart
    length = streams * batch.tokens_per_post
    return TokenStream(**tensors, n_posts=batch.n_posts, n_comments=n_comments, post_length=length, memory=None)


# ---- four kinds of stream: sources alone, masked training, left to right with [MASK], causal


def pack_sources(
    config: VLPConfig, post_ids: Tensor, post_lengths: Tensor, n_image: int, mode: str = "seq2seq"
) -> dict[str, Tensor]:
    """Return the sources alone. Wanted are all [CLS], then all [SEP] that end a source."""
    full, lengths = pack_rows(config, post_ids, post_lengths, n_image, source_mode=mode)
    none, ends = full["ids"][:0], lengths.cumsum(0) - 1
    others = dict(rows=none, posts=none, own_mask=none.bool().view(0, 0), own_queries=none, outputs=none, tokens=none)
    return join(config, full, none, none, row_queries=torch.cat([ends - lengths + 1, ends]), **others)


def check_positions(config: VLPConfig, length: int) -> None:
    """Raise UserError where a sequence has more tokens than there are positions."""
    if length > config.max_positions:
        raise UserError(
            f"a sequence of up to {length} tokens (image, post and comment) is longer than model.max_positions "
            f"{config.max_positions}: raise that, or shorten posts, comments or model.image_size"
        )


class Targets(NamedTuple):  # the M target tokens of a batch and their places
    ids: Tensor  # (M,)
    comment: Tensor  # (M,)
    owner: Tensor  # (M,)
    time: Tensor  # (M,) 0 for the first token of a comment
    length: int  # T


def targets_of(batch: Batch) -> Targets:
    length = batch.comment_ids.shape[1] - 1
    comment = batch.rows // length
    ids = batch.comment_ids[:, 1:].flatten()[batch.rows]
    return Targets(ids, comment, batch.owner[comment], batch.rows % length, length)


def pack_masked(config: VLPConfig, batch: Batch, n_image: int, draw: Draw) -> dict[str, Tensor]:
    """Return each comment in its direction. Wanted are the masked tokens."""
    targets = targets_of(batch)
    n, length = batch.comment_ids.shape[0], targets.length
    two_way = draw.bidirectional.nonzero().squeeze(1)
    tokens = batch.comment_ids[:, 1:].flatten().index_copy(0, batch.rows, draw.inputs).view(n, length)
    real = torch.zeros(n * length, dtype=torch.bool).index_fill(0, batch.rows, True).view(n, length)
    comments = (batch.owner[two_way], tokens[two_way], real[two_way])
    full, lengths = pack_rows(config, *post_text(config, batch), n_image, length, comments)
    one_way = ~draw.bidirectional[targets.comment]  # (M,)
    kept = one_way.nonzero().squeeze(1)
    position = lengths[targets.owner] + targets.time  # in the whole sequence
    in_rows, in_targets = (draw.masked & ~one_way).nonzero().squeeze(1), (draw.masked & one_way).nonzero().squeeze(1)
    row_of = batch.n_posts - 1 + draw.bidirectional.cumsum(0)  # (N,), where the comment is a row
    predicted = torch.cat([in_rows, in_targets])
    return join(
        config,
        full,
        draw.inputs[kept],
        position[kept],
        rows=batch.rows[kept],
        posts=batch.post_rows[kept],
        own_mask=torch.ones(length, length, dtype=torch.bool).tril(),
        row_queries=(lengths.cumsum(0) - lengths)[row_of[targets.comment[in_rows]]] + position[in_rows],
        own_queries=(one_way.cumsum(0) - 1)[in_targets],
        outputs=torch.arange(len(predicted)),
        tokens=predicted,
    )


def pack_left_to_right(config: VLPConfig, batch: Batch, n_image: int) -> dict[str, Tensor]:
    """Return what decoding reads in all of its steps, for one pass: a committed token reads the source and the tokens up to
    itself; a [MASK] at each position reads the source, the committed tokens to its left, and itself."""
    targets = targets_of(batch)
    full, lengths = pack_rows(config, *post_text(config, batch), n_image, targets.length)
    device, length, most = full["ids"].device, targets.length, batch.tokens_per_post
    read = followed(targets)  # nothing reads the last token of a comment
    position = lengths[targets.owner] + targets.time
    # Slots of the committed tokens; those of the queries are T further.
    query_row = targets.comment * 2 * length + targets.time
    query_post = batch.post_rows + targets.owner * most
    triangle = torch.ones(length, length, dtype=torch.bool, device=device)
    read_by_committed = torch.cat([triangle.tril(), torch.zeros_like(triangle)], dim=1)
    read_by_query = torch.cat([triangle.tril(-1), torch.eye(length, dtype=torch.bool, device=device)], dim=1)
    every = torch.arange(len(targets.ids), device=device)
    return join(
        config,
        full,
        torch.cat([targets.ids[read], torch.full_like(targets.ids, config.mask_token_id)]),
        torch.cat([position[read], position]),
        rows=torch.cat([query_row[read], query_row + length]),
        posts=torch.cat([query_post[read], query_post + most]),
        own_mask=torch.cat([read_by_committed, read_by_query]),
        row_queries=full["ids"][:0],
        own_queries=len(read) + every,
        outputs=every,
        tokens=every,
    )


def pack_causal(config: VLPConfig, batch: Batch, n_image: int) -> dict[str, Tensor]:
    """Return the stream of a language model under the seq2seq mask: the [SEP] that ends the source predicts the first token."""
    targets = targets_of(batch)
    full, lengths = pack_rows(config, *post_text(config, batch), n_image, targets.length)
    device, length, read = full["ids"].device, targets.length, followed(targets)
    every, first = torch.arange(len(targets.ids), device=device), targets.time == 0
    # The token before; the last one of each comment is not in the stream.
    before = batch.n_posts + every - first.cumsum(0)
    return join(
        config,
        full,
        targets.ids[read],
        (lengths[targets.owner] + targets.time)[read],
        rows=batch.rows[read],
        posts=batch.post_rows[read],
        own_mask=torch.ones(length, length, dtype=torch.bool, device=device).tril(),
        row_queries=lengths.cumsum(0) - 1,
        own_queries=torch.arange(len(read), device=device),
        outputs=torch.where(first, targets.owner, before),
        tokens=every,
    )


def followed(targets: Targets) -> Tensor:
    """Return the indices of target tokens that are not the last of their comment."""
    return (targets.comment[:-1] == targets.comment[1:]).nonzero().squeeze(1)


def post_text(config: VLPConfig, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return tokens and lengths of the posts; without any token where the model reads no text."""
    if "t" in config.mode:
        return batch.post_ids, batch.post_lengths
    return batch.post_ids[:, :0], torch.zeros_like(batch.post_lengths)
