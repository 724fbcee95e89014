"""DeepSpeed configs: the shipped ones resolve, mistakes that DeepSpeed would accept are refused, and "auto" is filled."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.paths import CONFIGS, REPOSITORY

from cromic_ds.batch import BatchSplit
from cromic_ds.engine import config as ds_config
from cromic_ds.engine.config import ResolveFacts, load_ds_config, resolve, split_batch, validate
from cromic_ds.engine.schema import AUTO, NOT_HERE, blocks, strings_of
from cromic_ds.errors import UserError
from cromic_ds.models.common.precision import choose_precision, cpu_has_bf16

CPU = ResolveFacts(BatchSplit(64, 8, 2), ranks_per_node=2, source="test.json")
GPUS = replace(CPU, batch=BatchSplit(512, 32, 16), ranks_per_node=8, device="cuda", precision="bf16")


def refused(config: dict, facts: ResolveFacts = CPU, **changes) -> str:
    with pytest.raises(UserError) as error:
        resolve(config, replace(facts, **changes))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("test.json: ")


def zero(stage: int, options: dict) -> dict:
    return {"zero_optimization": {"stage": stage, **options}}


# ---- the shipped ones


def test_configs_and_the_memory_plan_are_read_without_deepspeed():
    code = "import sys, cromic_ds.engine.config, cromic_ds.engine.memory; assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_seven_configs_are_shipped_and_described():
    names = sorted(path.name for path in CONFIGS.glob("*.json"))
    assert names == [
        "zero0.json", "zero1.json", "zero2.json", "zero3.json",
        "zero3_multinode.json", "zero3_nvme.json", "zero3_offload.json",
    ]  # fmt: skip
    readme = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in names)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("facts", [CPU, replace(CPU, precision="bf16"), GPUS, replace(GPUS, precision="fp32")], ids=str)
def test_every_shipped_config_resolves_and_deepspeed_reads_it(path: Path, facts: ResolveFacts):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = load_ds_config(path)
    resolved = resolve(config, facts, this_machine=False)
    assert not list(strings_of(resolved, AUTO))
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["train_batch_size"] == facts.batch.global_batch
    assert resolved["torch_autocast"] == {"enabled": facts.precision == "bf16", "dtype": "bfloat16"}
    zero = DeepSpeedZeroConfig(**resolved["zero_optimization"])
    assert zero.stage == int(path.stem[4])
    assert zero.gather_16bit_weights_on_model_save is (zero.stage == 3)
    assert validate(config, facts, this_machine=False) is None


def test_values_that_follow_the_model_and_the_machines():
    multinode = load_ds_config(CONFIGS / "zero3_multinode.json")
    wide = resolve(multinode, replace(GPUS, hidden_size=1536))
    zero = wide["zero_optimization"]
    assert zero["reduce_bucket_size"] == 1536**2
    assert zero["stage3_prefetch_bucket_size"] == 1536**2 * 9 // 10
    assert zero["stage3_param_persistence_threshold"] == 0
    assert (zero["zero_hpz_partition_size"], zero["zero_quantized_weights"], zero["zero_quantized_gradients"]) == (
        8,
        False,
        False,
    )
    assert wide["communication_data_type"] == "fp32"
    fp32 = resolve(multinode, replace(GPUS, precision="fp32"))
    assert fp32["zero_optimization"]["zero_quantized_weights"] and fp32["zero_optimization"]["zero_quantized_gradients"]
    assert fp32["communication_data_type"] == "fp16"
    one_node = resolve(multinode, replace(GPUS, precision="fp32", batch=BatchSplit(256, 32, 8)))
    assert one_node["zero_optimization"]["zero_hpz_partition_size"] == 1
    assert not one_node["zero_optimization"]["zero_quantized_weights"]
    assert resolve({}, CPU)["zero_optimization"] == {"stage": 0}


def test_silent_defaults_are_spelled_out():
    config = resolve({"zero_optimization": {"stage": 3}}, replace(CPU, clip=0.5))
    assert config["gradient_clipping"] == 0.5
    assert config["steps_per_print"] > 10**9
    assert config["timers"]["throughput"]["enabled"] is False
    assert config["zero_allow_untested_optimizer"] is True
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


# ---- reading


def test_a_file_that_is_not_json_is_named_with_line_and_column(tmp_path: Path):
    path = tmp_path / "bad.json"
    path.write_text('{\n  "zero_optimization": {"stage": 3,}\n}')
    with pytest.raises(UserError, match=r"bad\.json: line 2, column \d+: "):
        load_ds_config(path)
    path.write_text('{"fp16": {}, "fp16": {}}')
    with pytest.raises(UserError, match="the key 'fp16' occurs twice"):
        load_ds_config(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="one JSON object"):
        load_ds_config(path)
    with pytest.raises(UserError, match="No such file"):
        load_ds_config(tmp_path / "absent.json")


# ---- unknown, mistyped, elsewhere


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimisation": {"stage": 3}}, "zero_optimisation: unknown key (did you mean 'zero_optimization'?)"),
        ({"gradient_cliping": 1.0}, "gradient_cliping: unknown key (did you mean 'gradient_clipping'?)"),
        (
            {"zero_optimization": {"stage": 3, "stage3_prefetch_bucketsize": 1}},
            "zero_optimization.stage3_prefetch_bucketsize: unknown key (did you mean 'stage3_prefetch_bucket_size'?)",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_mem": True}}},
            "zero_optimization.offload_param.pin_mem: unknown key (did you mean 'pin_memory'?)",
        ),
        ({"torch_autocast": {"enable": True}}, "torch_autocast.enable: unknown key (did you mean 'enabled'?)"),
        ({"aio": {"blocksize": 1}}, "aio.blocksize: unknown key (did you mean 'block_size'?)"),
        (
            {"flops_profiler": {"enabled": False, "module_dept": 1}},
            "flops_profiler.module_dept: unknown key (did you mean 'module_depth'?)",
        ),
        (
            {"activation_checkpointing": {"cpu_checkpoint": True}},
            "activation_checkpointing.cpu_checkpoint: unknown key (did you mean 'cpu_checkpointing'?)",
        ),
        (
            {"checkpoint": {"parallel_write": {"stage": True}}},
            "checkpoint.parallel_write.stage: unknown key (did you mean 'pipeline_stage'?)",
        ),
        ({"comms_logger": {"verbos": True}}, "comms_logger.verbos: unknown key (did you mean 'verbose'?)"),
        (
            {"timers": {"throughput": {"enable": True}}},
            "timers.throughput.enable: unknown key (did you mean 'enabled'?)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unknown_keys_at_any_level_are_named_with_the_nearest(config: dict, message: str):
    assert refused(config) == message


@pytest.mark.parametrize(
    ("config", "beginning"),
    [
        ({"zero_optimization": 3}, "zero_optimization must be an object"),
        ({"zero_optimization": {"stage": "3"}}, 'zero_optimization.stage is "3": '),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4: "),
        ({"zero_optimization": {"stage": 2, "overlap_comm": 1}}, "zero_optimization.overlap_comm is 1: "),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1.5}},
            "zero_optimization.reduce_bucket_size is 1.5: ",
        ),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}}, "zero_optimization.reduce_bucket_size is 0: "),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "gpu"}}},
            'zero_optimization.offload_param.device is "gpu": ',
        ),
        ({"train_batch_size": "64"}, 'train_batch_size is "64": '),
        ({"torch_autocast": {"dtype": "bf16"}}, 'torch_autocast.dtype is "bf16": '),
        ({"fp16": {"enabled": "yes"}}, 'fp16.enabled is "yes": '),
        ({"fp16": {"loss_scale": -1}}, "fp16: fp16.loss_scale must be >= 0"),
        ({"aio": {"queue_depth": True}}, "aio.queue_depth is true: "),
        (
            {"zero_optimization": {"stage": 0, "compute_grad_norm": False}},
            "zero_optimization: compute_grad_norm=false is supported only",
        ),
        ({"wall_clock_breakdown": "auto"}, 'wall_clock_breakdown: "auto" has no meaning here'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistyped_values_are_refused(config: dict, beginning: str):
    assert refused(config).startswith(beginning)


def test_numbers_may_be_written_as_powers_of_ten():
    assert resolve({"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}, CPU)


def test_removed_deprecated_and_foreign_blocks_say_why():
    assert refused({"amp": {}}).startswith("amp: NVIDIA Apex AMP integration has been removed")
    assert "use 'offload_optimizer'" in refused({"zero_optimization": {"stage": 2, "cpu_offload": True}})
    assert refused({"optimizer": {"type": "Adam"}}) == f"optimizer: {NOT_HERE['optimizer']}"
    assert refused({"scheduler": {"type": "WarmupLR"}}) == f"scheduler: {NOT_HERE['scheduler']}"


def test_every_top_level_key_of_deepspeeds_constants_is_known():
    from deepspeed.runtime import constants

    format_help = {name: value for name, value in vars(constants).items() if name.endswith("_FORMAT")}
    names = {name.removesuffix("_FORMAT") for name in format_help}
    keys = {
        vars(constants)[n] for n in names if isinstance(vars(constants).get(n), str) and "\n" not in vars(constants)[n]
    }
    assert len(keys) >= 12
    assert keys <= set(blocks()) | set(NOT_HERE)


# ---- contradictions


@pytest.mark.parametrize(
    ("config", "changes", "part"),
    [
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, {}, "fp16 and bf16 are both enabled"),
        (
            {"fp16": {"enabled": True}, "torch_autocast": {"enabled": True}},
            {},
            "fp16 and torch_autocast are both enabled",
        ),
        ({"fp16": {"enabled": True}}, {}, "fp16 on a CPU"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, {}, "fp16 on a CPU"),
        ({}, {"precision": "fp16"}, "fp16 on a CPU"),
        ({"bf16": {"enabled": True}}, {}, "bf16.enabled converts BatchNorm's weights"),
        ({"fp16": {"enabled": True}}, {"device": "cuda"}, "fp16.enabled converts BatchNorm's weights"),
        (
            {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
            {},
            "torch_autocast is bfloat16 but the precision of the run is fp32",
        ),
        (
            {"torch_autocast": {"enabled": False}},
            {"precision": "bf16"},
            "torch_autocast is off but the precision of the run is bf16",
        ),
        (
            {"train_batch_size": 32},
            {},
            "but the run has 64 (global batch 64 = micro-batch 8 × accumulation 4 × 2 ranks)",
        ),
        ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps is 2 but the run has 4"),
        ({"train_micro_batch_size_per_gpu": 4}, {}, "train_micro_batch_size_per_gpu is 4 but the run has 8"),
        ({"gradient_clipping": 0.5}, {}, "gradient_clipping is 0.5 but the recipe clips at 1.0"),
        (
            zero(2, {"stage3_max_live_parameters": 1}),
            {},
            "zero_optimization.stage3_max_live_parameters needs stage 3, and the stage is 2",
        ),
        (zero(1, {"offload_param": {"device": "cpu"}}), {}, "zero_optimization.offload_param needs stage 3"),
        (zero(0, {"offload_optimizer": {"device": "cpu"}}), {}, "needs stage 1, 2 or 3"),
        (zero(2, {"offload_optimizer": {"device": "nvme", "nvme_path": "/"}}), {}, "offloading to NVMe needs stage 3"),
        (zero(3, {"offload_optimizer": {"device": "nvme"}}), {}, "device nvme needs nvme_path"),
        (
            zero(3, {"offload_param": {"device": "nvme", "nvme_path": "/absent/disk"}}),
            {},
            "nvme_path /absent/disk is not a writable folder",
        ),
        (zero(3, {"zero_hpz_partition_size": 3}), {}, "zero_hpz_partition_size 3 does not divide 2 ranks"),
        (zero(3, {"zero_quantized_weights": True}), {}, "zero_quantized_weights needs CUDA kernels"),
        (
            zero(3, {"zero_quantized_gradients": True}),
            {"device": "cuda", "precision": "bf16"},
            "zero_quantized_gradients needs precision fp32",
        ),
        (
            {**zero(3, {"zero_quantized_gradients": True}), "communication_data_type": "fp32"},
            {"device": "cuda"},
            'needs communication_data_type "fp16"',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradictions_are_refused(config: dict, changes: dict, part: str):
    assert part in refused(config, **changes)


def test_offloading_is_refused_where_its_op_cannot_be_built(monkeypatch: pytest.MonkeyPatch):
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose=False: False)
    monkeypatch.setattr(CPUAdamBuilder, "is_compatible", lambda self, verbose=False: False)
    assert "needs DeepSpeed's CPU Adam" in refused(load_ds_config(CONFIGS / "zero3_offload.json"))
    assert "needs DeepSpeed's async_io" in refused(load_ds_config(CONFIGS / "zero3_nvme.json"))


def test_nvme_offloading_uses_a_writable_folder_where_libaio_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose=False: True)
    monkeypatch.setattr(CPUAdamBuilder, "is_compatible", lambda self, verbose=False: True)
    monkeypatch.setattr(ds_config, "DEFAULT_NVME_PATH", tmp_path / "offload")
    config = load_ds_config(CONFIGS / "zero3_nvme.json")
    assert resolve(config, CPU)["zero_optimization"]["offload_param"]["nvme_path"] == str(tmp_path / "offload")
    assert (tmp_path / "offload").is_dir()
    config["zero_optimization"]["offload_optimizer"]["nvme_path"] = str(tmp_path)
    chosen = resolve(config, CPU)
    assert chosen["zero_optimization"]["offload_optimizer"]["nvme_path"] == str(tmp_path)


# ---- batch arithmetic and precision


def test_the_micro_batch_is_the_recipes_then_the_jsons_then_the_largest_that_divides():
    in_json = {"train_micro_batch_size_per_gpu": 4}
    assert split_batch(in_json, 64, 2, 16).micro_batch == 16
    assert split_batch(in_json, 64, 2).micro_batch == 4
    assert split_batch({"train_micro_batch_size_per_gpu": "auto"}, 64, 2).micro_batch == 8
    assert split_batch({}, 64, 1, device="cuda").micro_batch == 64
    with pytest.raises(UserError, match="which micro-batch 5 does not divide: use micro-batch 4 or 8"):
        split_batch({"train_micro_batch_size_per_gpu": 5}, 64, 2)


def test_precision_follows_the_device():
    assert choose_precision("auto", "cpu") == ("bf16" if cpu_has_bf16() else "fp32")
    assert choose_precision("fp32", "cpu") == "fp32"
    with pytest.raises(UserError, match="fp16 on a CPU"):
        choose_precision("fp16", "cpu")
    with pytest.raises(UserError, match="choose auto, bf16"):
        choose_precision("half", "cpu")


def test_precision_on_old_and_new_gpus(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert choose_precision("auto", "cuda") == "bf16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert choose_precision("auto", "cuda") == "fp16"
    with pytest.raises(UserError, match="bf16 on a GPU older than compute capability"):
        choose_precision("bf16", "cuda")
