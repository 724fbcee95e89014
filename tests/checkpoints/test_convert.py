"""Disk space and layouts of a conversion. test_world_size_real.py converts with real ranks."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from cromic_ds.checkpoints.convert import bytes_to_convert, check_space
from cromic_ds.engine.universal import Layout
from cromic_ds.errors import UserError


def test_one_file_of_stage_0_fits_any_number_of_ranks():
    assert Layout(2, 3).fits(Layout(2, 3))
    assert Layout(2, 0).fits(Layout(5, 0))
    assert not Layout(2, 3).fits(Layout(1, 3))
    assert not Layout(2, 2).fits(Layout(2, 3))
    assert not Layout(1, 0).fits(Layout(1, 1))
    assert [str(Layout(1, 0)), str(Layout(2, 3))] == ["1 rank at ZeRO stage 0", "2 ranks at ZeRO stage 3"]


def test_the_disk_must_hold_every_state_and_its_pieces(tmp_path, monkeypatch):
    for rank in range(2):
        (tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(bytes(3_000_000))
    (tmp_path / "buffers.safetensors").write_bytes(bytes(1000))
    needed = bytes_to_convert(tmp_path, Layout(2, 3), n_tensors=10)
    assert needed == 6_000_000 + 10 * 4 * 3 * 4096
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, needed))
    check_space(tmp_path, needed, "start the run with 2 ranks")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 2_000_000))
    with pytest.raises(UserError) as error:
        check_space(tmp_path, needed, "start the run with 2 ranks")
    assert str(error.value) == (
        f"converting {tmp_path} for another number of ranks or ZeRO stage takes 7 MB beside it for a while, "
        "and 2 MB are free: free 5 MB, or start the run with 2 ranks"
    )
