"""One training step on five captions per image, preset paper on a CPU: ours against the published way.

The published way repeats the image for each of its captions, encodes every copy, and pads captions to 72 tokens. Ours encodes
each image once for all of its captions and computes real tokens only. Both train all weights with Adam and clipping. The images
are those of the ten seed posts, the captions their first five comments; the texts of the posts are left out.

    python benchmarks/finetune_step.py [--seed_data FOLDER] [--rounds 3] [--threads 2]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
import torch.nn.functional as F
from common import SEED_DATA, exit_with, ratio, report, seed_batch, side_by_side
from published import CAPTION_TOKENS, Published
from published import train_step as published_step
from train_step import Step, bare

from cromic_ds.batch import Batch
from cromic_ds.models.common.image_encoder import normalize_imagenet
from cromic_ds.models.common.precision import choose_precision

TARGET, CAPTIONS = 3.0, 5


def published(batch: Batch) -> Step:
    """Return the published step, in which every caption is an example: 50 images, 50 captions of 72 tokens."""
    torch.manual_seed(0)
    model = Published().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = normalize_imagenet(batch.images).contiguous()[batch.owner]
    captions = F.pad(batch.comment_ids, (0, CAPTION_TOKENS - batch.comment_ids.shape[1]))
    inputs = (None, images, captions, torch.arange(len(captions)))
    return lambda: published_step(model, optimizer, inputs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed_data", default=str(SEED_DATA), help="data folder in the published layout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    batch = seed_batch(args.seed_data, most_comments=CAPTIONS)
    nothing = torch.zeros(batch.n_posts, 0, dtype=torch.long)
    batch = replace(batch, post_ids=nothing, post_lengths=torch.zeros(batch.n_posts, dtype=torch.long))
    captions = batch.comment_ids.shape[0]
    print(
        f"{batch.n_posts} images, {captions} captions, {batch.n_targets} target tokens, {args.threads} threads; ours in "
        f"{choose_precision('auto', 'cpu')}; seconds a step"
    )
    seconds, _ = side_by_side({"published": published(batch), "ours": bare(batch)}, args.rounds)
    medians = report(seconds)
    faster = ratio(seconds, "published", "ours")
    print(
        f"finetune_step: {faster:.2f}x captions/s (target {TARGET:.1f}x; {captions / medians['ours']:.1f} against "
        f"{captions / medians['published']:.1f}): " + ("pass" if faster >= TARGET else "FAIL")
    )
    return 0 if faster >= TARGET else 1


if __name__ == "__main__":
    exit_with(main)
