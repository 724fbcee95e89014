"""Shipped configs, non-finite gradients and fp16 loss scaling in real DeepSpeed processes on the CPU."""

from __future__ import annotations

import pytest
from helpers.paths import CONFIGS

from cromic_ds.batch import BatchSplit
from cromic_ds.engine.config import ResolveFacts, load_ds_config, resolve
from cromic_ds.engine.operations import works

pytestmark = pytest.mark.slow

RUNNABLE = [
    "zero0",
    "zero1",
    "zero2",
    "zero3",
    "zero3_offload",
    "zero3_multinode",
]  # zero3_nvme needs libaio and a disk


def shipped(name: str, world_size: int = 2, ranks_per_node: int = 2, precision: str = "fp32") -> dict:
    facts = ResolveFacts(BatchSplit.derive(8, world_size), ranks_per_node, precision=precision, hidden_size=256)
    return resolve(load_ds_config(CONFIGS / f"{name}.json"), facts)


@pytest.mark.long
@pytest.mark.skipif(not works("CPUAdamBuilder"), reason="DeepSpeed's CPU Adam does not compile here")
def test_every_shipped_config_takes_the_same_steps_and_drops_a_step_that_is_not_finite(run_ranks):
    factors = [1.0, 1.0, None, 1.0]  # in the third step one of the ranks has a loss of NaN
    answers = run_ranks([{"config": shipped(name), "loss_factors": factors} for name in RUNNABLE])
    first = answers[0]
    for name, answer in zip(RUNNABLE, answers):
        assert answer["applied"] == [True, True, False, True], name
        assert answer["weights"][2] == answer["weights"][3] != answer["weights"][4], name
        for step in (0, 1, 3):
            assert answer["losses"][step] == pytest.approx(first["losses"][step], rel=1e-5), name
            assert answer["norms"][step] == pytest.approx(first["norms"][step], rel=1e-4), name
    assert [answer["kernel"] for answer in answers] == ["torch_fused"] * 4 + ["deepspeed_cpu", "torch_fused"]


@pytest.mark.long
def test_two_nodes_of_two_ranks_keep_a_copy_of_the_parameters_on_each(run_ranks):
    config = shipped("zero3_multinode", world_size=4, ranks_per_node=2)
    assert config["zero_optimization"]["zero_hpz_partition_size"] == 2
    plain = shipped("zero0", world_size=4, ranks_per_node=2)
    expected, answer = run_ranks([{"config": plain, "steps": 3}, {"config": config, "steps": 3}], world_size=4)
    assert answer["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert answer["norms"] == pytest.approx(expected["norms"], rel=1e-4)


def test_fp16_with_our_loss_scale_equals_fp32_at_every_stage(run_ranks):
    factors = [1.0, 1.0, 1e4, 1.0, 1.0]  # times the scale of 65,536 the third overflows fp16
    expected_factors = [1.0, 1.0, None, 1.0, 1.0]
    jobs = [{"config": shipped("zero0"), "loss_factors": expected_factors}]
    for stage in range(4):
        config = shipped(f"zero{stage}")
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "float16",
        }  # slow on a CPU, and refused there; exact enough
        jobs.append({"config": config, "loss_factors": factors, "scaler": True})
    fp32, *halves = run_ranks(jobs)
    for stage, half in enumerate(halves):
        assert half["applied"] == fp32["applied"] == [True, True, False, True, True], stage
        assert half["scales"] == [65536, 65536, 32768, 32768, 32768]
        assert half["weights"][2] == half["weights"][3]
        assert half["losses"] == pytest.approx(fp32["losses"], rel=0.002), stage
        for step in (0, 1, 3, 4):
            assert half["norms"][step] == pytest.approx(fp32["norms"][step], rel=0.01), stage
