"""What a run derived from its settings, told once before its first step."""

from __future__ import annotations

import logging

from cromic_ds.engine.config import batch_arithmetic
from cromic_ds.engine.memory import megabytes

log = logging.getLogger(__name__)


def announce(settings, ranks, device, ds_config, kernels, engine, memory, dataset, state, total_steps) -> None:
    """What was derived, once, before the first step."""
    model = engine.model
    n_parameters = engine.n_parameters
    zero = ds_config["zero_optimization"]
    log.info(
        "devices: %d × %s; %s", ranks.world_size, device_name(device), batch_arithmetic(ds_config, ranks.world_size)
    )
    log.info(
        "model: %s%s, %.1f M parameters, vocabulary %d%s",
        model.config.model_type.removeprefix("cromic_"),
        "" if settings.model.init_from else f" {settings.model.preset}",
        *(n_parameters / 1e6, model.config.vocab_size),
        f", batch norm {model.config.batch_norm}" if hasattr(model.config, "batch_norm") else "",
    )
    log.info(
        "ZeRO stage %d (%s); autocast %s", zero["stage"], settings.ds_config, engine.autocast_dtype or "off (fp32)"
    )
    log.info(
        "memory per rank: parameters %s, gradients %s, optimizer %s, buckets %s; %s sent per step (without activations)",
        *map(megabytes, (memory.parameters + memory.gathered, memory.gradients, memory.optimizer, memory.buffers)),
        megabytes(memory.sent),
    )
    log.info("kernels: %s", ", ".join(f"{what} {name}" for what, name in kernels.items()))
    log.info("data: %s, %d posts in %r", settings.data.path, len(dataset), dataset.split)
    if getattr(dataset, "single_file", False):
        log.warning("%s holds one file: the evaluation is on the training posts", settings.data.path)
    log.info(
        "steps: %d of %d done (%.2f epochs in all)%s",
        *(state.step, total_steps, total_steps * settings.loop.global_batch / len(dataset)),
        "; going on from the newest checkpoint" if state.step else "",
    )


def device_name(device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
