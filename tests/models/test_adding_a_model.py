"""The example of docs/adding_a_model.md, as a reader would add it: one file and one line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launching import QUIET, environment, losses
from helpers.paths import REPOSITORY

CODE = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "adding_a_model.md").read_text(encoding="utf-8"), re.S)
CHECKS = """
import dataclasses, sys, torch
from cromic_ds.data.collate import LoadedExample, SpecialTokens, collate
from cromic_ds.models import build_config, build_model
import numpy as np

torch.manual_seed(0)
model = build_model(build_config("plain", "tiny", vocab_size=120)).eval()
rng = np.random.default_rng(0)
text = lambda n: np.array([101, *rng.integers(5, 90, n), 102], np.int32)
posts = [
    LoadedExample(str(i), i, text(3 + i), [text(2 + j) for j in range(1 + i)], rng.integers(0, 256, (128, 128, 3), np.uint8))
    for i in range(4)
]
batch = lambda some: collate(some, special=SpecialTokens(0, 101, 102), image_size=128)
whole, parts = model(batch(posts)), [model(batch(posts[:1])), model(batch(posts[1:]))]
torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=0)
inputs = {"input_ids": batch(posts).post_ids, "pixel_values": batch(posts).images, "max_new_tokens": 9, "num_beams": 3}
assert torch.equal(model.generate(**inputs), model.generate(**inputs, use_cache=False))
assert model.flops_formula()(batch(posts)) > 1e6
vqa = build_model(build_config("plain", "tiny", vocab_size=120, n_answers=7)).eval()
questions = dataclasses.replace(batch(posts), answer_targets=torch.rand(4, 7), n_targets=4)
assert vqa.answer_logits(questions).shape == (4, 7) and vqa(questions).isfinite()
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the package with the example in it."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(REPOSITORY / "cromic_ds", root / "cromic_ds", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pretrain.py", "ds_configs"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, root / name)
    file, line = CODE
    (root / "cromic_ds" / "models" / "plain.py").write_text(file, encoding="utf-8")
    init = root / "cromic_ds" / "models" / "registry.py"
    loop = "\nfor kind in MODELS.values():"
    imported = "from cromic_ds.models.plain import PlainConfig, PlainModel\n"
    content = init.read_text(encoding="utf-8")
    assert content.count(loop) == 1
    init.write_text(content.replace(loop, f"\n{imported}{line}{loop}"), encoding="utf-8")
    return root


def python(house: Path, *arguments: str) -> str:
    env = environment(PYTHONPATH=str(house))
    done = subprocess.run([sys.executable, *arguments], cwd=house, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def test_it_keeps_the_promises_of_a_model(house):
    python(house, "-c", CHECKS)


def test_its_fields_are_options(house):
    text = python(house, "pretrain.py", "--model.name", "plain", "--help")
    assert "Activation of the encoder's blocks." in text and "--model.patch_size" in text
    assert "--model.image_norm" not in text
    text = python(house, "pretrain.py", "--model.name", "plain", "--model.activation", "relu", "--print_config")
    assert "  activation: relu\n" in text


@pytest.mark.slow
def test_it_is_trained_resumed_and_evaluated(house, store):
    sizes = ["--model.name", "plain", "--model.preset", "tiny", "--model.activation", "relu"]
    sizes += ["--loop.global_batch", "8", "--eval.generate", "4"]
    where = ["--data.path", str(store), "--out", "run", "--precision", "fp32", *QUIET]
    for steps in (2, 4):
        python(house, "pretrain.py", *sizes, *where, "--ds_config", "zero0", "--loop.steps", str(steps))
    assert len(losses(house / "run")) == 4
    command = ["evaluate", "run/export", "--data", str(store), "--beams", "1", "--limit", "4", "--out", "result.json"]
    python(house, "-c", f"from cromic_ds.cli import main; main({[*command, '--meteor', 'false']})")
    assert (house / "result.json").is_file()
