"""An exponential moving average of the weights, for evaluation and export, at every ZeRO stage."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save

from cromic_ds.engine.engine import Engine
from cromic_ds.engine.zero import drop_gathered, held, shard_of
from cromic_ds.errors import UserError
from cromic_ds.run_folder import EMA_FILE


class Ema:
    """average ← decay · average + (1 − decay) · weights, after every step that changed the weights.

    Each rank averages what it keeps of the weights: its shards under ZeRO-3, otherwise all of them.
    """

    def __init__(self, engine: Engine, decay: float):
        self.engine, self.decay = engine, decay
        for p in engine.model.parameters():
            if getattr(getattr(p, "nvme_swapper", None), "swap_folder", None):
                raise UserError("loop.ema_decay does not work with parameters offloaded to NVMe: set it to null")
        self.averages = [held(p).detach().clone() for p in engine.model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        for average, p in zip(self.averages, self.engine.model.parameters()):
            average.lerp_(held(p), 1 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the model's weights by the averages; its own weights are restored at the end, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, p in zip(self.averages, self.engine.model.parameters()):
            drop_gathered(p)
            weights = held(p)
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def content(self) -> bytes:
        """Return the averages as the content of EMA_FILE on rank 0, nothing elsewhere. Collective."""
        with self.applied(), self.engine.full_weights() as model:
            if dist.get_rank() != 0:
                return b""
            return save({name: p.detach().float().cpu().contiguous() for name, p in model.named_parameters()})

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restore the averages. Raises UserError if the checkpoint contains none."""
        if not (folder / EMA_FILE).exists():
            raise UserError(
                f"{folder} contains no averaged weights: resume with the loop.ema_decay that the run was started with"
            )
        saved = load_file(folder / EMA_FILE)
        for average, (name, p) in zip(self.averages, self.engine.model.named_parameters()):
            average.copy_(shard_of(saved[name], p).view_as(average))
