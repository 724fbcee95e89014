"""`cromic-ds table`, but for its long run: what it shows, refuses, writes, and checks before it starts anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY
from jsonargparse import ArgumentParser

from cromic_ds.cli.check import check_all
from cromic_ds.errors import UserError
from cromic_ds.tools.table.command import check_commands, commands_to_check, read_recipes, run_one, table, write_recipes
from cromic_ds.tools.table.folder import TableFolder
from cromic_ds.tools.table.jobs import Stop
from cromic_ds.tools.table.plan import plan_jobs
from cromic_ds.tools.table.settings import TableSettings


def settings(out: Path, **changes) -> TableSettings:
    about = {"models": {"cmt": {"preset": "tiny"}}, "tasks": ["muge"], "starts": ["scratch"], "seeds": [0]}
    return TableSettings(out=str(out), **about | changes)


def opened(out: Path, **changes) -> TableFolder:
    made = settings(out, **changes)
    jobs = plan_jobs(made)
    folder = TableFolder(out, jobs, read_recipes(made, jobs))
    write_recipes(folder, made)
    return folder


def test_show_lists_states_and_commands_and_makes_nothing(tmp_path, capsys):
    table(settings(tmp_path / "t", show=True))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "waiting  sample-posts",
        "waiting  sample-official",
        "waiting  prepare-muge",
        "waiting  finetune-cmt-muge-scratch-0",
        "waiting  evaluate-cmt-muge-scratch-0",
    ]
    assert "         cromic-ds sample --seed 0 --out posts --posts 20000" in lines
    assert not (tmp_path / "t").exists()


def test_the_folder_holds_its_own_recipe(tmp_path):
    opened(tmp_path / "t", finetune={"muge": {"loop": {"steps": 3}}}, jobs=2, retry=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TableSettings, as_positional=False)
    read = parser.instantiate(parser.parse_path(tmp_path / "t" / "table.yaml"))
    assert TableSettings(**vars(read)) == settings("", finetune={"muge": {"loop": {"steps": 3}}})
    project = REPOSITORY
    assert (tmp_path / "t/recipes/finetune_muge.yaml").read_text() == (
        project / "recipes/finetune_muge.yaml"
    ).read_text()


def test_one_job_by_its_name(tmp_path):
    folder = opened(tmp_path / "t")
    with pytest.raises(UserError, match="--job nothing: this table has no such job"):
        run_one(folder, settings(tmp_path / "t", job="nothing"), Stop())
    with pytest.raises(UserError, match="prepare-muge needs sample-posts, which is not done"):
        run_one(folder, settings(tmp_path / "t", job="prepare-muge"), Stop())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*/file/t: cannot be written \(Not a directory\)"):
        opened(tmp_path / "file" / "t")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"finetune": {"all": {"loop": {"stepz": 3}}}},
            "finetune-cmt-muge-scratch-0: unknown setting 'loop.stepz' .did you mean 'loop.steps'",
        ),
        ({"finetune": {"muge": {"optim": {"lr": -1}}}}, "finetune-cmt-muge-scratch-0: optim.lr is -1.0: out of range"),
        (
            {"evaluate": {"all": {"beams": "many"}}},
            "evaluate-cmt-muge-scratch-0: beams is 'many': expected a whole number",
        ),
        (
            {"models": {"cmt": {"preset": "tyni"}}},
            "finetune-.*model.preset: unknown preset 'tyni' .did you mean 'tiny'",
        ),
        ({"models": {"cnt": {}}, "starts": ["pretrained"]}, "pretrain-cnt-0: model.name: unknown model 'cnt'"),
    ],
)
def test_wrong_settings_are_found_before_anything_starts(tmp_path, monkeypatch, capsys, changes, message):
    folder = opened(tmp_path / "t", **changes)
    monkeypatch.chdir(folder.path)
    with pytest.raises(SystemExit, match="2"):
        check_all(commands_to_check(folder.jobs))
    printed = capsys.readouterr()
    assert re.match(message, f"{printed.out.split()[-1]}: {printed.err.removeprefix('error: ')}")


def test_one_job_of_each_kind_is_checked(tmp_path):
    folder = opened(tmp_path / "t", seeds=[3, 1], starts=["pretrained"])
    assert list(commands_to_check(folder.jobs)) == [
        "pretrain-cmt-3",
        "finetune-cmt-muge-pretrained-3",
        "evaluate-cmt-muge-pretrained-3",
    ]


@pytest.mark.slow  # imports everything that trains, twice
def test_settings_are_checked_in_a_separate_process(tmp_path):
    folder = opened(tmp_path / "t", starts=["pretrained", "scratch"], tasks=["muge", "vqa2"])
    check_commands(folder, folder.jobs)
    folder = opened(tmp_path / "t", finetune={"muge": {"loop": {"stepz": 3}}})
    with pytest.raises(
        UserError,
        match=r"^finetune-cmt-muge-scratch-0: unknown setting 'loop\.stepz'.*; `cromic-ds table … --show` prints",
    ):
        check_commands(folder, folder.jobs)
