"""Generating 24 tokens for each of the ten seed posts: `generate` against the published way, which computes the whole prefix
again for each token, and runs beam search one post at a time. Preset paper, CPU.

Both have the same random weights. A test compares the numbers with the published model's; here the share of equal tokens is
printed, because in bf16 the near-ties of an untrained model can be decided differently.

    python benchmarks/decode.py [--seed_data FOLDER] [--rounds 3] [--threads 2] [--precision auto]
"""

from __future__ import annotations

import argparse

import torch
from common import SEED_DATA, exit_with, ratio, report, seed_batch, side_by_side
from published import Published, padded_inputs

from cromic_ds.models.cmt.weights import load_cmt_state_dict
from cromic_ds.models.common.kernels import install, select
from cromic_ds.models.common.precision import choose_precision
from cromic_ds.models.registry import build_config, build_model

TOKENS, BEAMS = 24, 5
TARGETS = {"greedy": 6.0, "beam": 15.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed_data", default=str(SEED_DATA), help="data folder in the published layout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto", help="ours: bf16, fp32, or auto as in every command")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batch = seed_batch(args.seed_data)
    posts, images, *_ = padded_inputs(batch)
    precision = choose_precision(args.precision, "cpu")

    torch.manual_seed(0)
    published = Published().eval()
    model = build_model(build_config("cmt", "paper")).eval()
    load_cmt_state_dict(model, published.state_dict())
    install(model, select(torch.device("cpu")))

    def ours(beams: int) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return model.generate(
                input_ids=batch.post_ids,
                pixel_values=batch.images,
                num_beams=beams,
                do_sample=False,
                min_new_tokens=TOKENS,
                max_new_tokens=TOKENS,
            )

    pairs = {
        "greedy": (lambda: published.greedy(posts, images, TOKENS), lambda: ours(1)),
        "beam": (lambda: published.beam(posts, images, TOKENS, BEAMS), lambda: ours(BEAMS)),
    }
    print(f"{batch.n_posts} posts, {TOKENS} tokens, {args.threads} threads, ours in {precision}; seconds for all posts")
    lines = []
    for kind, (baseline, candidate) in pairs.items():
        seconds, tokens = side_by_side({f"{kind}, published": baseline, f"{kind}, ours": candidate}, args.rounds)
        report(seconds)
        theirs, mine = tokens.values()
        same = (theirs == mine).float().mean().item()
        print(f"{kind:>24}: {same:.0%} of the tokens are the same")
        lines.append((kind, ratio(seconds, *seconds)))
    print("decode: " + ", ".join(f"{kind} {value:.1f}x (target {TARGETS[kind]:.0f}x)" for kind, value in lines))
    return 0 if all(value >= TARGETS[kind] for kind, value in lines) else 1


if __name__ == "__main__":
    exit_with(main)
