"""What a model needs on each GPU under each DeepSpeed config, and which configs fit. Nothing is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from cromic_ds.batch import Batch
from cromic_ds.engine.config import ResolveFacts, find_ds_config, load_ds_config, resolve, split_batch
from cromic_ds.engine.memory import MemoryPlan, ModelFacts, memory_plan, model_facts
from cromic_ds.errors import UserError
from cromic_ds.models.common.precision import AUTOCAST
from cromic_ds.shipped import shipped

if TYPE_CHECKING:
    from rich.console import Console

GIB = 2**30
ALLOCATOR = 0.9
"""Share of a GPU's memory that tensors can fill; the CUDA context, libraries and fragmentation take the rest."""


@dataclass
class PlanSettings:
    """A model and the machines to train it on."""

    model: str = "paper"
    """Preset of cmt: tiny, small, paper, large or xl; or another model and its preset, as vlp/paper, vilt/small."""
    ds_config: str | None = None
    """DeepSpeed JSON of your own to plan for, in addition to the shipped ones; null = only the shipped ones."""
    gpus: int = 8
    """GPUs per node."""
    nodes: int = 1
    """Nodes."""
    gpu_memory: float = 80.0
    """Memory of a GPU in GiB."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Number format of the computation."""
    global_batch: int | None = None
    """Posts per optimizer step; null = 64 for each GPU."""
    micro_batch: int | None = None
    """Posts per forward pass and GPU; null = the largest divisor of a GPU's share of the global batch up to 64."""
    post_tokens: int = 40
    """Length of a post in tokens, [CLS] and [SEP] included."""
    comments: int = 10
    """Comments per post that a step trains on: `data.comments_per_post` of the run."""
    comment_tokens: int = 25
    """Length of a comment in tokens, [CLS] and [SEP] included."""
    posts: int = 1_000_000
    """Posts of a whole run, over all epochs together, for its GPU hours."""
    gpu_tflops: float = 989.0
    """Dense 16-bit peak of a GPU in TFLOP/s: H100 989, A100 312."""
    mfu: float = 0.3
    """Share of that peak that is reached. This is an assumption; the log of a run says what it reaches."""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        counts = ("gpus", "nodes", "global_batch", "micro_batch", "comments", "posts")
        others = {"gpu_memory": 0.1, "post_tokens": 0, "comment_tokens": 2}
        for name, minimum in {**dict.fromkeys(counts, 1), **others}.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"{name} is {value}: must be at least {minimum}")
        for name in ("gpu_tflops", "mfu"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}: must be above 0")


@dataclass(frozen=True)
class PlanRow:
    """The plan for one config."""

    name: str
    stage: int
    plan: MemoryPlan
    fits: bool
    largest_micro_batch: int  # most posts that fit into a forward pass; 0 if not even one does


def plan(settings: PlanSettings) -> None:
    """`cromic-ds plan`: print parameters, memory of a GPU, bytes sent in a step, and which configs fit."""
    from rich.console import Console

    facts = measure(settings)
    render(settings, facts, list(plan_rows(settings, facts)), Console())


def measure(settings: PlanSettings) -> ModelFacts:
    """Measure a preset's real modules in a real forward pass, on tensors that have sizes but no memory.

    Activations are the tensors that autograd saves in a forward pass on one and on two posts. Their count equals that of a real
    forward pass on a CPU. On a GPU, other kernels save slightly different tensors and temporaries are added: assume ±20%.
    """
    from torch._subclasses import FakeTensorMode
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from cromic_ds.models.registry import build_config, build_model

    kind, _, preset = settings.model.rpartition("/")
    config = build_config(kind or "cmt", preset)
    with FakeTensorMode() as sizes_only:
        model = build_model(config).train()
        with unset_fake_temporarily():  # draws need values
            batches = [model.draw(full_batch(posts, settings, config.image_size), seed=0) for posts in (1, 2)]
        one, two = (saved_bytes(model, batch.map(sizes_only.from_tensor), settings.precision) for batch in batches)
    return replace(
        model_facts(model),
        activation_bytes=max(0, 2 * one - two),
        activation_bytes_per_post=two - one,
        flops_per_post=model.flops_formula()(batches[0]),
    )


def full_batch(n_posts: int, settings: PlanSettings, image_size: int) -> Batch:
    """Return a batch of posts, comments and images at their full lengths."""
    n_comments, n_targets = n_posts * settings.comments, settings.comment_tokens - 1
    rows = torch.arange(n_comments * n_targets)
    return Batch(
        post_ids=torch.ones(n_posts, settings.post_tokens, dtype=torch.long),
        post_lengths=torch.full((n_posts,), settings.post_tokens),
        images=torch.zeros(n_posts, 3, image_size, image_size, dtype=torch.uint8),
        comment_ids=torch.ones(n_comments, settings.comment_tokens, dtype=torch.long),
        owner=torch.arange(n_posts).repeat_interleave(settings.comments),
        rows=rows,
        post_rows=rows,
        tokens_per_post=settings.comments * n_targets,
        weights=torch.ones(n_posts),
        indices=list(range(n_posts)),
        n_targets=len(rows),
    )


