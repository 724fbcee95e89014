"""The package as `pip install .` installs it, without a checkout: every command finds what it needs inside the package."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.launching import environment
from helpers.paths import REPOSITORY

pytestmark = pytest.mark.slow

TINY = "--ds_config zero3 --loop.steps 4 --loop.global_batch 8 --loop.micro_batch 4 --checkpoint.every 2 --eval.every 2"
QUICK = "--eval.generate 2 --eval.micro_batch 8 --tracking.wandb off --tracking.console off --tracking.log_every 1"


class Installation(NamedTuple):
    """A virtual environment with the package, and an empty folder to work in."""

    venv: Path
    packages: Path  # its site-packages
    work: Path
    environ: dict[str, str]

    def run(self, program: str, *arguments: str) -> str:
        """Return what a program of the environment prints."""
        command = [str(self.venv / "bin" / program), *arguments]
        done = subprocess.run(command, cwd=self.work, env=self.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("installed")
    source, venv, work = folder / "source", folder / "venv", folder / "work"
    for name in ("cromic_ds", "ds_configs", "recipes"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    environ = {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(build, env=environ, check=True)
    install = [
        *pip,
        "--python",
        venv / "bin" / "python",
        "install",
        "--no-deps",
        "--no-index",
        next(folder.glob("*.whl")),
    ]
    subprocess.run(install, env=environ, check=True)
    shutil.rmtree(source)
    # The libraries are those of this environment. Its own cromic_ds is an editable installation, which a path does not find.
    packages = next((venv / "lib").glob("python3*")) / "site-packages"
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    environ["PATH"] = os.pathsep.join([str(venv / "bin"), str(Path(sys.executable).parent), environ["PATH"]])
    environ["WANDB_MODE"] = "offline"
    work.mkdir()
    return Installation(venv, packages, work, environ)


def test_it_is_the_installed_package_and_whole(installed):
    found = installed.run("python", "-c", "import cromic_ds; print(cromic_ds.__file__)")
    package = installed.packages / "cromic_ds"
    assert Path(found.strip()).parent == package
    for folder in ("recipes", "ds_configs"):
        shipped = {path.name for path in (REPOSITORY / folder).iterdir() if path.suffix in (".yaml", ".json")}
        assert {path.name for path in (package / folder).iterdir()} == shipped
    assert {"page.html", "page.css", "page.js"} <= {path.name for path in (package / "tools" / "rating").iterdir()}
    assert (package / "py.typed").exists()


def test_plan(installed):
    shown = installed.run("cromic-ds", "plan", "--model", "tiny")
    assert all(name in shown for name in ("zero0", "zero3", "zero3_offload"))


def test_doctor(installed, store):
    assert "Nothing found that would stop a run." in installed.run("cromic-ds", "doctor", "--data", str(store))


def test_the_table_shows_its_jobs(installed):
    shown = installed.run("cromic-ds", "table", "--recipe", "table_sample", "--out", "table", "--show")
    assert "pretrain" in shown
    assert str(REPOSITORY) not in shown
    assert not (installed.work / "table").exists()


def test_pretrain_and_finetune(installed, store, caption_store):
    installed.run(
        "cromic-ds", "pretrain", "--config", "sample_cmt", "--data.path", str(store), *TINY.split(), *QUICK.split()
    )
    pretrained = installed.work / "runs" / "pretrain_sample_cmt"
    assert (pretrained / "finished.json").exists()
    options = ["--data.path", str(caption_store), "--data.train_split", "val", "--data.eval_split", "val"]
    options += ["--backbone", str(pretrained), "--precision", "fp32", *TINY.split(), *QUICK.split()]
    installed.run("cromic-ds", "finetune", "--config", "finetune_muge", *options, "--data.comments_per_post", "1")
    assert (installed.work / "runs" / "finetune_muge" / "export" / "config.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes on the CPU are for a machine without a GPU")
@pytest.mark.long
def test_pretrain_on_everything_that_the_machine_has(installed, store):
    options = ["--config", "sample_cmt", "--data.path", str(store), *TINY.split(), *QUICK.split(), "--out", "two"]
    shown = installed.run("cromic-ds", "pretrain", "--gpus", "all", *options)
    assert "[INFO]" not in shown
    assert "2 ranks on 1 hosts agree" in (installed.work / "two" / "log.txt").read_text()
