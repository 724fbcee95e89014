"""The names of all files in a run folder. Standard library only: the guard process and the launch scripts use it too.

`python -m cromic_ds.run_folder RUN` prints the paths that shell scripts need, as shell variables.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

# The files of a checkpoint beside DeepSpeed's own.
MANIFEST = "manifest.json"  # size and hash of each file; a checkpoint that has one is complete
STATE = "state.json"
BUFFERS = "buffers.safetensors"
EMA_FILE = "ema.safetensors"  # all averaged weights, whole, whatever the number of ranks

# The files of an export, and of RUN/model, beside those of transformers.
FACTS = "cromic_ds.json"  # task, token limits, tokenizer fingerprint
ANSWERS = "answers.json"  # the answer vocabulary of a model that classifies

_STEP = re.compile(r"step-(\d{8})")


def step_name(step: int) -> str:
    """Return `step-00001000`, the name of a checkpoint and of an evaluation's samples."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class RunFolder:
    """Paths below a run folder. Nothing is read or made, except by `step_names`."""

    path: Path

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

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def finished(self) -> Path:
        """There exactly while the run in the folder is complete and exported."""
        return self.path / "finished.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock.json"

    # ---- checkpoints

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def latest(self) -> Path:
        """Holds the name of the newest checkpoint."""
        return self.checkpoints / "latest"

    @property
    def best(self) -> Path:
        """Holds the name of the checkpoint with the best evaluation score."""
        return self.checkpoints / "best"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / step_name(step)

    def step_names(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""
        return sorted(path.name for path in self.checkpoints.glob("step-*") if _STEP.fullmatch(path.name))

    # ---- ranks

    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

    def rank_state(self, rank: int) -> Path:
        """Where a rank is; its guard keeps the file."""
        return self.ranks / f"rank-{rank:04d}.json"

    def rank_states(self) -> list[Path]:
        return sorted(self.ranks.glob("rank-*.json"))

    def failure(self, attempt: str) -> Path:
        """The first failure of a start; `attempt` tells one start of the run from another."""
        return self.ranks / f"failed-{attempt}.json"

    def failures(self) -> list[Path]:
        return sorted(self.ranks.glob("failed-*.json"))


if __name__ == "__main__":
    folder = RunFolder(Path(sys.argv[1]))
    for name in ("finished", "latest", "ranks", "log"):
        print(f"run_{name}={shlex.quote(str(getattr(folder, name)))}")