def saved_bytes(model: torch.nn.Module, batch: Batch, precision: str) -> int:
    """Return the bytes of the distinct storages, without parameters, that a forward pass keeps for its backward pass."""
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # a reference, so that the address is not used again
        return tensor

    autocast = torch.autocast("cpu", getattr(torch, AUTOCAST.get(precision, "bfloat16")), precision in AUTOCAST)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast:
        loss = model(batch)
    for p in model.parameters():
        storages.pop(p.untyped_storage()._cdata, None)
    del loss
    return sum(storage.nbytes() for storage in storages.values())


def plan_rows(settings: PlanSettings, facts: ModelFacts) -> Iterator[PlanRow]:
    """Yield a row for the given config, if any, and for each shipped one."""
    folder = shipped("ds_configs")
    paths = [find_ds_config(settings.ds_config)] if settings.ds_config else []
    paths += [p for p in sorted(folder.glob("*.json")) if p.resolve() not in [q.resolve() for q in paths]]
    if not paths:
        raise UserError(f"{folder}: no DeepSpeed configs in it; name one with --ds_config")
    world_size = settings.gpus * settings.nodes
    budget = settings.gpu_memory * GIB * ALLOCATOR
    for path in paths:
        config = load_ds_config(path)
        global_batch = settings.global_batch or 64 * world_size
        batch = split_batch(config, global_batch, world_size, settings.micro_batch, "cuda")
        resolve_facts = ResolveFacts(batch, settings.gpus, "cuda", settings.precision, source=str(path))
        config = resolve(config, resolve_facts, this_machine=False)
        result = memory_plan(facts, config, world_size)
        rest = budget - (result.device - result.activations) - facts.activation_bytes
        yield PlanRow(
            name=path.stem if path.resolve().parent == folder else str(path),
            stage=config["zero_optimization"].get("stage", 0),
            plan=result,
            fits=result.device <= budget,
            largest_micro_batch=max(0, int(rest // max(1, facts.activation_bytes_per_post))),
        )


def render(settings: PlanSettings, facts: ModelFacts, rows: list[PlanRow], console: Console) -> None:
    """Print the tables."""
    from rich.table import Table

    world_size = settings.gpus * settings.nodes
    console.print(
        f"[bold]{settings.model}[/]: {facts.n_parameters:,} parameters ({gib(4 * facts.n_parameters)} GiB in fp32), "
        f"{world_size} × GPU of {settings.gpu_memory:g} GiB on {settings.nodes} × node, {settings.precision}; activations "
        f"{facts.activation_bytes_per_post / 2**20:.0f} MiB a post + {facts.activation_bytes / 2**20:.0f} MiB, about ±20%"
    )
    per_second = settings.mfu * settings.gpu_tflops * 1e12 / (3 * facts.flops_per_post)  # backward is twice forward
    console.print(
        f"{3 * facts.flops_per_post / 1e12:.3g} TFLOP a post; at {settings.mfu:.0%} of {settings.gpu_tflops:g} TFLOP/s that is "
        f"{per_second:,.0f} posts/s a GPU, and {settings.posts / per_second / 3600:,.1f} GPU hours for {settings.posts:,} posts"
    )
    memory = Table("", title="GiB per GPU (state within 10%; the total is an upper bound)", box=None, pad_edge=False)
    sent = Table("", title="GiB per optimizer step", box=None, pad_edge=False)
    for row in rows:
        for table in (memory, sent):
            table.add_column(row.name.replace("_", "\n"), justify="right", no_wrap=True)
    labels = {"device": "total", "host": "host/rank", "disk": "disk/rank"}
    for name in ("parameters", "gathered", "gradients", "optimizer", "buffers", "activations", *labels):
        memory.add_row(labels.get(name, name), *(gib(getattr(row.plan, name)) for row in rows))
    memory.add_row("fits", *("[green]yes[/]" if row.fits else "[red]no[/]" for row in rows))
    memory.add_row("max posts", *(str(row.largest_micro_batch) for row in rows))
    for name in ("all_reduce", "reduce_scatter", "all_gather"):
        sent.add_row(name.replace("_", "-"), *(gib(row.plan.messages.get(name, 0)) for row in rows))
    sent.add_row("sent by a GPU", *(gib(row.plan.sent) for row in rows))
    console.print(memory)
    console.print(sent)
    fitting = [row.name for row in rows if row.fits]
    console.print(f"fit into {ALLOCATOR:.0%} of {settings.gpu_memory:g} GiB: {', '.join(fitting) or 'none'}")
    best = max(rows, key=lambda row: (row.largest_micro_batch, -row.plan.disk, -row.plan.host))
    if not fitting and best.largest_micro_batch:
        console.print(f"{best.name} fits with --micro_batch {best.largest_micro_batch} or less")


def gib(n_bytes: int) -> str:
    """Return GiB with three significant digits, or a dash for 0."""
    return f"{n_bytes / GIB:.3g}" if n_bytes else "–"
