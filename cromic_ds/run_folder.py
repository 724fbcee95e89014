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


class RunFolder:
    """Paths in a run folder. Nothing is created, and only the plural names look at the disk.

    A plain class, because the watchers that import it have to start fast.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """All settings as resolved; `--config` takes it again."""
        return self.path / "config.yaml"

    @property
    def ds_config(self) -> Path:
        return self.path / "ds_config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def rank_log(self, rank: int) -> Path:
        """The log of a rank other than 0."""
        return self.path / "logs" / f"rank-{rank:05d}.txt"

    @property
    def model(self) -> Path:
        """Config and tokenizer, written at the start of a run."""
        return self.path / "model"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def trace(self, rank: int) -> Path:
        """A rank's profile of the steps in `profile.trace`."""
        return self.path / "profile" / f"rank-{rank}.trace.json"

    @property
    def flops_profile(self) -> Path:
        return self.path / "flops_profile.txt"

    @property
    def collectives(self) -> Path:
        """Counts, times and bandwidths of DeepSpeed's collectives."""
        return self.path / "comms.txt"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb_run_id(self) -> Path:
        """Contains the id of the run in W&B, which a resumed run keeps."""
        return self.path / "wandb_run_id"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def finished(self) -> Path:
        """Exists exactly while the run in the folder is complete and exported."""
        return self.path / "finished.json"

    @property
    def document_frequencies(self) -> Path:
        """CIDEr's document frequencies of the training split, which self-critical training counts once."""
        return self.path / "scst_df.npz"

    @property
    def lock(self) -> Path:
        """Names the job that uses the folder."""
        return self.path / "lock.json"

    def stale_lock(self, attempt: str) -> Path:
        """Where a start of the run moves the lock of a job that has died."""
        return self.path / f".lock-stale-{attempt}"

    def preflight(self, attempt: str, rank: int | None = None) -> Path:
        """Written to see whether all ranks share the folder: by rank 0 for all, and by each rank for itself."""
        return self.path / f".preflight-{attempt}{'' if rank is None else f'-{rank}'}"

    # ---- checkpoints

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def latest(self) -> Path:
        """Contains the name of the newest checkpoint."""
        return self.checkpoints / "latest"

    @property
    def best(self) -> Path:
        """Contains the name of the checkpoint with the best evaluation score."""
        return self.checkpoints / "best"

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

    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

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
