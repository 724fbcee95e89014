import json
import math
import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from cromic_ds.tracking.jsonl import JsonlTracker, read_metrics

FILE_NAME = "metrics.jsonl"


def write_steps(folder, steps, resume_step=None, eval_every=2):
    """As the loop does: each finished step, then its evaluation."""
    tracker = JsonlTracker(folder, resume_step)
    for step in steps:
        tracker.log(step, {"loss": 1 / step}, "train")
        if step % eval_every == 0:
            tracker.log(step, {"perplexity": float(step)}, "eval")
    tracker.finish()


def what(folder):
    return [(r["step"], r["kind"], r.get("loss", r.get("perplexity"))) for r in read_metrics(folder)]


def test_a_line_is_one_json_object_with_full_precision(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.log(3, {"loss": 0.1 + 0.2, "posts": np.int64(4), "norm": torch.tensor(0.5), "note": "好"}, "train")
    tracker.finish()
    tracker.finish()
    line = (tmp_path / FILE_NAME).read_text()
    record = json.loads(line)
    assert line.endswith("\n") and "好" in line
    assert record.pop("time") > 1.7e9
    assert record == {"step": 3, "kind": "train", "loss": 0.1 + 0.2, "posts": 4, "norm": 0.5, "note": "好"}


def test_nonfinite_values_stay_valid_json(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"loss": math.nan, "grad_norm": np.float32("inf"), "lr": 0.1}, "train")

    def refuse(name):
        raise AssertionError(name)

    record = json.loads((tmp_path / FILE_NAME).read_text(), parse_constant=refuse)
    assert (record["loss"], record["grad_norm"], record["lr"]) == (None, None, 0.1)
    assert record["nonfinite"] == ["loss", "grad_norm"]


@pytest.mark.parametrize("killed_after", [4, 5, 7])
def test_a_resumed_file_reads_as_the_uninterrupted_one(tmp_path, killed_after):
    write_steps(tmp_path / "whole", range(1, 11))
    write_steps(tmp_path / "parts", range(1, killed_after + 1))
    write_steps(tmp_path / "parts", range(5, 11), resume_step=4)
    assert what(tmp_path / "parts") == what(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [FILE_NAME]


def test_an_evaluation_repeated_at_the_resume_step_is_written_once(tmp_path):
    write_steps(tmp_path, range(1, 5))
    tracker = JsonlTracker(tmp_path, resume_step=4)
    tracker.log(4, {"perplexity": 4.0}, "eval")
    tracker.log(4, {"note": "again"}, "resume")
    tracker.log(6, {"perplexity": 6.0}, "eval")
    assert [(r["step"], r["kind"]) for r in read_metrics(tmp_path)][-3:] == [(4, "eval"), (4, "resume"), (6, "eval")]


def test_a_start_from_scratch_drops_what_an_attempt_without_checkpoint_left(tmp_path):
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, range(1, 3))
    assert what(tmp_path) == [(1, "train", 1.0), (2, "train", 0.5), (2, "eval", 2.0)]


@pytest.mark.parametrize(
    "torn", [b'{"step": 4, "kind": "tr', b'{"step": 4, "kind": "train"}', b"\x00\x00\xff", b"[1]\n"]
)
def test_a_torn_line_is_dropped(tmp_path, torn):
    write_steps(tmp_path, range(1, 4))
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(torn)
    assert [r["step"] for r in read_metrics(tmp_path, "train")] == [1, 2, 3]
    write_steps(tmp_path, [4], resume_step=3)
    assert [json.loads(line)["step"] for line in (tmp_path / FILE_NAME).read_text().splitlines()] == [1, 2, 2, 3, 4, 4]


def test_nothing_is_lost_by_sigkill(tmp_path):
    """Every record that `log` returned from is in the file, whole, although nothing was flushed or closed."""
    program = """
        import os, pathlib, signal, sys
        from cromic_ds.tracking.jsonl import JsonlTracker
        tracker = JsonlTracker(pathlib.Path(sys.argv[1]))
        for step in range(1, 51):
            tracker.log(step, {"loss": 1 / step}, "train")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [r["loss"] for r in read_metrics(tmp_path)] == [1 / step for step in range(1, 51)]


def test_a_line_that_is_written_in_part_is_an_error(tmp_path):
    """As on a disk that gets full."""
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"loss": 1.0}, "train")
    size, limits = (tmp_path / FILE_NAME).stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            tracker.log(2, {"loss": 1.0}, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tracker.finish()
    write_steps(tmp_path, [2], resume_step=1)
    assert [r["step"] for r in read_metrics(tmp_path, "train")] == [1, 2]
