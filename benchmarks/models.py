"""One training step of each model, preset paper, on the ten seed posts with all their comments: ours against the plain way;
and decoding with Unified VLP with cached keys and values against computing the whole sequence again for each token.

In the plain way every comment is a full sequence with its image and its post, padded to 40 and 25 tokens: transformers' BERT
(on grid features that are computed once per post, as the published code reads them from disk), transformers' ViLT with torch's
decoder, and the published CroMIC-CMT code (which encodes a post once). Both sides compute the same loss for the same random
draws in the same precision with the same optimizer. Peak memory is that of a process that only takes two steps.

    python benchmarks/models.py [--models cmt vlp vilt] [--seed_data FOLDER] [--rounds 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import torch
from common import SEED_DATA, exit_with, peak_mb, ratio, report, seed_batch, side_by_side
from plain_vilt import PlainViLT
from plain_vlp import PlainVLP, same_weights, sequences
from published import Published, padded_inputs

from cromic_ds.batch import Batch
from cromic_ds.models.common.kernels import install, select
from cromic_ds.models.common.precision import choose_precision
from cromic_ds.models.registry import build_config, build_model
from cromic_ds.models.vlp.packing import draw_masks
from cromic_ds.training.optimizer import OptimizerSettings, build_optimizer

TARGETS = {"cmt": 1.0, "vlp": 2.5, "vilt": 2.5}
DECODING, TOKENS, SEED = 5.0, 24, 0

Step = Callable[[], object]


def training(model: torch.nn.Module, loss_of: Callable[[], torch.Tensor], targets: int) -> Step:
    """Return a step of the shortest PyTorch loop around a summed loss."""
    optimizer, _ = build_optimizer(model.train(), OptimizerSettings())
    bf16 = choose_precision("auto", "cpu") == "bf16"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of() / targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(build_config(name, "paper"))
    install(model, select(torch.device("cpu")))
    return model


def ours(name: str, batch: Batch) -> Step:
    model = our_model(name)
    batch = model.draw(batch, SEED)
    return training(model, lambda: model(batch), batch.n_targets)


def plain(name: str, batch: Batch) -> Step:
    config = build_config(name, "paper")
    torch.manual_seed(0)
    if name == "cmt":
        published, inputs = Published(), padded_inputs(batch)
        return training(published, lambda: published(*inputs), 1)  # its loss is the mean
    prepared = build_model(config).draw(batch, SEED)
    if name == "vlp":
        model = PlainVLP(config)
        given = sequences(batch, draw_masks(batch, SEED, config), config, len(model.vis_positions))
        loss_of = lambda: model.loss(given, batch.images, batch.owner)  # noqa: E731
    else:
        model = PlainViLT(config)
        loss_of = lambda: model.loss(prepared)  # noqa: E731
    return training(model, loss_of, prepared.n_targets)


SIDES = {"plain": plain, "ours": ours}


def peak_of(name: str, side: str, args: argparse.Namespace) -> float:
    """Return the peak memory in MB of a separate process."""
    command = [sys.executable, __file__, "--peak", name, side, "--seed_data", args.seed_data]
    done = subprocess.run([*command, "--threads", str(args.threads)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["mb"]


def decoding(batch: Batch, rounds: int) -> float:
    """Return how many times faster ours generates `TOKENS` tokens for each post with Unified VLP."""
    model = our_model("vlp").eval()
    theirs = PlainVLP(model.config).eval()
    same_weights(theirs, model)
    bf16 = choose_precision("auto", "cpu") == "bf16"

    def timed(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def generate() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return run()

        return generate

    inputs = {"input_ids": batch.post_ids, "pixel_values": batch.images, "do_sample": False}
    lengths = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
    sides = {
        "recomputing": timed(lambda: theirs.greedy(batch, model.config, TOKENS)),
        "cached": timed(lambda: model.generate(**inputs, **lengths)),
    }
    seconds, _ = side_by_side(sides, rounds)
    report(seconds)
    return ratio(seconds, "recomputing", "cached")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seed_data", default=str(SEED_DATA), help="data folder in the published layout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batch = seed_batch(args.seed_data)
    if args.peak:
        name, side = args.peak
        step = SIDES[side](name, batch)
        for _ in range(2):
            step()
        print(json.dumps({"mb": peak_mb()}))
        return 0

    print(
        f"{batch.n_posts} posts, {batch.comment_ids.shape[0]} comments, {batch.n_targets} target tokens, {args.threads} "
        f"threads, {choose_precision('auto', 'cpu')}; seconds a step"
    )
    # Before this process holds anything large, because a child's peak includes what its parent held at the fork.
    memory_of = {name: {side: peak_of(name, side, args) for side in SIDES} for name in args.models}
    lines, passed = [], True
    for name, memory in memory_of.items():
        print(f"{name}:")
        seconds, _ = side_by_side({side: make(name, batch) for side, make in SIDES.items()}, args.rounds)
        medians, faster = report(seconds), ratio(seconds, "plain", "ours")
        passed &= faster >= TARGETS[name]
        lines.append(
            f"{name} {faster:.2f}x posts/s (target {TARGETS[name]:.1f}x; {batch.n_posts / medians['ours']:.2f} against "
            f"{batch.n_posts / medians['plain']:.2f}), {memory['ours']:.0f} against {memory['plain']:.0f} MB"
        )
    if "vlp" in args.models:
        print(f"vlp, {TOKENS} tokens for each post:")
        faster = decoding(batch, args.rounds)
        passed &= faster >= DECODING
        lines.append(f"vlp decoding {faster:.1f}x (target {DECODING:.0f}x)")
    print("models: " + "; ".join(lines) + ": " + ("pass" if passed else "FAIL"))
    return 0 if passed else 1


if __name__ == "__main__":
    exit_with(main)
