"""Help, shipped recipes by name, the choice of a run folder, completion, and what is said without the environment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from cromic_ds.cli.commands import COMMANDS, main, run_folder_for, take_option
from cromic_ds.cli.completion import completion_script
from cromic_ds.errors import UserError
from cromic_ds.shipped import find_recipe


def printed(capsys, *arguments: str) -> str:
    """Run `cromic-ds ARGUMENTS…` in this process and return its output."""
    capsys.readouterr()
    try:
        main(list(arguments))
    except SystemExit as end:
        assert not end.code
    return capsys.readouterr().out


@pytest.fixture
def stay(monkeypatch):
    """A training command ends with SystemExit instead of ending the process."""
    monkeypatch.setattr("cromic_ds.cli.commands.leave", sys.exit)


# ---- help


@pytest.mark.parametrize("name", ["sample", "generate"])
def test_help_command_is_the_commands_own_help(capsys, name):
    assert printed(capsys, "help", name) == printed(capsys, name, "--help")
    assert printed(capsys, "help") == printed(capsys, "--help")


def test_the_help_of_a_training_begins_with_its_sections(capsys, stay):
    lines = printed(capsys, "pretrain", "--help").splitlines()
    assert lines[:3] == ["usage: cromic-ds pretrain [--setting VALUE …]", "", COMMANDS["pretrain"].description]
    start = lines.index("sections (--help SECTION prints one of them):")
    names = [line.split()[0] for line in lines[start + 1 : lines.index("", start)]]
    assert start == 4
    assert {"model", "data", "optim", "loop", "eval", "tracking"} <= set(names)
    assert any(line.startswith("optim: ") for line in lines)
    assert not any("--optim CONFIG" in line for line in lines)


def test_the_help_of_a_section_is_that_section_alone(capsys, stay):
    shown = printed(capsys, "pretrain", "--help", "optim")
    assert "--optim.lr" in shown
    assert "--loop." not in shown
    assert "usage" not in shown
    assert shown == printed(capsys, "help", "pretrain", "optim")
    assert "--eval.beams" in printed(capsys, "help", "pretrain", "eval")


@pytest.mark.parametrize("name", ["generate", "evaluate", "predict", "import-published", "prepare", "sample"])
def test_help_starts_without_torch(name):
    check = f"""if True:
        import sys
        from cromic_ds.cli import main
        try:
            main(["{name}", "--help"])
        finally:
            print(sorted({{"torch", "transformers", "deepspeed"}} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")


def test_an_unknown_section_names_the_nearest(capsys, stay):
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "--help", "optm"])
    assert "no section 'optm' (did you mean 'optim'?)" in capsys.readouterr().err


def test_enumerations_are_shown_as_choices(capsys, stay):
    shown = printed(capsys, "pretrain", "--help")
    assert "--optim.schedule {linear,cosine,constant}" in shown
    assert "Literal[" not in shown


# ---- training


def test_a_shipped_recipe_is_found_by_name_and_a_file_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sample_cmt", "sample_cmt.yaml", "recipes/sample_cmt.yaml"):
        assert find_recipe(name, "--config") == REPOSITORY / "recipes" / "sample_cmt.yaml"
    Path("sample_cmt.yaml").touch()
    assert find_recipe("sample_cmt.yaml", "--config") == Path("sample_cmt.yaml")
    with pytest.raises(UserError, match=r"--config: no file 'sample_cmd' \(did you mean 'sample_cmt'\?\)"):
        find_recipe("sample_cmd", "--config")


