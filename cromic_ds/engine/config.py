"""Reading a DeepSpeed JSON strictly: it is refused if DeepSpeed would misread it, and its "auto" values are filled.

The JSON decides how a run is parallelized, the recipe everything about learning. DeepSpeed ignores unknown keys, keeps "auto"
as a string and clips gradients at 1.0 by default, so everything that it gets is checked here first.
"""

import copy
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cromic_ds.batch import BatchSplit
from cromic_ds.engine.operations import works
from cromic_ds.engine.schema import AUTO, check_schema, strings_of
from cromic_ds.errors import UserError
from cromic_ds.models.common.precision import AUTOCAST
from cromic_ds.shipped import shipped

DEFAULT_MICRO_BATCH = {"cuda": 64, "cpu": 8}
DEFAULT_NVME_PATH = Path(tempfile.gettempdir()) / "cromic_ds_offload"  # $TMPDIR, if that is set


@dataclass(frozen=True)
class ResolveFacts:
    """The values that the recipe and the launch decide, which replace "auto"."""

    batch: BatchSplit
    ranks_per_node: int = 1
    device: str = "cpu"  # or "cuda"
    precision: str = "fp32"  # or "bf16", "fp16", as `choose_precision` returns it
    clip: float = 1.0  # largest global gradient norm; 0 = no clipping
    hidden_size: int = 768  # width of the model, which the sizes of ZeRO-3's buckets follow
    source: str = "DeepSpeed config"  # the path of the JSON, for messages

    @property
    def nodes(self) -> int:
        return max(1, self.batch.world_size // self.ranks_per_node)


def load_ds_config(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raise UserError if it cannot be read, is not JSON, or repeats a key."""
    path = Path(path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{path}: the key {key!r} occurs twice; keep one")
        return dict(pairs)

    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a DeepSpeed JSON such as ds_configs/zero3.json") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; give the path of a DeepSpeed JSON") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold one JSON object {{...}}")
    return config


def resolve(config: dict[str, Any], facts: ResolveFacts, this_machine: bool = True) -> dict[str, Any]:
    """Return a copy of `config` for DeepSpeed: checked, with every "auto" filled and every silent default written out.

    `this_machine` also checks that what the run needs is installed and writable here.
    """
    check_schema(config, facts.source)
    filled = fill(config, facts)
    validate(filled, facts, this_machine)
    for path in strings_of(filled, AUTO):
        raise UserError(f'{facts.source}: {".".join(path)}: "auto" has no meaning here; give a value or remove the key')
    return filled


def validate(config: dict, facts: ResolveFacts, this_machine: bool = True) -> None:
    """Raise UserError for unknown or mistyped keys and for values that contradict the run; "auto" contradicts nothing.

    Starts no process group and compiles nothing.
    """
    check_schema(config, facts.source)
    for check in (check_precision, check_batch, check_clipping, check_stage, check_zero_plus_plus):
        check(config, facts)
    if this_machine:
        check_offload(config, facts)


def fill(config: dict[str, Any], facts: ResolveFacts) -> dict[str, Any]:
    """Return a copy with "auto" replaced, and with our values where we do not want DeepSpeed's defaults."""
    config = copy.deepcopy(config)
    zero = config.setdefault("zero_optimization", {"stage": 0})
    autocast = {"enabled": facts.precision in AUTOCAST, "dtype": AUTOCAST.get(facts.precision, "bfloat16")}
    quantized = facts.precision == "fp32" and facts.device == "cuda" and facts.nodes > 1
    bucket = max(facts.hidden_size**2, 2**20)  # hidden² as transformers does; below 4 MB a message costs mostly latency
    values = {
        ("train_batch_size",): facts.batch.global_batch,
        ("train_micro_batch_size_per_gpu",): facts.batch.micro_batch,
        ("gradient_accumulation_steps",): facts.batch.accumulation,
        ("gradient_clipping",): float(facts.clip),
        ("communication_data_type",): "fp16" if quantized else "fp32",
        ("torch_autocast", "enabled"): autocast["enabled"],
        ("torch_autocast", "dtype"): autocast["dtype"],
        ("zero_optimization", "reduce_bucket_size"): bucket,
        ("zero_optimization", "allgather_bucket_size"): bucket,
        ("zero_optimization", "stage3_prefetch_bucket_size"): bucket * 9 // 10,
        # A parameter that stays unsharded costs an all-gather of its own after each step; our layers are gathered as a whole.
        ("zero_optimization", "stage3_param_persistence_threshold"): 0,
        ("zero_optimization", "zero_hpz_partition_size"): facts.ranks_per_node if facts.nodes > 1 else 1,
        ("zero_optimization", "zero_quantized_weights"): quantized,
        ("zero_optimization", "zero_quantized_gradients"): quantized,
    }
    for block in ("offload_param", "offload_optimizer"):
        values["zero_optimization", block, "pin_memory"] = facts.device == "cuda"
        values["zero_optimization", block, "nvme_path"] = str(DEFAULT_NVME_PATH)
    for path in list(strings_of(config, AUTO)):
        if path in values:
            inner = config
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = values[path]
    for path, value in values.items():
        if len(path) == 1 and path != ("communication_data_type",):
            config.setdefault(path[0], value)
    config.setdefault("torch_autocast", autocast)
    config.setdefault("zero_allow_untested_optimizer", True)
    # DeepSpeed's own printing and its timer (which waits for the device at every step) duplicate our log.
    config.setdefault("steps_per_print", 2**31 - 1)  # never
    config.setdefault("timers", {"throughput": {"enabled": False, "synchronized": False}})
    if zero.get("stage") == 3:
        zero.setdefault("stage3_gather_16bit_weights_on_model_save", True)
    return config


def split_batch(
    config: dict, global_batch: int, world_size: int, micro_batch: int | None = None, device: str = "cpu"
) -> BatchSplit:
    """Return how a step's posts are split. Raise UserError if the sizes do not divide.

    The micro-batch is `micro_batch` (the recipe's), else the JSON's, else the largest that divides, up to the device's default.
    A run that resumes on another number of ranks keeps its micro-batch and changes the accumulation.
    """
    in_json = config.get("train_micro_batch_size_per_gpu")
    if micro_batch is None and isinstance(in_json, int):
        micro_batch = in_json
    return BatchSplit.derive(global_batch, world_size, micro_batch, DEFAULT_MICRO_BATCH[device])


# ---- values that contradict the run


def check_precision(config: dict, facts: ResolveFacts) -> None:
    where, autocast = facts.source, config.get("torch_autocast", {})
    enabled = [key for key in ("fp16", "bf16", "torch_autocast") if config.get(key, {}).get("enabled") is True]
    dtype = _given(autocast, "dtype")
    if len(enabled) > 1:
        raise UserError(f"{where}: {' and '.join(enabled)} are both enabled; keep torch_autocast alone")
    if facts.device == "cpu" and ("fp16" in enabled or ("torch_autocast" in enabled and dtype == "float16")):
        raise UserError(f"{where}: fp16 on a CPU; set precision to bf16 or fp32, or run on a GPU")
    for key in ("bf16", "fp16"):
        if key in enabled:
            raise UserError(
                f"{where}: {key}.enabled converts BatchNorm's weights to {key} beside fp32 statistics, which fails; "
                f"use precision {key} (torch_autocast)"
            )
    wanted = AUTOCAST.get(facts.precision)
    on = _given(autocast, "enabled")
    if on is not None and (on != bool(wanted) or (on and dtype not in (None, wanted))):
        raise UserError(
            f"{where}: torch_autocast is {dtype if on else 'off'} but the precision of the run is {facts.precision}; "
            'write "auto" and choose with the recipe\'s precision'
        )


def check_batch(config: dict, facts: ResolveFacts) -> None:
    for key, value in (
        ("train_batch_size", facts.batch.global_batch),
        ("train_micro_batch_size_per_gpu", facts.batch.micro_batch),
        ("gradient_accumulation_steps", facts.batch.accumulation),
    ):
        if _given(config, key) not in (None, value):
            raise UserError(
                f"{facts.source}: {key} is {config[key]} but the run has {value} "
                f'({facts.batch}); write "auto" or change the recipe'
            )


def check_clipping(config: dict, facts: ResolveFacts) -> None:
    if _given(config, "gradient_clipping") not in (None, facts.clip):
        raise UserError(
            f"{facts.source}: gradient_clipping is {config['gradient_clipping']} but the recipe clips at {facts.clip}; "
            'write "auto" and set the recipe\'s clip'
        )


STAGE_3_ONLY = ("offload_param", "zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients")


def check_stage(config: dict, facts: ResolveFacts) -> None:
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    for key in zero if stage != 3 else ():
        where = f"{facts.source}: zero_optimization.{key}"
        if key in STAGE_3_ONLY or key.startswith("stage3_"):
            raise UserError(f"{where} needs stage 3, and the stage is {stage}; remove one")
        if key == "offload_optimizer" and stage == 0:
            raise UserError(f"{where} needs stage 1, 2 or 3, and the stage is 0; remove one")


def check_offload(config: dict, facts: ResolveFacts) -> None:
    zero = config.get("zero_optimization", {})
    for key in ("offload_optimizer", "offload_param"):
        block = zero.get(key) or {}
        where = f"{facts.source}: zero_optimization.{key}"
        device = block.get("device", "none")
        if device == "nvme":
            path = block.get("nvme_path")
            if zero.get("stage") != 3:
                raise UserError(f"{where}: offloading to NVMe needs stage 3; set stage 3 or device cpu")
            if not path:
                raise UserError(f"{where}: device nvme needs nvme_path, a folder on a local disk")
            if path == str(DEFAULT_NVME_PATH):
                DEFAULT_NVME_PATH.mkdir(exist_ok=True)
            if path != AUTO and not (Path(path).is_dir() and os.access(path, os.W_OK | os.X_OK)):
                raise UserError(f"{where}: nvme_path {path} is not a writable folder; create it or name another")
            if not works("AsyncIOBuilder"):
                raise UserError(
                    f"{where}: device nvme needs DeepSpeed's async_io: install libaio with headers (libaio-dev)"
                )
        if key == "offload_optimizer" and device != "none" and not works("CPUAdamBuilder"):
            raise UserError(
                f"{where}: device {device} needs DeepSpeed's CPU Adam, which cannot compile: install g++ and ninja"
            )


def check_zero_plus_plus(config: dict, facts: ResolveFacts) -> None:
    zero = config.get("zero_optimization", {})
    where, world_size = f"{facts.source}: zero_optimization", facts.batch.world_size
    hpz = _given(zero, "zero_hpz_partition_size") or 1
    if world_size % hpz:
        raise UserError(
            f"{where}.zero_hpz_partition_size {hpz} does not divide {world_size} ranks; use the ranks per node or 1"
        )
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(key) is not True:
            continue
        if facts.device != "cuda":
            raise UserError(
                f'{where}.{key} needs CUDA kernels, and this run is on {facts.device}; write "auto" or false'
            )
        if facts.precision in AUTOCAST:
            # Weights: DeepSpeed asserts. Gradients: its kernel reads the bytes of every gradient as fp16, even of bf16 ones.
            raise UserError(
                f'{where}.{key} needs precision fp32, and the run\'s is {facts.precision}; write "auto" or false'
            )
        if key == "zero_quantized_gradients" and _given(config, "communication_data_type") not in (None, "fp16"):
            raise UserError(
                f'{where}.{key} needs communication_data_type "fp16", the type its kernel reads; or write "auto"'
            )


# ---- helpers


def _given(block: dict[str, Any], key: str) -> Any:
    """Return the value of `key`, None if it is missing or "auto"."""
    value = block.get(key)
    return None if value == AUTO else value


def offloads_optimizer(config: dict) -> bool:
    """Return whether the optimizer's state is kept in CPU memory or on NVMe."""
    return (config["zero_optimization"].get("offload_optimizer") or {}).get("device", "none") != "none"


def find_ds_config(name: str) -> Path:
    """Return a DeepSpeed JSON by its path, or a shipped one by its name (`zero2`, `zero2.json`, `ds_configs/zero2.json`).

    Raises UserError if there is neither.
    """
    folder = shipped("ds_configs")
    for path in (Path(name), folder / Path(name).name, folder / f"{name}.json"):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in folder.glob("*.json")))
    raise UserError(f"ds_config: no file {name!r}, and none of the shipped configurations ({known})")
