"""One training step of preset paper on the ten seed posts with all their comments.

On a CPU: our step (`Engine.train_step` in the training loop, ZeRO stage 0, the precision that `auto` chooses) against the
published way, taking turns; the peak memory of each in its own process; and the loop's overhead over a bare PyTorch loop on the
same model. The data are read beforehand for all of them.

On a GPU: our step in bf16 on 60 posts with MFU and peak memory, with plain torch and with each fused kernel that can run
there, one at a time; written to `benchmarks/results/train_step_<device>.json`.

    python benchmarks/train_step.py [--seed_data FOLDER] [--rounds 5] [--threads 2] [--ds_config zero0]
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import SEED_DATA, exit_with, peak_mb, ratio, report, seed_batch, side_by_side
from published import Published, padded_inputs
from published import train_step as published_step

from cromic_ds.batch import Batch
from cromic_ds.models.common.kernels import TABLES, install, select
from cromic_ds.models.common.precision import choose_precision
from cromic_ds.models.registry import build_config, build_model
from cromic_ds.training.optimizer import OptimizerSettings, build_optimizer

ROOT = Path(__file__).resolve().parent.parent
TARGET, MOST_OVERHEAD, GPU_COPIES = 3.0, 0.05, 6
PLAIN = {"layer_norm": "torch", "linear_cross_entropy": "torch", "attention": "math", "optimizer": "torch"}

Step = Callable[[], object]


def published(batch: Batch) -> Step:
    torch.manual_seed(0)
    model = Published().train()
    optimizer, inputs = torch.optim.Adam(model.parameters(), lr=1e-4), padded_inputs(batch)
    return lambda: published_step(model, optimizer, inputs)


def bare(batch: Batch, kernels: dict[str, str] | None = None, device: str = "cpu") -> Step:
    """Return a step of our model, kernels (by operation, `optimizer` included) and optimizer in the shortest PyTorch loop."""
    torch.manual_seed(0)
    debug = dict(kernels or {})
    optimizer_settings = OptimizerSettings(implementation=debug.pop("optimizer", "auto"))
    model = build_model(build_config("cmt", "paper")).to(device).train()
    install(model, select(torch.device(device), debug=debug))
    optimizer, _ = build_optimizer(model, optimizer_settings)
    bf16 = choose_precision("auto", device) == "bf16"
    batch = batch.to(device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(batch) / batch.n_targets
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def ours(batch: Batch, ds_config: str) -> Step:
    from loop_step import loop_run, loop_step  # here, so that DeepSpeed is not in the memory of the published way

    run = loop_run(batch, ds_config, Path("runs"))
    return lambda: loop_step(run)


def peak_of(which: str, args: argparse.Namespace) -> float:
    """Return the peak memory in MB of a process that only takes three steps."""
    options = ["--seed_data", args.seed_data, "--threads", str(args.threads), "--ds_config", args.ds_config]
    command = [sys.executable, __file__, "--peak", which, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["mb"]


def on_cpu(args: argparse.Namespace) -> int:
    batch = seed_batch(args.seed_data)
    steps = {"published": lambda: published(batch), "ours": lambda: ours(batch, args.ds_config)}
    if args.peak:
        step = steps[args.peak]()
        for _ in range(3):
            step()
        print(json.dumps({"mb": peak_mb()}))
        return 0

    print(
        f"{batch.n_posts} posts, {batch.comment_ids.shape[0]} comments, {batch.n_targets} target tokens, {args.threads} "
        f"threads; ours in {choose_precision('auto', 'cpu')}, {args.ds_config}; seconds a step"
    )
    memory = {name: peak_of(name, args) for name in steps}
    for name, mb in memory.items():
        print(f"{name:>24}: {mb:7.0f} MB at its peak", flush=True)

    loop_step, other = steps["ours"](), published(batch)
    seconds, _ = side_by_side({"published": other, "ours": loop_step}, args.rounds)
    medians = report(seconds)
    del other
    gc.collect()
    both, _ = side_by_side({"bare PyTorch loop": bare(batch), "our loop": loop_step}, 3 * args.rounds)
    report(both)
    overhead = ratio(both, "our loop", "bare PyTorch loop") - 1
    faster = ratio(seconds, "published", "ours")
    passed = faster >= TARGET and memory["ours"] <= memory["published"] and overhead <= MOST_OVERHEAD
    print(
        f"train_step: {faster:.2f}x posts/s (target {TARGET:.1f}x; {batch.n_posts / medians['ours']:.2f} against "
        f"{batch.n_posts / medians['published']:.2f} posts/s), {memory['ours'] / memory['published']:.2f}x the memory "
        f"(limit 1x), loop {overhead:+.1%} (limit {MOST_OVERHEAD:+.0%}): " + ("pass" if passed else "FAIL")
    )
    return 0 if passed else 1


def repeated(batch: Batch, copies: int) -> Batch:
    """Return the same posts, repeated, as one batch that is large enough for a GPU."""
    n, rows = batch.n_posts, batch.comment_ids.shape[0] * (batch.comment_ids.shape[1] - 1)
    tensors = {
        name: getattr(batch, name).repeat(copies, *[1] * (getattr(batch, name).dim() - 1))
        for name in ("post_ids", "post_lengths", "images", "comment_ids", "weights")
    }
    shifted = {"owner": n, "rows": rows, "post_rows": n * batch.tokens_per_post}
    tensors |= {k: torch.cat([getattr(batch, k) + i * by for i in range(copies)]) for k, by in shifted.items()}
    return Batch(**tensors, tokens_per_post=batch.tokens_per_post, n_targets=copies * batch.n_targets)


def variants(device: torch.device) -> dict[str, dict[str, str]]:
    """Return settings by name: the default choice, plain torch, and plain torch with one fused kernel each."""
    from cromic_ds.engine.adam import KERNELS, available

    usable = {what: [name for name, choice in table.items() if choice.works(device)] for what, table in TABLES.items()}
    usable["optimizer"] = [name for name in KERNELS if name != "deepspeed_cpu" and available(name, device)]
    single = {
        f"{what} {name}": {**PLAIN, what: name}
        for what, names in usable.items()
        for name in names
        if name != PLAIN[what]
    }
    formats = {"contiguous convolutions": {"memory_format": "contiguous"}}
    return {"default": {}, "plain torch": PLAIN, **single, **formats}


def on_gpu_seconds(batch: Batch, settings: dict[str, str], steps: int) -> float:
    """Return the median seconds of a step; `torch.cuda.max_memory_allocated` is its peak memory afterwards."""
    gc.collect()
    torch.cuda.empty_cache()
    step = bare(batch, settings, "cuda")
    for _ in range(5):
        step()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()  # ends with the loss on the host, so the device has finished
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def on_gpu(args: argparse.Namespace) -> int:
    from cromic_ds.training.usage import peak_tflops

    device, name = torch.device("cuda"), torch.cuda.get_device_name()
    batch = repeated(seed_batch(args.seed_data), GPU_COPIES)
    with torch.device("meta"):
        flops = 3 * build_model(build_config("cmt", "paper")).flops_formula()(batch)
    peak, results = peak_tflops(device), {}
    for label, settings in variants(device).items():
        try:
            seconds = on_gpu_seconds(batch, settings, 10 * args.rounds)
        except Exception as error:  # compiling a kernel at its first use can fail in any way
            results[label] = {"settings": settings, "failed": f"{type(error).__name__}: {error}"}
            print(f"{label:>36}: failed, {str(error).splitlines()[:1]}", flush=True)
            continue
        tflops = flops / seconds / 1e12
        results[label] = {
            "settings": settings,
            "seconds": seconds,
            "posts_per_second": batch.n_posts / seconds,
            "tflops": tflops,
            "mfu": tflops / peak if peak else None,
            "peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20,
        }
        mfu = f", MFU {tflops / peak:.1%}" if peak else ""
        print(
            f"{label:>36}: {seconds * 1e3:7.1f} ms, {batch.n_posts / seconds:6.0f} posts/s, {tflops:5.1f} TFLOP/s{mfu}, "
            f"{results[label]['peak_memory_mb']:6.0f} MB",
            flush=True,
        )
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"train_step_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}.json"
    facts = {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "posts": batch.n_posts,
        "target_tokens": batch.n_targets,
        "precision": choose_precision("auto", "cuda"),
        "peak_tflops": peak,
    }
    file.write_text(json.dumps({**facts, "variants": results}, indent=1) + "\n")
    gain = results["default"]["posts_per_second"] / results["plain torch"]["posts_per_second"]
    print(f"train_step: {gain:.2f}x posts/s with the chosen kernels against plain torch on {name}; written to {file}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed_data", default=str(SEED_DATA), help="data folder in the published layout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ds_config", default="zero0", help="DeepSpeed config of our loop (for information: zero3)")
    parser.add_argument("--peak", choices=["published", "ours"], help=argparse.SUPPRESS)  # only measure memory
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return on_gpu(args) if torch.cuda.is_available() else on_cpu(args)


if __name__ == "__main__":
    exit_with(main)
