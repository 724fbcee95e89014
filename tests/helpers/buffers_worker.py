"""One rank of `test_collectives.py`: prints the results of the collective operations as JSON."""

import json
import sys

import torch
import torch.distributed as dist

from cromic_ds.cli.commands import leave
from cromic_ds.ranks.collectives import average_buffers, barrier, from_main, gather_objects, sum_over_ranks

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model = torch.nn.BatchNorm1d(2)
model.running_mean.fill_(rank)  # 0 and 1
model.running_var.copy_(torch.tensor([1.0, 2.0]) + 2 * rank)  # 1, 2 and 3, 4
model.num_batches_tracked.fill_(7 + rank)
average_buffers(model)
barrier()
answer = {
    "mean": model.running_mean.tolist(),
    "var": model.running_var.tolist(),
    "tracked": int(model.num_batches_tracked),
    "sum": sum_over_ranks([1 + rank, 0.1]),
    "gathered": gather_objects({"rank": rank}),
    "from_main": from_main(f"said by {rank}"),
}
print(json.dumps(answer))
dist.destroy_process_group()
leave(0)
