"""The names of all files in a run folder. Standard library only: the watchers and the launch scripts use it too.

`python -m cromic_ds.run_folder RUN` prints the paths that shell scripts need, as shell variables.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

# The files of a checkpoint beside DeepSpeed's own.
MANIFEST = "manifest.json"  # size and hash of each file; a checkpoint that has one is complete
STATE = "state.json"
BUFFERS = "buffers.safetensors"
EMA_FILE = "ema.safetensors"  # all averaged weights, unsharded on any number of ranks

# The files of an export, and of RUN/model, beside those of transformers.
FACTS = "cromic_ds.json"  # task, token limits, tokenizer fingerprint
ANSWERS = "answers.json"  # the answer vocabulary of a model that classifies

_STEP = re.compile(r"step-(\d{8})")


def step_name(step: int) -> str:
    """Return `step-00001000`, the name of a checkpoint and of an evaluation's samples."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """Return the step of `step_name`."""
    return int(name.removeprefix("step-"))


class _Name:
    """A name in the folder: `RunFolder(path).config` is `path / "config.yaml"`."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, folder: RunFolder, _owner: type) -> Path:
        return folder.path / self.name


class RunFolder:
    """Paths in a run folder. Nothing is created, and only methods with a plural name look at the disk.

    No dataclass, because the watchers that import it have to start fast.
    """

    config = _Name("config.yaml")  # all settings as resolved; `--config` reads it
    ds_config = _Name("ds_config.json")
    metrics = _Name("metrics.jsonl")
    log = _Name("log.txt")
    model = _Name("model")  # config and tokenizer, written at the start
    export = _Name("export")
    samples = _Name("samples")
    finished = _Name("finished.json")  # exists exactly while the run is complete and exported
    lock = _Name("lock.json")  # names the job that uses the folder
    collectives = _Name("comms.txt")  # counts, times and bandwidths of DeepSpeed's collectives
    flops_profile = _Name("flops_profile.txt")
    tensorboard = _Name("tensorboard")
    wandb = _Name("wandb")
    wandb_run_id = _Name("wandb_run_id")  # contains the id of the run in W&B, which a resumed run keeps
    document_frequencies = _Name("scst_df.npz")  # CIDEr's, of the training split, for self-critical training
    checkpoints = _Name("checkpoints")
    latest = _Name("checkpoints/latest")  # contains the name of the newest checkpoint
    best = _Name("checkpoints/best")  # contains the name of the checkpoint with the best evaluation score
    ranks = _Name("ranks")

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def rank_log(self, rank: int) -> Path:
        """The log of a rank other than 0."""
        return self.path / "logs" / f"rank-{rank:05d}.txt"

    def trace(self, rank: int) -> Path:
        """A rank's profile of the steps in `profile.trace`."""
        return self.path / "profile" / f"rank-{rank}.trace.json"

    def stale_lock(self, attempt: str) -> Path:
        """Where a start of the run moves the lock of a job that has died."""
        return self.path / f".lock-stale-{attempt}"

    def preflight(self, attempt: str, rank: int | None = None) -> Path:
        """Written to see whether all ranks share the folder: by rank 0 for all, and by each rank for itself."""
        return self.path / f".preflight-{attempt}{'' if rank is None else f'-{rank}'}"

    # ---- checkpoints

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / step_name(step)

    def step_names(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""
        return sorted(path.name for path in self.checkpoints.glob("step-*") if _STEP.fullmatch(path.name))

    def damaged(self, name: str) -> Path:
        """Where a damaged checkpoint is set aside."""
        return self.checkpoints / f"damaged-{name}"

    def damaged_names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.glob("damaged-*"))

    def temporary(self, name: str) -> Path:
        """Where a checkpoint is written, converted or removed; what a killed run leaves there, the next save removes."""
        return self.checkpoints / f".writing-{name}"

    def temporaries(self) -> list[Path]:
        return list(self.checkpoints.glob(".writing-*"))

    # ---- ranks

    def rank_state(self, rank: int) -> Path:
        """What a rank does at the moment; its watcher writes the file."""
        return self.ranks / f"rank-{rank:04d}.json"

    def rank_states(self) -> list[Path]:
        return sorted(self.ranks.glob("rank-*.json"))

    def failure(self, attempt: str) -> Path:
        """The first failure of a start; `attempt` distinguishes the starts of a run."""
        return self.ranks / f"failed-{attempt}.json"

    def failures(self) -> list[Path]:
        return sorted(self.ranks.glob("failed-*.json"))


if __name__ == "__main__":
    import shlex

    folder = RunFolder(sys.argv[1])
    print(f"run_finished={shlex.quote(str(folder.finished))}")
    print(f"run_latest={shlex.quote(str(folder.latest))}")
    print(f"run_failures=({shlex.join(map(str, folder.failures()))})")
