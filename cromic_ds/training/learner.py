"""`Learner`: what a training step works on."""

from collections.abc import Callable
from dataclasses import dataclass

from cromic_ds.batch import Batch, BatchSplit
from cromic_ds.checkpoints.state import TrainState
from cromic_ds.data.order import example_seed
from cromic_ds.engine.ema import Ema
from cromic_ds.engine.engine import Engine
from cromic_ds.ranks.launcher import Ranks


@dataclass
class Learner:
    """The model in training and its state. What a step draws at random follows from `seed` and `state.step`."""

    engine: Engine
    ema: Ema | None
    state: TrainState
    split: BatchSplit
    ranks: Ranks
    seed: int
    epoch_size: int  # examples of the training split

    def draw(self, batches: list[Batch]) -> list[Batch]:
        """Return the batches of the next step with what the model draws for them, which does not depend on the split."""
        seed = example_seed(self.seed, self.state.step, -1)
        return [self.engine.model.draw(batch, seed) for batch in batches]

    def micro_batch_seeds(self) -> list[int]:
        """Return a seed for each of this rank's micro-batches of the next step: a function of (seed, step, global micro-batch).

        Micro-batch a of rank r is number a·world size + r of the step, so the seeds do not depend on the number of ranks.
        """
        step, split = self.state.step, self.split
        first = step * split.accumulation * split.world_size + self.ranks.rank
        return [example_seed(self.seed, step, first + a * split.world_size) for a in range(split.accumulation)]


# Changes the batches of a step before they are trained on, and returns values for the log: self-critical training replaces
# the targets with samples.
Objective = Callable[[Learner, list[Batch]], tuple[list[Batch], dict[str, float]]]
