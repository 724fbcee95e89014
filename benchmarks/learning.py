"""Does preset tiny learn the sample world, and does it need text, image, image positions and balanced embeddings for that?

Every variant is the run of `make pretrain` with one thing changed; each starts `pretrain.py` in two processes on CPUs, or
one per GPU. Text alone and image alone are compared with the ceilings that follow from the data.

    python benchmarks/learning.py [--steps 2600] [--out .cache/learning] [VARIANT …]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from cromic_ds.data.open_dataset import open_dataset
from cromic_ds.tracking import read_metrics
from cromic_ds.world.ceilings import at_most, ceilings

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.9
VARIANTS: dict[str, list[str]] = {
    "balanced": [],
    "no image positions": ["--model.image_positions", "false"],
    "published": ["--model.image_positions", "false", "--model.image_norm", "l2", "--model.embedding_std", "1.0"],
    "text alone": ["--model.mode", "t"],
    "image alone": ["--model.mode", "v"],
}


def train(name: str, folder: Path, store: Path, steps: int) -> dict:
    """Return the last evaluation of one variant's run. A run that is already finished is only read."""
    run = folder / name.replace(" ", "_")
    command = [
        *[sys.executable, "-m", "cromic_ds", "pretrain", "--gpus", "all", "--config", "sample_cmt"],
        *["--data.path", str(store)],
        *["--out", str(run), "--loop.steps", str(steps), "--eval.every", "null", *VARIANTS[name]],
    ]
    with (folder / f"{run.name}.log").open("w") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
    return list(read_metrics(run, "eval"))[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help=f"which of {', '.join(VARIANTS)}; default: all")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--store", type=Path, default=ROOT / ".cache" / "sample_world")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "learning")
    options = parser.parse_args()
    for name in options.variants:
        if name not in VARIANTS:
            parser.error(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if not (options.store / "store.json").exists():
        subprocess.run(["make", "sample", f"STORE={options.store}"], cwd=ROOT, check=True)

    limits = ceilings(open_dataset(options.store, "val"))
    print(f"{'variant':20} {'all':>6} {'what':>6} {'where':>6}  perplexity")
    for name in ("text", "image"):
        values = (limits[name], limits[f"{name}_what"], limits[f"{name}_where"])
        print(f"{name + ' alone, ceiling':20} " + " ".join(f"{v:6.3f}" for v in values))
    good = max(limits["text"], limits["image"]) < 0.5
    balanced = None  # if that variant is not requested
    for name in options.variants or VARIANTS:
        result = train(name, options.out, options.store, options.steps)
        values = (result["grounded"], result["grounded_what"], result["grounded_where"])
        print(f"{name:20} " + " ".join(f"{v:6.3f}" for v in values) + f"  {result['perplexity']:.3f}", flush=True)
        if name == "balanced":
            balanced = result["grounded"]
            good &= balanced >= TARGET
        elif name.endswith("alone"):
            good &= result["grounded"] <= at_most(limits[name.split()[0]], result["n_items"])
    learned = "" if balanced is None else f"grounded accuracy {balanced:.3f} (target {TARGET}), "
    print(f"learning: {learned}ceilings below 0.5 and not exceeded: {'pass' if good else 'FAIL'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
