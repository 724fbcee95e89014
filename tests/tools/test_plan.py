"""The memory arithmetic on round numbers, the activation count against a real forward pass, and the printed tables."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from cromic_ds.engine.memory import ModelFacts, memory_plan, model_facts
from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings
from cromic_ds.tools.plan import PlanSettings, full_batch, measure, plan_rows, render, saved_bytes

MILLION = 1_000_000
FACTS = ModelFacts(
    tensors=(80 * MILLION, 16 * MILLION, 4 * MILLION),
    n_low_precision=80 * MILLION,
    largest_layer=80 * MILLION,
    activation_bytes=5,
    activation_bytes_per_post=100,
)


def config(stage: int, accumulation: int = 1, autocast: bool = False, **zero) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": accumulation,
        "torch_autocast": {"enabled": autocast},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": MILLION, **zero},
    }


def megabytes(stage: int, **options) -> tuple[float, ...]:
    """(parameters, gathered, gradients, optimizer, host) of 100 M parameters on 4 ranks."""
    p = memory_plan(FACTS, config(stage, **options), world_size=4)
    return tuple(size / MILLION for size in (p.parameters, p.gathered, p.gradients, p.optimizer, p.host))


def test_state_of_every_stage():
    assert megabytes(0) == (400, 0, 400, 800, 0)
    assert megabytes(1) == (400, 0, 100, 300, 0)
    assert megabytes(1, accumulation=2) == (400, 0, 400, 300, 0)
    assert megabytes(2, accumulation=2) == (400, 0, 100, 300, 0)
    assert megabytes(3, stage3_param_persistence_threshold=0) == (100, 400, 100, 300, 0)
    assert megabytes(3, stage3_param_persistence_threshold=4 * MILLION) == (116, 384, 100, 300, 0)


def test_offloading_moves_state_to_the_host():
    off = {"offload_optimizer": {"device": "cpu"}}
    assert megabytes(2, **off) == (400, 0, 0, 0, 820)
    assert megabytes(3, stage3_param_persistence_threshold=0, **off) == (100, 400, 0, 0, 500)
    both = {**off, "offload_param": {"device": "cpu"}}
    assert megabytes(3, stage3_param_persistence_threshold=0, **both) == (0, 400, 0, 0, 600)
    disk = memory_plan(
        FACTS,
        config(
            3,
            sub_group_size=5 * MILLION,
            offload_optimizer={"device": "nvme", "buffer_count": 4},
            offload_param={"device": "nvme", "buffer_count": 5, "buffer_size": MILLION},
        ),
        world_size=4,
    )
    assert (disk.disk, disk.host) == (400 * MILLION, (200 + 2 * 4 * 20 + 20) * MILLION)


def test_small_windows_release_parameters_and_gather_them_twice():
    window = {
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": MILLION,
        "stage3_prefetch_bucket_size": MILLION,
    }
    lean = memory_plan(FACTS, config(3, stage3_param_persistence_threshold=0, **window), world_size=4)
    assert lean.gathered == 4 * 81 * MILLION
    assert lean.messages == {"all_gather": 800 * MILLION, "reduce_scatter": 400 * MILLION}


def test_bytes_sent_in_a_step():
    def messages(stage: int, **options) -> dict[str, float]:
        found = memory_plan(FACTS, config(stage, **options), world_size=4).messages
        return {name: size / MILLION for name, size in found.items()}

    assert messages(0, accumulation=3, autocast=True) == {"all_reduce": 400}
    assert messages(1, accumulation=3, autocast=True) == {"all_reduce": 240, "all_gather": 400}
    assert messages(2, accumulation=3, autocast=True) == {"all_reduce": 720, "all_gather": 400}
    z3 = messages(3, accumulation=3, autocast=True, stage3_param_persistence_threshold=0)
    assert z3 == {"all_gather": 720, "reduce_scatter": 720}
    assert memory_plan(FACTS, config(0), world_size=4).sent == 600 * MILLION
    assert memory_plan(FACTS, config(0), world_size=1).sent == 0


def test_hierarchical_partitions_add_a_copy_per_node():
    with_copy = memory_plan(FACTS, config(3, zero_hpz_partition_size=2), world_size=4)
    without = memory_plan(FACTS, config(3), world_size=4)
    assert with_copy.parameters - without.parameters == 200 * MILLION


def test_activations_follow_the_micro_batch():
    assert memory_plan(FACTS, config(0), world_size=4).activations == 305


def test_facts_of_a_module_on_the_meta_device():
    with torch.device("meta"):
        net = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    net[0].requires_grad_(False)
    facts = model_facts(net)
    assert facts.tensors == (40, 32, 8, 8, 8)
    assert (facts.n_parameters, facts.n_frozen, facts.n_low_precision, facts.largest_layer) == (96, 40, 40, 40)


@pytest.mark.parametrize(("model", "precision"), [("cmt", "fp32"), ("cmt", "bf16"), ("vlp", "bf16"), ("vilt", "bf16")])
def test_the_activation_count_equals_that_of_a_real_forward_pass(model: str, precision: str):
    from cromic_ds.models.registry import build_config, build_model

    settings = PlanSettings(model=f"{model}/tiny", precision=precision)
    facts = measure(settings)
    built = build_model(build_config(model, "tiny")).train()
    batch = built.draw(full_batch(3, settings, built.config.image_size), seed=0)
    real = saved_bytes(built, batch, precision)
    limit = 0.01 if model == "cmt" else 0.1  # the draws of two posts are not exactly those of three
    assert facts.activation_bytes + 3 * facts.activation_bytes_per_post == pytest.approx(real, rel=limit)


def test_the_published_model_has_its_published_size():
    assert measure(PlanSettings(model="paper")).n_parameters == 119_026_120


def test_the_tables_name_what_fits():
    from rich.console import Console

    settings = PlanSettings(model="large", gpus=8, gpu_memory=8.0, micro_batch=8)
    sizes = {"largest_layer": 10 * MILLION, "activation_bytes_per_post": 50 * MILLION, "flops_per_post": 1e12 / 3}
    facts = ModelFacts((10 * MILLION,) * 90, **sizes)
    rows = list(plan_rows(settings, facts))
    fits = {row.name: row.fits for row in rows}
    assert fits == {
        "zero0": False, "zero1": False, "zero2": True, "zero3": True,
        "zero3_multinode": True, "zero3_nvme": True, "zero3_offload": True,
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    render(settings, facts, rows, console)
    text = console.file.getvalue()
    assert "900,000,000 parameters (3.35 GiB in fp32)" in text
    # 10⁶ posts · 10¹² FLOP / (0.3 · 989·10¹² FLOP/s) = 3370 s
    assert (
        "1 TFLOP a post; at 30% of 989 TFLOP/s that is 297 posts/s a GPU, and 0.9 GPU hours for 1,000,000 posts" in text
    )
    assert "fit into 90% of 8 GiB: zero2, zero3, zero3_multinode, zero3_nvme, zero3_offload" in text


def test_a_config_of_ones_own_comes_first_and_bad_ones_are_refused(tmp_path: Path):
    own = tmp_path / "mine.json"
    own.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    rows = list(plan_rows(PlanSettings(ds_config=str(own)), FACTS))
    assert (rows[0].name, rows[0].stage, len(rows)) == (str(own), 2, 8)
    own.write_text(json.dumps({"zero_optimization": {"stag": 2}}))
    with pytest.raises(UserError, match=r"mine\.json: zero_optimization\.stag: unknown key \(did you mean 'stage'"):
        list(plan_rows(PlanSettings(ds_config=str(own)), FACTS))
    with pytest.raises(UserError, match="gpus is 0"):
        check_settings(PlanSettings(gpus=0))
