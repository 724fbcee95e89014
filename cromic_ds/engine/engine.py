"""`Engine`: a model under DeepSpeed, with one method for a whole training step that is the same at every ZeRO stage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from torch import Tensor

from cromic_ds.batch import Batch
from cromic_ds.engine.loss_scale import LossScaler
from cromic_ds.ranks.collectives import sum_over_ranks
from cromic_ds.ranks.launcher import local_device

if TYPE_CHECKING:
    from cromic_ds.models.registry import CommentModel


@dataclass
class StepResult:
    """The result of one step of the global batch, the same on every rank."""

    loss: float  # Σ losses / Σ targets over the global batch
    n_targets: int
    n_posts: int
    grad_norm: float
    skipped: bool  # a loss was too high or not finite, or a gradient not finite: the weights did not change


class Engine:
    """Trains one of our models (models/registry.py). A: micro-batches of a rank in a step (accumulation)."""

    def __init__(
        self, model: CommentModel, optimizer: torch.optim.Optimizer, config: dict[str, Any], compile: bool = False
    ):
        self.n_parameters = sum(p.numel() for p in model.parameters())
        self.forward_flops = model.flops_formula()
        self.stage = config.get("zero_optimization", {}).get("stage", 0)
        # At stage 0 DeepSpeed clips without reporting the norm, so it is done here.
        self.clip = config["gradient_clipping"]
        if self.stage == 0:
            config = {**config, "gradient_clipping": 0.0}
        if self.stage == 3:
            deepspeed.utils.set_z3_leaf_modules(model, list(model.gathered_whole))
        # Any: much of what is used of it is not in DeepSpeed's types (docs/deepspeed_internals.md).
        self.deepspeed: Any = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )[0]
        if self.stage == 0 and torch.distributed.get_world_size() == 1:
            # A single rank would also flatten, "all-reduce" and copy back every gradient: 6% of a step on a CPU.
            self.deepspeed.enable_backward_allreduce = False
        if compile:
            # Layer by layer, because convolutions gain nothing and inductor fails on their dynamic strides.
            for module in model.modules():
                if isinstance(module, model.compiled):
                    module.compile(dynamic=True)
        autocast = config.get("torch_autocast", {})
        self.autocast_dtype = getattr(torch, autocast["dtype"]) if autocast.get("enabled") else None
        self.scaler = LossScaler(self.deepspeed) if self.autocast_dtype is torch.float16 else None
        self.device = local_device()
        # Around each forward pass of training; the profiler sets it.
        self.watch_forward: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    @property
    def model(self) -> CommentModel:
        return self.deepspeed.module

    def train_step(
        self,
        batches: Sequence[Batch],
        learning_rate: float,
        n_targets: int,
        seeds: Sequence[int],
        max_loss: float = math.inf,
    ) -> StepResult:
        """Forward and backward over this rank's micro-batches, then one optimizer step of all ranks.

        Args:
            batches: the rank's A micro-batches.
            n_targets: target tokens of the global batch (all ranks and micro-batches), by which the summed loss is divided.
            seeds: one for each micro-batch, for dropout.
            max_loss: upper bound on a micro-batch's loss per target token; above it, all ranks skip the step.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        self.deepspeed.train()
        world_size = torch.distributed.get_world_size()
        scale = world_size / max(n_targets, 1)  # DeepSpeed averages gradients over the ranks; this gives the sum
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, seed in zip(batches, seeds):
            torch.manual_seed(seed)
            with self.watch_forward():
                loss = self.deepspeed(batch.to(self.device)).float()
            total += loss.detach()
            # An infinite loss can have finite gradients, and a loss that is too high does. As NaN they fail the check before
            # the update, on every rank.
            fits = loss.detach().isfinite() & (loss.detach() <= max_loss * batch.n_targets)
            poison = torch.where(fits, 1.0, math.nan)
            loss = loss * (scale * poison)
            self.deepspeed.backward(self.scaler.scale(loss) if self.scaler else loss, scale_wrt_gas=False)
            if self.stage == 0 and batch is batches[-1]:
                grad_norm, skipped = self._clip_or_drop()
            self.deepspeed.step()
        if self.stage > 0:
            grad_norm = float(self.deepspeed.get_global_grad_norm() or 0.0)
            skipped = not self.deepspeed.was_step_applied()
        if self.scaler:
            self.scaler.update(skipped)
        loss_sum, n_posts = sum_over_ranks([float(total), sum(int(b.weights.sum()) for b in batches)])
        return StepResult(loss_sum / max(n_targets, 1), n_targets, int(n_posts), grad_norm, skipped)

    def _clip_or_drop(self) -> tuple[float, bool]:
        """Clip the reduced gradients at stage 0. If they are not finite, drop them, so that the update does nothing."""
        grads = [p for p in self.model.parameters() if p.grad is not None]
        if self.scaler:
            self.scaler.unscale(grads)
        norm = float(torch.nn.utils.clip_grad_norm_(grads, self.clip or math.inf))
        if math.isfinite(norm):
            return norm, False
        for p in grads:
            p.grad = None
        return norm, True

    @torch.no_grad()
    def loss_sum(self, batch: Batch) -> Tensor:
        """Return the summed loss of a batch with the sharded weights. Every rank must call it the same number of times."""
        self.deepspeed.eval()
        return self.deepspeed(batch.to(self.device)).float()

    @contextlib.contextmanager
    def full_weights(self) -> Iterator[CommentModel]:
        """Yield the plain model with all weights on this rank, in evaluation mode and under the run's autocast."""
        self.deepspeed.eval()
        gather = deepspeed.zero.unwrap_model_for_generation if self.stage == 3 else contextlib.nullcontext
        dtype, enabled = self.autocast_dtype or torch.bfloat16, self.autocast_dtype is not None
        with torch.no_grad(), gather(self.deepspeed), torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
            yield self.model
