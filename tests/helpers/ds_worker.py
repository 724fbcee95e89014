"""One rank of a real DeepSpeed run on the CPU: `python ds_worker.py JOBS.json OUT.json`, with RANK and WORLD_SIZE set.

A job is {"config": resolved DeepSpeed JSON, "steps": n, "loss_factors": [...], "scaler": bool}; the answer of rank 0 is one
dict for each: losses, gradient norms and whether the step was applied; bytes held after the last backward pass by kind;
bytes through the collectives in the last step; the sum of all weights before and after each step.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import sys
import warnings
from pathlib import Path

import deepspeed
import torch
from deepspeed.comm import comm
from deepspeed.utils import logger
from torch import nn

from cromic_ds.cli.commands import leave
from cromic_ds.engine.loss_scale import LossScaler
from cromic_ds.training.optimizer import OptimizerSettings, build_optimizer

VOCABULARY, WIDTH = 3000, 256


class SmallTransformer(nn.Module):
    """Embedding, batch norm, four encoder layers, output layer: 3.6 million parameters."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.batch_norm = nn.BatchNorm1d(WIDTH)
        layer = lambda: nn.TransformerEncoderLayer(WIDTH, 4, 512, dropout=0.0, batch_first=True)  # noqa: E731
        self.layers = nn.ModuleList(layer() for _ in range(4))
        self.output = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        x = self.batch_norm(self.embedding(ids).mT).mT
        for layer in self.layers:
            x = layer(x)
        return nn.functional.cross_entropy(self.output(x).float().flatten(0, 1), ids.flatten())


def tensor_bytes() -> int:
    """Return the bytes of all distinct storages that Python can see."""
    gc.collect()
    return held(o for o in gc.get_objects() if isinstance(o, torch.Tensor))


def held(tensors) -> int:
    sizes = {}
    for t in tensors:
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    sizes.pop(0, None)
    return sum(sizes.values())


def state_of(engine) -> dict[str, int]:
    """Return the bytes of parameters, gradients and optimizer state that this rank keeps between backward and step."""
    model, optimizer, stage = engine.module, engine.optimizer, engine.zero_optimization_stage()
    moments = [t for state in engine.basic_optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    if stage == 0:
        gradients, masters = [p.grad for p in model.parameters()], []
    elif stage in (1, 2):
        gradients = [g for group in optimizer.averaged_gradients.values() for g in group]
        masters = optimizer.single_partition_of_fp32_groups
    else:
        gradients, masters = [optimizer.grad_partitions_flat_buffer], optimizer.fp32_partitioned_groups_flat
    partitions = [p.ds_tensor for p in model.parameters()] if stage == 3 else []
    return {
        "parameters": held([p.data for p in model.parameters()] + partitions),
        "gradients": held(gradients),
        "optimizer": held([*masters, *moments]),
    }


def total_weight(engine) -> float:
    parameters = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=engine.zero_optimization_stage() == 3):
        return float(sum(p.detach().double().abs().sum() for p in parameters))


def run(job: dict, rank: int) -> dict:
    config, before = job["config"], tensor_bytes()
    if (
        config["zero_optimization"]["stage"] == 0
    ):  # as `Engine` does, because DeepSpeed would clip without reporting the norm
        config = {**config, "gradient_clipping": 0.0}
    torch.manual_seed(0)
    model = SmallTransformer()
    offload = bool(config["zero_optimization"].get("offload_optimizer"))
    optimizer, kernel = build_optimizer(model, OptimizerSettings(lr=1e-3), offload=offload)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    scaler = LossScaler(engine) if job.get("scaler") else None
    comm.configure(enabled=True, prof_all=True, verbose=False)
    generator = torch.Generator().manual_seed(rank)
    answer = {
        "kernel": kernel,
        "losses": [],
        "norms": [],
        "applied": [],
        "scales": [],
        "weights": [total_weight(engine)],
    }
    factors = job.get("loss_factors") or [1.0] * job["steps"]
    for step, factor in enumerate(factors):
        comm.comms_logger.comms_dict.clear()
        for _ in range(engine.gradient_accumulation_steps()):
            ids = torch.randint(0, VOCABULARY, (engine.train_micro_batch_size_per_gpu(), 12), generator=generator)
            loss = engine(ids)
            poison = math.nan if factor is None and rank == 1 else 1.0  # None: one rank's loss is not finite
            graded = loss * ((factor or 1.0) * poison)
            engine.backward(scaler.scale(graded) if scaler else graded)
            if engine.is_gradient_accumulation_boundary():
                if step == len(factors) - 1:
                    answer["state"], answer["held"] = state_of(engine), tensor_bytes() - before
                if scaler:
                    scaler.unscale(engine.module.parameters())
                if engine.zero_optimization_stage() == 0:
                    norm = float(
                        nn.utils.clip_grad_norm_(engine.module.parameters(), job["config"]["gradient_clipping"])
                    )
                    if not math.isfinite(norm):
                        engine.zero_grad()
            engine.step()
        if engine.zero_optimization_stage() > 0:
            norm = float(engine.get_global_grad_norm())
        answer["losses"].append(float(loss))
        answer["norms"].append(norm)
        answer["applied"].append(math.isfinite(norm))
        if scaler:
            scaler.update(not math.isfinite(norm))
            answer["scales"].append(scaler.value)
        logged = comm.comms_logger.comms_dict
        answer["messages"] = {op: sum(size * v[0] for size, v in sizes.items()) for op, sizes in logged.items()}
        answer["weights"].append(total_weight(engine))
    engine.destroy()
    return answer


def main(jobs: str, out: str) -> None:
    warnings.simplefilter("ignore")
    logger.setLevel(logging.ERROR)
    deepspeed.init_distributed("gloo", verbose=False)
    rank = torch.distributed.get_rank()
    answers = [run(job, rank) for job in json.loads(Path(jobs).read_text())]
    if rank == 0:
        Path(out).write_text(json.dumps(answers))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
