"""Profiling under ZeRO-3 measures what happens in the run, and changes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.launching import QUIET, losses, records, run_to_end

from cromic_ds.engine.profile import Profiler, ProfileSettings
from cromic_ds.errors import UserError
from cromic_ds.run_folder import RunFolder

STEPS, ACCUMULATION = 4, 2


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory) -> dict[str, Path]:
    """The same steps on two ranks, plain and with everything measured."""
    folder = tmp_path_factory.mktemp("runs")
    measured = ["--profile.comms", "true", "--profile.flops_step", "2", "--profile.trace", "2-3"]
    runs = {}
    for name, more in (("plain", []), ("measured", measured)):
        runs[name] = folder / name / "run"
        arguments = [
            *["--data.path", str(store), "--out", str(runs[name]), "--model.preset", "tiny", "--precision", "fp32"],
            *[
                "--loop.steps",
                str(STEPS),
                "--loop.global_batch",
                "8",
                "--loop.micro_batch",
                "2",
                "--eval.generate",
                "0",
            ],
        ]
        run_to_end(folder / name, [*arguments, *QUIET, *more], ranks=2)
    return runs


def events(path: Path) -> list[dict]:
    return json.loads(path.read_text())["traceEvents"]


@pytest.mark.long
def test_measuring_changes_no_loss(runs):
    assert losses(runs["measured"]) == losses(runs["plain"])
    assert not any((runs["plain"] / name).exists() for name in ("comms.txt", "flops_profile.txt", "profile"))


@pytest.mark.long
def test_comms_has_the_count_and_time_of_each_kind_of_collective(runs):
    report, _, stragglers = (runs["measured"] / "comms.txt").read_text().partition("straggler")
    rows = re.findall(r"^ +[\d.]+ ?\w*B +(\d+) +([\d.]+) +([\d.]+)", report, re.MULTILINE)
    assert len(rows) > 10
    # Each latency is one call's: DeepSpeed's own timers give the sum of all calls so far, more than the steps lasted.
    spent = sum(r["seconds_per_step"] for r in records(runs["measured"])) * 1000
    evaluated = records(runs["measured"], "eval")[-1]["seconds"] * 1000
    assert 0 < sum(float(total) for _, total, _ in rows) < 2 * (spent + evaluated)
    for count, total, average in rows:
        assert float(average) <= float(total) + 0.01
        assert float(total) <= int(count) * 5000
    scattered = re.search(r"reduce_scatter_tensor\n((?: .*\n)+)", report)[1]
    assert sum(int(line.split()[2]) for line in scattered.splitlines()) % (STEPS * ACCUMULATION) == 0
    assert "all_gather_into_tensor" in report
    assert "Avg straggler(ms)" in stragglers
    assert json.loads((runs["measured"] / "ds_config.json").read_text())["comms_logger"]["enabled"] is True


@pytest.mark.long
def test_the_flops_are_those_of_the_models_own_formula(runs):
    from cromic_ds.inference.exports import load_export

    report = (runs["measured"] / "flops_profile.txt").read_text()
    macs, unit = re.search(r"fwd MACs per GPU: +([\d.]+) ([MG])MACs", report).groups()
    counted = float(macs) * {"M": 1e6, "G": 1e9}[unit]
    second = records(runs["measured"])[1]
    formula = second["tflops"] * 1e12 * second["seconds_per_step"] / 3 / 2 / ACCUMULATION  # a mean of two micro-batches
    assert counted == pytest.approx(formula, rel=0.2)  # the formula leaves out padding
    model, *_ = load_export(runs["measured"] / "export")
    n_parameters = sum(p.numel() for p in model.parameters())
    assert f"{n_parameters / 1e6:.2f} M" in re.search(r"params per GPU: .*", report)[0]
    whole = re.search(r"^CMTModel\(\n +(.*)", report, re.MULTILINE)[1]  # the model's own line has its own time
    assert re.search(r"[\d.]+ m?s = 100% latency", whole)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_the_trace_has_the_steps_asked_for(runs, rank):
    found = events(runs["measured"] / "profile" / f"rank-{rank}.trace.json")
    steps = [e for e in found if str(e.get("name", "")).startswith("training step") and e["ph"] == "X"]
    assert [e["name"] for e in steps] == ["training step 2", "training step 3"]
    for step in steps:
        inside = {e["name"] for e in found if e["ph"] == "X" and 0 <= e["ts"] - step["ts"] <= step["dur"]}
        assert {"aten::convolution", "aten::addmm"} & inside
        assert any("gloo" in name or "c10d" in name for name in inside)  # the collectives


def test_a_run_that_stops_early_leaves_the_steps_it_has(tmp_path):
    profiler = Profiler(ProfileSettings(trace="2-9"), RunFolder(tmp_path), engine=None, rank=3, world_size=4)
    for step in (1, 4):  # resumed inside the range
        profiler.begin(step)
        profiler.end(step)
    profiler.finish()
    profiler.finish()
    names = {e.get("name") for e in events(tmp_path / "profile" / "rank-3.trace.json")}
    assert "training step 4" in names
    assert "training step 1" not in names


def test_a_finished_run_started_again_keeps_what_was_measured(tmp_path):
    Profiler(ProfileSettings(comms=True, trace="2-9"), RunFolder(tmp_path), engine=None, rank=0, world_size=1).finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trace": "12-10"}, "profile.trace is '12-10': give a step or a range of steps from 1, such as 10-12"),
        ({"trace": "0-3"}, "profile.trace is '0-3'"),
        ({"trace": "three"}, "profile.trace is 'three'"),
        ({"trace": "3,5"}, "profile.trace is '3,5'"),
        ({"trace": "19-21"}, "profile.trace is 19-21, and the run ends with step 20: give earlier steps"),
        ({"flops_step": 21}, "profile.flops_step is 21, and the run ends with step 20"),
        ({"flops_step": -1}, "profile.flops_step is -1"),
    ],
)
def test_steps_that_cannot_be_measured_are_refused(settings, message):
    with pytest.raises(UserError) as error:
        ProfileSettings(**settings).check()
        ProfileSettings(**settings).check_steps(20)
    assert message in str(error.value)


def test_one_step_or_a_range():
    assert [ProfileSettings(trace=t).traced for t in ("10-12", "10", 10, " 3 - 4 ", None)] == [
        *((10, 12), (10, 10), (10, 10), (3, 4), None)
    ]


def test_the_deepspeed_config_keeps_what_it_says_about_the_log():
    settings = ProfileSettings(comms=True)
    assert settings.applied_to({"comms_logger": {"prof_all": False, "prof_ops": ["all_reduce"], "enabled": False}}) == {
        "comms_logger": {
            **{"enabled": True, "verbose": False, "debug": False},
            **{"prof_all": False, "prof_ops": ["all_reduce"]},
        }
    }
    assert ProfileSettings().applied_to({"a": 1}) == {"a": 1}
