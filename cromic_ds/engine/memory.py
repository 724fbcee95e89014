"""The bytes that a run needs and sends, computed before it starts from a model's sizes and a resolved DeepSpeed config.

Parameters are fp32, also under autocast. What DeepSpeed 0.19 keeps for them was measured with two CPU processes, and
`tests/tools/test_plan_real.py` measures it again. N parameters, T trainable ones, W ranks, H ranks of an hpZ group:

    stage 0   parameters N, gradients T, Adam 2T
    stage 1   parameters N, gradients T/W (T while micro-batches accumulate), fp32 copy and Adam 3T/W
    stage 2   parameters N, gradients T/W, fp32 copy and Adam 3T/W
    stage 3   parameters N/W (small ones whole), gradients T/W, fp32 copy and Adam 3T/W, and the gathered parameters

From stage 1 on DeepSpeed keeps an fp32 "master" copy even though the parameters are fp32 already. ZeRO-3 keeps a parameter
that it gathered in the forward pass until its backward pass if that is closer than `stage3_max_reuse_distance` parameters
away. By default (10⁹) a model of up to 5·10⁸ parameters is unsharded on every rank in the middle of a step.
"""

from dataclasses import dataclass

from torch import nn

FP32 = 4
HALF = 2
ALL_REDUCE_BUCKET = 500_000_000  # elements; deepspeed.runtime.engine.MEMORY_OPT_ALLREDUCE_SIZE, not in the JSON


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model that the plan needs."""

    tensors: tuple[int, ...]  # elements of each parameter
    n_frozen: int = 0  # elements of the parameters that are not trained
    n_low_precision: int = 0  # elements in linear and convolution layers, which alone are sent in two bytes (autocast)
    largest_layer: int = 0  # elements of the largest single module: ZeRO-3 has to gather it at once
    activation_bytes: int = 0  # saved for the backward pass for any number of posts (autocast's copies of the weights)
    activation_bytes_per_post: int = 0  # saved for the backward pass for each post, including its image and comments
    flops_per_post: float = 0  # of the forward pass of a post with its image and comments

    @property
    def n_parameters(self) -> int:
        return sum(self.tensors)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that each rank needs on its device, on the host and on disk, and bytes through the collectives per step."""

    parameters: int
    gathered: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    host: int
    disk: int
    messages: dict[str, int]  # for each collective, the bytes of the full tensors that pass through it in one step
    world_size: int

    @property
    def device(self) -> int:
        """Upper bound on the bytes on the device: activations are largest when gradients are smallest."""
        return self.parameters + self.gathered + self.gradients + self.optimizer + self.buffers + self.activations

    @property
    def sent(self) -> int:
        """Bytes that each rank sends in one step with ring algorithms; an all-reduce passes its tensor on twice."""
        share = (self.world_size - 1) / self.world_size
        return round(share * sum(size * (2 if name == "all_reduce" else 1) for name, size in self.messages.items()))


def model_facts(model: nn.Module) -> ModelFacts:
    """Return the sizes of a model on any device, including the meta device; activations and FLOPs cannot be read from it."""
    low = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # deepspeed.runtime.torch_autocast compares classes exactly
    return ModelFacts(
        tensors=tuple(p.numel() for p in model.parameters()),
        n_frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        n_low_precision=sum(p.numel() for m in model.modules() if type(m) in low for p in m.parameters(recurse=False)),
        largest_layer=max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()),
    )


