"""The private names of docs/deepspeed_internals.md exist in the installed versions, and the page says where they are used."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import deepspeed
import pytest
import torch
import transformers
import transformers.initialization
from deepspeed.runtime import base_optimizer, engine, torch_autocast
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.zero import partition_parameters, stage3, stage_1_and_2
from helpers.paths import REPOSITORY
from transformers import initialization
from transformers.models.resnet.modeling_resnet import ResNetStage

from cromic_ds.engine.memory import ALL_REDUCE_BUCKET

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (REPOSITORY / "docs" / "deepspeed_internals.md").read_text().splitlines()
    if line.startswith("| `")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_page_says_where_a_name_is_used_and_tested(row):
    names, places, _, tests = (re.findall(r"`([^`]+)`", cell) for cell in row)
    paths = [REPOSITORY / "cromic_ds" / place for place in places]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    source = "".join(file.read_text() for file in files)
    assert [name for name in names if name not in source] == []
    assert [test for test in tests if not (REPOSITORY / "tests" / test).is_file()] == []
    assert tests


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def sets_attribute(owner, name: str) -> bool:
    return f".{name} = " in inspect.getsource(owner)


def test_the_engine():
    its = deepspeed.DeepSpeedEngine
    for name in ("checkpoint_engine", "enable_backward_allreduce", "basic_optimizer", "torch_autocast_z0_gradscaler"):
        assert sets_attribute(its, name), name
    for name in ("_copy_recovery_script", "zero_nvme_offload_optimizer", "was_step_applied", "get_global_grad_norm"):
        assert callable(getattr(its, name)), name
    assert "def backward(self, loss, retain_graph=False, scale_wrt_gas=True)" in inspect.getsource(its)
    assert "self._config.load_universal_checkpoint" in inspect.getsource(its.load_universal_checkpoint)
    assert '"offloaded_tensors"' in inspect.getsource(its)
    assert parameters(TorchCheckpointEngine.save) == ["self", "state_dict", "path"]
    assert parameters(deepspeed.utils.set_z3_leaf_modules)[:2] == ["model", "leaf_module_classes"]
    assert engine.MEMORY_OPT_ALLREDUCE_SIZE == ALL_REDUCE_BUCKET


def test_the_zero_optimizers_and_parameters():
    for name in ("custom_loss_scaler", "external_loss_scale", "torch_autocast_gradscaler"):
        assert f"self.{name}" in inspect.getsource(base_optimizer), name
    assert sets_attribute(stage3, "fp16_groups")
    assert sets_attribute(stage_1_and_2, "bit16_groups")
    for name in ("ds_tensor", "ds_status", "ds_shape", "ds_numel", "partition", "nvme_swapper"):
        assert sets_attribute(partition_parameters, name), name
    assert "self.swap_folder" in inspect.getsource(partition_parameters.AsyncPartitionedParameterSwapper)
    low = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)  # as in engine/memory.py
    assert set(torch_autocast.LOWER_PRECISION_SAFE_MODULES) == set(low)


def test_the_shared_memory_of_its_collectives():
    source = Path(deepspeed.__file__).parent / "ops" / "csrc" / "cpu" / "comm" / "shm.cpp"
    assert '"deepspeed_allreduce_buffer"' in source.read_text()


def test_transformers():
    model = transformers.PreTrainedModel
    assert model._input_embed_layer == "embed_tokens"
    assert model._supports_sdpa is False
    assert "_gradient_checkpointing_func" in inspect.getsource(model)
    assert "_is_hf_initialized" in inspect.getsource(model)
    for name in ("xavier_uniform_", "normal_", "zeros_"):
        assert "_is_hf_initialized" in inspect.getsource(getattr(initialization, name))
    expected = ["self", "expand_size", "is_encoder_decoder", "input_ids", "model_kwargs"]
    assert parameters(transformers.GenerationMixin._expand_inputs_for_generation) == expected
    assert "self.self_attention_cache" in inspect.getsource(transformers.EncoderDecoderCache)
    assert issubclass(ResNetStage, torch.nn.Module)
