"""Small collective operations; each is a plain call where there is only one rank."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from cromic_ds.errors import UserError
from cromic_ds.ranks.launcher import local_device


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Return the element-wise sum over all ranks, in double precision."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(list(values), dtype=torch.float64, device=local_device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks, in the order of ranks, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(function: Callable[..., Any], *args: Any) -> None:
    """Run `function` on rank 0 while the other ranks wait. A UserError of it is raised on every rank."""
    message = None
    if int(os.environ.get("RANK", "0")) == 0:
        try:
            function(*args)
        except UserError as error:
            message = str(error)
    if message := from_main(message):
        raise UserError(message)


def barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        sum_over_ranks([0.0])


@torch.no_grad()
def average_buffers(model: torch.nn.Module) -> None:
    """Replace every floating-point buffer (batch-norm statistics) by its mean over the ranks, in place.

    DeepSpeed never synchronizes buffers, so without this an evaluation or a checkpoint would depend on the rank.
    """
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if not buffers or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    flat = torch.cat([b.flatten().double() for b in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers])):
        buffer.copy_(mean.view_as(buffer))