def memory_plan(facts: ModelFacts, config: dict, world_size: int) -> MemoryPlan:
    """Return the plan of one run. `config` is resolved: it contains no "auto"."""
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    n, trained = facts.n_parameters, facts.n_parameters - facts.n_frozen
    accumulation = config.get("gradient_accumulation_steps", 1)
    micro_batch = config["train_micro_batch_size_per_gpu"]
    autocast = config.get("torch_autocast", {}).get("enabled", False)
    bucket = int(zero.get("reduce_bucket_size", 5e8)) * (FP32 + HALF * autocast)
    optimizer_on = (zero.get("offload_optimizer") or {}).get("device", "none")
    parameters_on = (zero.get("offload_param") or {}).get("device", "none")
    share = -(-trained // world_size) * FP32
    gathered = host = disk = 0

    if stage == 0:
        parameters, gradients, optimizer = n * FP32, trained * FP32, 2 * trained * FP32
        buffers = min(trained, ALL_REDUCE_BUCKET) * FP32 if world_size > 1 else 0
        messages = {"all_reduce": trained * FP32}
    elif stage in (1, 2):
        parameters, optimizer = n * FP32, 3 * share
        gradients = trained * FP32 if stage == 1 and accumulation > 1 else share
        buffers = bucket * (2 if zero.get("overlap_comm") else 1) + max(facts.tensors) * FP32
        reductions = accumulation if stage == 2 else 1
        # DeepSpeed's default merges the ranks' buckets into one all-reduce, and each rank keeps its part of it.
        reduce = "all_reduce" if zero.get("use_multi_rank_bucket_allreduce", True) else "reduce"
        messages = {reduce: reductions * _sent_bytes(facts, trained, config), "all_gather": trained * FP32}
        if optimizer_on != "none":
            host = 5 * share + max(facts.tensors) * FP32
            gradients, optimizer = gradients if gradients > share else 0, 0
    else:
        small = sum(t for t in facts.tensors if t <= zero.get("stage3_param_persistence_threshold", 1e5))
        partition = -(-n // world_size) * FP32
        kept = 2 * n <= zero.get("stage3_max_reuse_distance", 1e9)
        prefetched = facts.largest_layer + zero.get("stage3_prefetch_bucket_size", 5e7)
        window = max(zero.get("stage3_max_live_parameters", 1e9), prefetched)
        gathered = int(n - small if kept else min(n - small, window)) * FP32
        parameters, gradients, optimizer = partition + small * FP32, share, 3 * share
        buffers = 2 * bucket + max(facts.tensors) * FP32
        if (hpz := zero.get("zero_hpz_partition_size", 1)) > 1:
            parameters += -(-n // hpz) * FP32  # the node's own copy; it serves the second gathering
        gathers = 1 if kept else 2
        weight_bytes = n - small if zero.get("zero_quantized_weights") else _sent_bytes(facts, n - small, config)
        gradient_bytes = trained // 2 if zero.get("zero_quantized_gradients") else _sent_bytes(facts, trained, config)
        gathered_bytes = accumulation * gathers * weight_bytes + small * FP32
        messages = {"all_gather": gathered_bytes, "reduce_scatter": accumulation * gradient_bytes}
        if optimizer_on != "none":
            gradients = optimizer = 0
        if parameters_on != "none":
            parameters -= partition
        host, disk = _offloaded(zero, share, partition, optimizer_on, parameters_on)

    activations = facts.activation_bytes + micro_batch * facts.activation_bytes_per_post
    return MemoryPlan(
        parameters, gathered, gradients, optimizer, buffers, activations, host, disk, messages, world_size
    )


def _sent_bytes(facts: ModelFacts, n: int, config: dict) -> int:
    """Return the bytes of n elements between ranks, in DeepSpeed's communication types."""
    if config.get("communication_data_type") in ("fp16", "bf16"):
        return n * HALF
    if config.get("torch_autocast", {}).get("enabled", False):
        return n * FP32 - min(n, facts.n_low_precision) * (FP32 - HALF)
    return n * FP32


def _offloaded(zero: dict, share: int, partition: int, optimizer_on: str, parameters_on: str) -> tuple[int, int]:
    """Return the (host, disk) bytes of a rank at stage 3. On NVMe (not measured) the staging buffers are on the host."""
    host = disk = 0
    if optimizer_on == "nvme":
        tile = min(share, int(zero.get("sub_group_size", 1e9)) * FP32)
        host += 2 * share + 2 * zero["offload_optimizer"].get("buffer_count", 4) * tile
        disk += 3 * share
    elif optimizer_on == "cpu":
        host += 5 * share
    if parameters_on == "nvme":
        block = zero["offload_param"]
        host += int(block.get("buffer_count", 5) * block.get("buffer_size", 1e8)) * FP32
        disk += partition
    elif parameters_on == "cpu":
        host += partition
    return host, disk


def megabytes(n_bytes: int) -> str:
    """Return a size as text, rounded up: "1,235 MB"."""
    return f"{-(-n_bytes // 10**6):,} MB"
