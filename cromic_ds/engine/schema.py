"""What DeepSpeed accepts in its JSON: the keys at every level with their types.

DeepSpeed itself refuses unknown keys only inside the blocks that are pydantic models; a typo elsewhere (at the top level,
in `torch_autocast`, `aio`, `flops_profiler`, `activation_checkpointing`, `checkpoint` and `data_types`) passes silently. The
keys of the pydantic blocks come from the models and so follow the installed version; the other keys are listed here.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cromic_ds.errors import UserError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

AUTO = "auto"

# Valid for DeepSpeed, but decided elsewhere: in the JSON they would have no effect or contradict the recipe.
NOT_HERE = {
    "optimizer": "the recipe's `optim` section decides; remove this block",
    "scheduler": "the recipe's `optim` section decides; remove this block",
    "bfloat16": "this is an old name of 'bf16', and mixed precision is the recipe's `precision`; remove this block",
    "data_efficiency": "the order of examples is the recipe's; remove this block",
    "pipeline": "the models are not pipeline modules; remove this block",
    "tensor_parallel": "the models are not split by tensor; remove this block",
    "sequence_parallel_size": "the models are not split by sequence; remove this key",
    "expert_parallel": "the models have no experts; remove this block",
    "hybrid_engine": "it is for generation inside reinforcement learning; remove this block",
    "autotuning": "`cromic-ds plan` shows what fits; remove this block",
    "weight_quantization": "it is for inference; remove this block",
    "datastates_ckpt": "checkpoints are written by the training loop; remove this block",
    "gradient_allreduce_op": "the loss is normalized for the mean over ranks, which is the default; remove this key",
}


def blocks() -> dict[str, Any]:
    """Return the type of each top-level key: a plain type, a pydantic model, or a nested dict of the same."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    dtype = Literal["fp32", "fp16", "bf16"]
    return {
        "train_batch_size": int,
        "train_micro_batch_size_per_gpu": int,
        "gradient_accumulation_steps": int,
        "managed_gradient_accumulation": bool,
        "gradient_clipping": float,
        "prescale_gradients": bool,
        "gradient_predivide_factor": float,
        "communication_data_type": dtype | None,
        "seq_parallel_communication_data_type": dtype,
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_allow_untested_optimizer": bool,
        "zero_force_ds_cpu_optimizer": bool,
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
        "torch_autocast": {
            "enabled": bool,
            "dtype": Literal["bfloat16", "float16"],
            "lower_precision_safe_modules": list[str] | None,
        },
        "data_types": {
            "grad_accum_dtype": dtype | None,
            "param_dtype": dtype | None,
            "buffer_dtype": dtype | None,
            "keep_in_fp32_modules": list[str],
        },
        "activation_checkpointing": {k: bool if v is False else int | None for k, v in ACT_CHKPT_DEFAULT.items()},
        "compile": CompileConfig,
        "aio": {k: type(v) for k, v in AIO_DEFAULT_DICT.items()},
        "checkpoint": {
            "tag_validation": Literal["Ignore", "Warn", "Fail", "IGNORE", "WARN", "FAIL"],
            "load_universal": bool,
            "use_node_local_storage": bool,
            "checkpoint_serialization": bool,
            "parallel_write": {"pipeline_stage": bool},
            "writer": {
                "type": str,
                "io_buffer_size": int,
                "io_buffer_double": bool,
                "show_statistics": bool,
                "data_parallel": str | None,
                "decoupled": bool,
                "io_multiplier": int,
            },
        },
        "flops_profiler": {
            "enabled": bool,
            "recompute_fwd_factor": float,
            "profile_step": int,
            "module_depth": int,
            "top_modules": int,
            "detailed": bool,
            "output_file": str | None,
        },
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
        "comet": CometConfig,
        "timers": {"throughput": DeepSpeedThroughputTimerConfig},
        "wall_clock_breakdown": bool,
        "memory_breakdown": bool,
        "steps_per_print": int | None,
        "log_level": str | None,
        "dump_state": bool,
        "disable_python_gc": bool,
        "disable_allgather": bool,
        "dataloader_drop_last": bool,
        "vocabulary_size": int | None,
        "use_data_before_expert_parallelism": bool,
    }


