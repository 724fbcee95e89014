"""Does pretraining on comments help? Each task is fine-tuned on few labeled pictures, from scratch and from a backbone.

Both have the same settings, number of steps and seeds; only the initial weights differ. The scenes of the pictures are in no
post of the pretraining. A run that is already finished is only read, so the benchmark can be stopped and resumed.

    python benchmarks/transfer.py [--pictures 300] [--steps 300] [--seeds 3] [--backbone EXPORT_OR_RUN] [TASK …]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from cromic_ds.tasks import TASKS
from cromic_ds.tracking import read_metrics

ROOT = Path(__file__).resolve().parents[1]
NAMES = [name for name in TASKS if name != "comments"]
EVALUATED = 200  # records of the validation split, decoded greedily
VALIDATION = 100  # pictures


def run(*command: object, log: Path | None = None) -> None:
    """Run a command of the project in its root, with its output in the file `log`, if given."""
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    if log is None:
        subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=True)
        return
    with log.open("w") as file:
        subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=True, stdout=file, stderr=file)


def pretrained(folder: Path, posts: Path) -> Path:
    """Return the folder of the run of `make pretrain`, which is started if it does not exist."""
    out = folder / "backbone"
    if not (out / "export").exists():
        recipe = ["--config", "sample_cmt", "--data.path", posts, "--out", out]
        run(*[sys.executable, "-m", "cromic_ds", "pretrain", "--gpus", "all"], *recipe, log=folder / "backbone.log")
    return out


def store(folder: Path, task: str, official: Path, posts: Path) -> Path:
    out, root = folder / f"{task}-store", official / task
    if not out.exists():
        files = ["--root", root, "--extras", root / "grounding.jsonl", "--tokenizer", posts / "tokenizer", "--out", out]
        run("cromic-ds", "prepare", "--task", task, "--split", "train", "val", *files, log=folder / f"{task}-store.log")
    return out


def finetune(folder: Path, task: str, data: Path, backbone: Path | None, seed: int, steps: int) -> dict:
    """Return the last evaluation of one run, in one process."""
    out = folder / f"{task}-{'pretrained' if backbone else 'scratch'}-{seed}"
    if not (out / "export").exists():
        start = ["--backbone", backbone] if backbone else ["--model.preset", "tiny", "--model.batch_norm", "batch"]
        run(
            *[sys.executable, "finetune.py", "--config", f"recipes/finetune_{task}.yaml", "--data.path", data],
            *["--out", out, "--seed", seed, "--precision", "fp32", "--ds_config", "zero0", "--loop.steps", steps],
            *["--loop.global_batch", 32, "--loop.micro_batch", 32, "--data.comments_per_post", 3],
            *["--optim.lr", 0.001, "--optim.schedule", "linear", "--optim.warmup_fraction", 0.03],
            *["--eval.every", "null", "--eval.generate", EVALUATED, "--eval.micro_batch", 50],
            *["--tracking.wandb", "off"],
            *start,
            log=folder / f"{out.name}.log",
        )
    return list(read_metrics(out, "eval"))[-1]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def main() -> int:
    default_jobs = 1 if torch.cuda.is_available() else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"which of {', '.join(NAMES)}; default: all")
    parser.add_argument("--pictures", type=int, default=300, help="labeled pictures to train on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", type=Path, help="export or run; default: the run of `make pretrain`")
    parser.add_argument(
        "--posts", type=Path, default=ROOT / ".cache" / "sample_world", help="store it was pretrained on"
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "transfer")
    parser.add_argument("--jobs", type=int, default=default_jobs, help="runs at a time")
    args = parser.parse_args()
    for task in args.tasks:
        if task not in NAMES:
            parser.error(f"no task {task!r}; there are {', '.join(NAMES)}")
    tasks = args.tasks or NAMES
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.posts / "store.json").exists():
        run("make", "sample", f"STORE={args.posts}")
    backbone = args.backbone or pretrained(args.out, args.posts)
    official = args.out / "official"
    if not official.exists():
        n = args.pictures + 2 * VALIDATION  # the test split is as large as the validation split, and not used
        run("cromic-ds", "sample", "--official", official, "--posts", n, "--val_fraction", VALIDATION / n)
    stores = {task: store(args.out, task, official, args.posts) for task in tasks}

    plan = [(task, start, seed) for task in tasks for start in (None, backbone) for seed in range(args.seeds)]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = pool.map(lambda cell: finetune(args.out, cell[0], stores[cell[0]], *cell[1:], args.steps), plan)
        results = dict(zip(plan, done))

    print(f"{args.pictures} labeled pictures, {args.steps} steps, {args.seeds} seeds: mean ± standard deviation")
    print(f"{'task':14} {'metric':9} {'from scratch':>16} {'pretrained':>16}")
    ahead, rows = True, []
    for task in tasks:
        for metric in (TASKS[task].best_metric, "grounded"):
            scratch, ours = (
                [results[task, start, seed][metric] for seed in range(args.seeds)] for start in (None, backbone)
            )
            print(f"{task:14} {metric:9} {spread(scratch):>16} {spread(ours):>16}")
            rows.append({"task": task, "metric": metric, "scratch": scratch, "pretrained": ours})
            ahead &= statistics.mean(ours) > statistics.mean(scratch)
    (args.out / "transfer.json").write_text(json.dumps(rows, indent=1))
    print(f"transfer: pretrained ahead on every task: {'pass' if ahead else 'FAIL'}")
    return 0 if ahead else 1


if __name__ == "__main__":
    sys.exit(main())