def test_a_finished_run_is_not_overwritten_and_an_interrupted_one_is_continued(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def chosen() -> str:
        return str(run_folder_for("runs/pretrain", "pretrain", "runs/pretrain", ["recipes/sample_cmt.yaml"]))

    assert chosen() == "runs/pretrain_sample_cmt"
    Path("runs/pretrain_sample_cmt").mkdir(parents=True)  # interrupted
    assert chosen() == "runs/pretrain_sample_cmt"
    Path("runs/pretrain_sample_cmt/finished.json").touch()
    assert chosen() == "runs/pretrain_sample_cmt-2"
    Path("runs/pretrain_sample_cmt-2").mkdir()
    Path("runs/pretrain_sample_cmt-2/finished.json").touch()
    assert chosen() == "runs/pretrain_sample_cmt-3"


def test_the_recipes_own_run_folder_is_respected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(run_folder_for("mine", "pretrain", "runs/pretrain", ["recipe.yaml"])) == "mine"
    assert str(run_folder_for("runs/pretrain", "pretrain", "runs/pretrain", [])) == "runs/pretrain"


def test_out_is_the_run_folder_of_the_command_and_pretrain_py_never_chooses_one(tmp_path, monkeypatch, stay):
    received = []
    monkeypatch.setattr("cromic_ds.training.pretrain.pretrain", received.append)
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/finished.json").touch()
    for arguments in (["--out", "mine"], ["--out=mine", "--config", "sample_cmt"], ["--config", "sample_cmt"]):
        with pytest.raises(SystemExit, match="0"):
            main(["--local_rank=1", "pretrain", "--data.path", "store", *arguments])
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config", "sample_cmt", "--data.path", "store"])
    with pytest.raises(SystemExit, match="0"):
        __import__("cromic_ds.cli", fromlist=["script"]).script("pretrain")
    assert [settings.out for settings in received] == ["mine", "mine", "runs/pretrain_sample_cmt", "runs/pretrain"]


def test_the_number_of_gpus_belongs_on_the_command_line(tmp_path, capsys, stay):
    (tmp_path / "recipe.yaml").write_text("gpus: 2\n")
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "--config", str(tmp_path / "recipe.yaml")])
    assert "gpus is no setting of a recipe: give --gpus on the command line" in capsys.readouterr().err


def test_an_option_is_taken_out_of_the_arguments():
    assert take_option("--gpus", ["--gpus", "2", "--seed", "1", "--gpus=all"]) == ("all", ["--seed", "1"])
    assert take_option("--gpus", ["--seed", "1"]) == (None, ["--seed", "1"])
    assert take_option("--gpus", ["--gpus"]) == ("", [])


# ---- beside the commands


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_settings(shell):
    some = {name: COMMANDS[name] for name in ("sample", "inspect")}
    script = completion_script(some, [shell])
    assert all(word in script for word in ("sample", "inspect", "--posts", "--image_size"))


def test_bash_completes_commands_settings_and_choices(tmp_path):
    (tmp_path / "script").write_text(completion_script({name: COMMANDS[name] for name in ("sample", "plan")}, ["bash"]))
    program = """
        source "$0"
        COMP_WORDS=(cromic-ds "$@") COMP_CWORD=$#
        _shtab_cromic_ds
        echo "${COMPREPLY[@]}"
    """
    for words, expected in (
        (["sa"], "sample"),
        (["plan", "--pre"], "--precision"),
        (["plan", "--precision", "bf"], "bf16"),
    ):
        command = ["bash", "-c", program, str(tmp_path / "script"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == [expected], done.stderr


def test_completion_of_an_unknown_shell_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        completion_script({}, ["fish"])
    assert capsys.readouterr().err == "error: for which shell? cromic-ds completion bash or zsh\n"


def test_python_m_is_the_same_program(capsys):
    command = [sys.executable, "-m", "cromic_ds", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, printed(capsys, "--help"))


@pytest.mark.parametrize("command", [["pretrain.py"], ["-m", "cromic_ds", "plan"]])
def test_without_the_environment_one_line_says_so(command):
    bare = [sys.executable, "-I", "-S"]  # no site-packages; isolated mode also drops the current folder
    program = "import runpy, sys; sys.path.insert(0, ''); sys.argv = sys.argv[1:]; "
    program += "run = runpy.run_module if sys.argv[0] == '-m' else runpy.run_path; "
    program += "sys.argv = sys.argv[1:] if sys.argv[0] == '-m' else sys.argv; run(sys.argv[0], run_name='__main__')"
    done = subprocess.run([*bare, "-c", program, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(r"error: there is no module '\w+' in this Python \(", done.stderr)
    assert done.stderr.endswith("(in a checkout: source .venv/bin/activate)\n")
    assert done.stderr.count("\n") == 1