def check_schema(config: dict[str, Any], source: str) -> None:
    """Raise UserError for unknown keys at any level (naming the nearest valid one), removed keys, and values of wrong types.

    The string "auto" passes anywhere: `resolve` knows which keys it can fill and refuses the others.
    """
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS

    removed = {**_REMOVED_TOP_LEVEL_CONFIG_KEYS, **_REMOVED_ZERO_CONFIG_KEYS}
    _check_block(config, blocks(), (), source, removed)


def strings_of(config: Any, wanted: str, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all values equal to `wanted`, at any depth."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from strings_of(value, wanted, (*path, key))
    elif isinstance(config, list):
        for item in config:
            yield from strings_of(item, wanted, path)
    elif config == wanted:
        yield path


def _check_block(block: Any, spec: dict[str, Any], path: tuple[str, ...], source: str, removed: dict[str, str]) -> None:
    if not isinstance(block, dict):
        raise UserError(f"{source}: {'.'.join(path) or 'the file'} must be an object {{...}}, not {json.dumps(block)}")
    for key, value in block.items():
        here = (*path, key)
        if not path and key in NOT_HERE:
            raise UserError(f"{source}: {key}: {NOT_HERE[key]}")
        if key in removed and key not in spec:
            raise UserError(f"{source}: {'.'.join(here)}: {removed[key].split('. ')[0]}; remove it")
        if key not in spec:
            raise UserError(f"{source}: {'.'.join(here)}: unknown key{nearest(key, spec)}")
        expected = spec[key]
        if value == AUTO and expected is not str:
            continue
        if isinstance(expected, dict):
            _check_block(value, expected, here, source, removed)
        elif model := _model_in(expected):
            if value is not None:
                _check_model(value, model, here, source, removed)
        else:
            _check_value(value, expected, here, source)


def _check_model(
    block: Any, model: type[BaseModel], path: tuple[str, ...], source: str, removed: dict[str, str]
) -> None:
    """Check a block that DeepSpeed reads into a pydantic model: its keys and types, then the model's own validators."""
    spec: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, info in model.model_fields.items():
        extra: Any = info.json_schema_extra or {}
        key = info.alias or name
        if extra.get("deprecated"):
            removed = {**removed, key: f"'{key}' is deprecated, use '{extra['new_param']}'"}
            continue
        names[name] = key
        spec[key] = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    if isinstance(block, dict):  # a field may also be given by its name without the alias: DeepSpeed accepts both
        block = {names.get(key, key): value for key, value in block.items()}
    _check_block(block, spec, path, source, removed)
    try:
        model(**_without_auto(block))
    except (ValueError, AssertionError, TypeError) as error:  # pydantic's ValidationError is a ValueError
        raise UserError(f"{source}: {'.'.join(path)}: {_first_reason(error)}") from None


def _without_auto(block: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_auto(v) if isinstance(v, dict) else v for k, v in block.items() if v != AUTO}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in `Model`, `Model | None` or `Annotated[Model, ...]`, None for other types."""
    from pydantic import BaseModel

    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _check_value(value: Any, expected: Any, path: tuple[str, ...], source: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    # JSON has only one kind of number: 5e8 is a valid integer, and 1 a valid float.
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    try:
        TypeAdapter(expected).validate_json(json.dumps(number), strict=True)
    except ValidationError as error:
        raise UserError(f"{source}: {'.'.join(path)} is {json.dumps(value)}: {_first_reason(error)}") from None


def _first_reason(error: Exception) -> str:
    """Return the first line of an error, or the first reason of a pydantic ValidationError."""
    from pydantic import ValidationError

    reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error).splitlines()[0]
    return reason.removeprefix("Value error, ").removeprefix("Assertion failed, ").removeprefix("Input ")
