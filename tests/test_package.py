"""The package itself: its public API, and where its files and its compiled operations are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

import cromic_ds
from cromic_ds import shipped
from cromic_ds.shipped import extensions_folder


@pytest.mark.parametrize("name", [name for name in cromic_ds.__all__ if name != "__version__"])
def test_the_public_names_are_there(name):
    assert getattr(cromic_ds, name)
    assert name in dir(cromic_ds)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        cromic_ds.lod  # noqa: B018


def test_the_package_imports_nothing_until_a_name_is_used():
    check = "import sys, cromic_ds; assert not {'torch', 'numpy', 'lmdb', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, check=True, timeout=60)


def test_compiled_operations_are_kept_where_every_start_finds_them(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "mine"))
    assert extensions_folder() == tmp_path / "mine"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert extensions_folder() == REPOSITORY / ".cache" / "torch_extensions"
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions" in makefile
    (tmp_path / "cromic_ds" / "recipes").mkdir(parents=True)
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "cromic_ds")  # installed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert extensions_folder() == tmp_path / "cache" / "cromic_ds" / "torch_extensions"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert extensions_folder() == Path.home() / ".cache" / "cromic_ds" / "torch_extensions"


def test_deepspeed_is_given_that_folder():
    check = "import os, cromic_ds.engine; print(os.environ['TORCH_EXTENSIONS_DIR'])"
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/"}
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == str(REPOSITORY / ".cache" / "torch_extensions"), done.stderr
