"""Dynamic loss scaling for fp16 autocast, the same at every ZeRO stage.

DeepSpeed 0.19 gives fp16 autocast a `torch.amp.GradScaler`, but its ZeRO optimizers (stages 1 to 3) measure and clip the
gradients before that scaler has unscaled them: the norm is reported 65,536 times too large, every step is clipped to
1/65,536 of the limit, and the scaler never learns of an overflow, so the scale never decreases. Their older interface,
`override_loss_scale`, unscales before it measures and clips. So the scale is kept here, and DeepSpeed multiplies by it.
"""

from collections.abc import Iterable
from typing import Any

from deepspeed import DeepSpeedEngine
from torch import Tensor, nn

LARGEST = 2.0**24
GROWTH_INTERVAL = 1000


class LossScaler:
    """Halves the scale at each overflow and doubles it after 1,000 steps without one.

    For a `DeepSpeedEngine` whose config has torch_autocast float16: call `engine.backward(scaler.scale(loss))`, at stage 0
    `scaler.unscale(parameters)` before clipping, and `scaler.update(skipped)` after the step. `state_dict` belongs into the
    checkpoint.
    """

    def __init__(self, engine: DeepSpeedEngine, value: float = 2.0**16):
        self.optimizer: Any = engine.optimizer if engine.zero_optimization_stage() > 0 else None
        if self.optimizer is None:
            engine.torch_autocast_z0_gradscaler = None
        else:
            self.optimizer.torch_autocast_gradscaler = None
        self.steps_since_change = 0
        self.set(value)

    def set(self, value: float) -> None:
        self.value = min(max(value, 1.0), LARGEST)
        if self.optimizer is not None:
            self.optimizer.custom_loss_scaler = True  # `override_loss_scale` sets these two, but prints as well
            self.optimizer.external_loss_scale = self.value

    def scale(self, loss: Tensor) -> Tensor:
        """Return the tensor to call backward on. DeepSpeed's ZeRO optimizers apply the scale themselves, stage 0 does not."""
        return loss * self.value if self.optimizer is None else loss

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """At stage 0 divide the reduced gradients by the scale. At other stages DeepSpeed does, before norm and clipping."""
        if self.optimizer is None:
            for p in parameters:
                if p.grad is not None:
                    p.grad.div_(self.value)

    def update(self, overflowed: bool) -> None:
        """Adapt the scale after a step; every rank must pass the same value."""
        self.steps_since_change += 1
        if overflowed:
            self.steps_since_change = 0
            self.set(self.value / 2)
        elif self.steps_since_change >= GROWTH_INTERVAL:
            self.steps_since_change = 0
            self.set(self.value * 2)

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "steps_since_change": self.steps_since_change}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.set(state["value"])
        self.steps_since_change = int(state["steps_since_change"])
