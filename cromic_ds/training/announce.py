"""Print what a run derived from its settings, once, before the first step."""

import logging

import torch

from cromic_ds.data.dataset import Dataset
from cromic_ds.engine.memory import MemoryPlan, megabytes
from cromic_ds.training.learner import Learner
from cromic_ds.training.settings import RunSettings

log = logging.getLogger(__name__)


def announce(
    settings: RunSettings, learner: Learner, dataset: Dataset, memory: MemoryPlan, kernels: str, total_steps: int
) -> None:
    """Log devices, batch arithmetic, model, memory, kernels, data, and the step that the run starts from."""
    engine, split, step = learner.engine, learner.split, learner.state.step
    config = engine.model.config
    name = config.model_type.removeprefix("cromic_")
    preset = "" if settings.model.init_from else f" {settings.model.preset}"
    batch_norm = f", batch norm {config.batch_norm}" if hasattr(config, "batch_norm") else ""
    on_gpu = engine.device.type == "cuda"
    device = torch.cuda.get_device_name(engine.device) if on_gpu else f"CPU ({torch.get_num_threads()} threads)"
    log.info("devices: %d × %s; %s", split.world_size, device, split)
    size = engine.n_parameters / 1e6
    log.info("model: %s%s, %.1f M parameters, vocabulary %d%s", name, preset, size, config.vocab_size, batch_norm)
    log.info("ZeRO stage %d (%s); autocast %s", engine.stage, settings.ds_config, engine.autocast_dtype or "off (fp32)")
    sizes = memory.parameters + memory.gathered, memory.gradients, memory.optimizer, memory.buffers, memory.sent
    log.info(
        "memory per rank: parameters %s, gradients %s, optimizer %s, buckets %s; %s sent per step (without activations)",
        *map(megabytes, sizes),
    )
    log.info("kernels: %s", kernels)
    log.info("data: %s, %d posts in %r", settings.data.path, len(dataset), dataset.split)
    if getattr(dataset, "single_file", False):
        log.warning("%s holds one file: the evaluation is on the training posts", settings.data.path)
    epochs = total_steps * split.global_batch / len(dataset)
    resumed = "; resuming from the newest checkpoint" if step else ""
    log.info("steps: %d of %d done (%.2f epochs in all)%s", step, total_steps, epochs, resumed)
