"""One of two ranks: synchronized batch norm on its half of a batch. Arguments: rank, rendezvous file, output folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cromic_ds.cli.commands import leave
from cromic_ds.models.common.image_encoder import BatchNorm

if __name__ == "__main__":
    rank, rendezvous, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    case = torch.load(folder / "case.pt", weights_only=True)
    norm = BatchNorm(case["x"].shape[1])
    norm.load_state_dict(case["state"])
    norm.mode = "sync"
    sizes = case["sizes"]
    x, towards = (case[name].split(sizes)[rank].clone() for name in ("x", "towards"))
    x.requires_grad_()
    y = norm(x)
    (y * towards).sum().backward()
    for parameter in norm.parameters():
        dist.all_reduce(parameter.grad)
    result = {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    result["state"] = norm.state_dict()
    torch.save(result, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
    leave(0)
