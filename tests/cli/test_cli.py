"""Every command: its help, its errors in one line, and settings from YAML and from options."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from helpers.paths import REPOSITORY

from cromic_ds.cli import commands as cli
from cromic_ds.cli.command import imported
from cromic_ds.cli.commands import COMMANDS, main
from cromic_ds.cli.parser import attribute_docs, setting_types
from cromic_ds.models.settings import as_values, with_model_options
from cromic_ds.training.pretrain import PretrainSettings
from cromic_ds.training.settings import RunSettings

RECIPES = sorted(p for p in (REPOSITORY / "recipes").glob("*.yaml") if not p.stem.startswith("table_"))
SCRIPT = "pretrain.py"
SCRIPTS = {"pretrain.py": COMMANDS["pretrain"], "finetune.py": COMMANDS["finetune"]}


@pytest.fixture
def command(capsys, monkeypatch):
    """command("inspect", "STORE"): (exit code, standard output, standard error); a script by its file name."""

    monkeypatch.setattr(cli, "leave", sys.exit)

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            if name in SCRIPTS:
                monkeypatch.setattr(sys, "argv", [name, *arguments])
                cli.script(name.removesuffix(".py"))
            else:
                main([name, *arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def parsed(command, monkeypatch):
    """parsed("--seed", "3"): the settings that `pretrain` (or `finetune`) would be called with, if they are complete."""
    monkeypatch.setattr(cli, "check_settings", lambda settings: None)  # recipes leave data.path and more to the user
    received: list[RunSettings] = []
    for command_ in SCRIPTS.values():
        module, _, function = command_.function.partition(":")
        monkeypatch.setattr(importlib.import_module(module, "cromic_ds"), function, received.append)

    def run(*arguments: str, script: str = SCRIPT) -> RunSettings:
        received.clear()
        code, _, err = command(script, *arguments)
        assert (code, err) == (0, "")
        return received[0]

    return run


def recipe(folder: Path, text: str) -> str:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return str(folder / "recipe.yaml")


# ---- help


def settings_of(name: str) -> type:
    return with_model_options(imported(COMMANDS[name.removesuffix(".py")].settings), "cmt")


def leaves(kind: type, prefix: str = "") -> dict[str, tuple[type, str]]:
    """Dotted name -> (dataclass, field) of every single setting."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= leaves(hint, f"{prefix}{name}.")
        elif name not in getattr(kind, "hidden", ()):
            found[prefix + name] = (kind, name)
    return found


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", [*COMMANDS, *SCRIPTS])
def test_every_setting_is_documented(name):
    for dotted, (kind, field) in leaves(settings_of(name)).items():
        doc = attribute_docs(kind).get(field, "")
        assert len(doc) > 4, f"{dotted} has no docstring"
        assert doc.endswith((".", "?")), dotted


@pytest.mark.parametrize("name", [*COMMANDS, *SCRIPTS])
def test_help_names_every_setting_with_its_meaning_and_default(command, name):
    code, out, err = command(name, "--help")
    assert (code, err) == (0, "")
    text, positional = squeezed(out), COMMANDS[name].positional if name in COMMANDS else ()
    for dotted, (kind, field) in leaves(settings_of(name)).items():
        assert dotted in positional or f"--{dotted}" in text, dotted
        assert squeezed(attribute_docs(kind)[field]) in text, dotted
        default = next(f for f in dataclasses.fields(kind) if f.name == field).default
        if default is not dataclasses.MISSING and dotted not in positional:
            start = text.index(squeezed(attribute_docs(kind)[field]), text.index(f"--{dotted}"))
            assert "default:" in text[start : start + len(squeezed(attribute_docs(kind)[field])) + 120], dotted


@pytest.mark.parametrize("name", [*COMMANDS, *SCRIPTS])
def test_help_shows_no_code(command, name):
    assert "Settings(" not in command(name, "--help")[1]


def test_the_list_of_commands(command, capsys):
    code, out, _ = command("--help")
    assert code == 0
    assert all(f"  {name} " in out and COMMANDS[name].help in out for name in COMMANDS)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().out == out


def test_help_and_version_start_without_torch():
    check = (
        "import sys; from cromic_ds.cli import main; main(['--version'])\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'jsonargparse'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("0.")


# ---- wrong input: one line, exit code 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sample", [], "no folder to write to; give one with --out"),
        ("prepare", ["--text", "missing.txt", "--images", ".", "--tokenizer", "train", "--out", "s"], "missing.txt"),
        ("inspect", ["missing"], "missing: no such data set"),
        ("plan", ["--model", "papr"], "unknown preset 'papr' (did you mean 'paper'?)"),
        ("export", ["missing", "--out", "x"], "missing: no checkpoint in it"),
        ("import-published", ["missing.pt", "--tokenizer", "v", "--out", "x"], "missing.pt: No such file"),
        ("generate", ["missing", "--post", "x"], "missing: no export (no config.json in it)"),
        ("evaluate", ["missing", "--data", "nowhere"], "nowhere: no such data set"),
        ("pretrain.py", [], "data.path is missing: name a store"),
        ("pretrain.py", ["--data.path", "missing"], "missing: no such data set"),
        ("pretrain.py", ["--data.path", "STORE", "--model.preset", "smal"], "'smal' (did you mean 'small'?)"),
        ("pretrain.py", ["--data.path", "STORE", "--ds_config", "zero9"], "no file 'zero9'"),
        ("pretrain.py", ["--data.path", "STORE", "--data.train_split", "tain"], "tain"),
        (
            "pretrain.py",
            ["--data.path", "STORE", "--eval.micro_batch", "0"],
            "eval: micro_batch and beams must be at least 1",
        ),
        ("pretrain.py", ["--data.path", "STORE", "--data.comments_per_post=-1"], "data.comments_per_post is -1"),
        ("pretrain.py", ["--data.path", "STORE", "--tracking.log_every", "0"], "tracking.log_every is 0"),
        ("pretrain.py", ["--data.path", "STORE", "--optim.lr", "-1"], "optim.lr is -1.0: out of range"),
        ("pretrain.py", ["--data.path", "STORE", "--model.dropout", "2"], "model.dropout is 2.0"),
        ("pretrain.py", ["--data.path", "STORE", "--model.image_size", "5"], "model.image_size is 5: too small"),
        ("pretrain.py", ["--data.path", "STORE", "--model.n_heads", "0"], "model.n_heads is 0: give at least 1"),
        ("pretrain.py", ["--data.path", "STORE", "--loop.global_batch", "0"], "global batch 0"),
        ("pretrain.py", ["--data.path", "STORE", "--loop.epochs", "0"], "loop.epochs must be above 0"),
        ("pretrain.py", ["--data.path", "STORE", "--eval.beams", "0"], "micro_batch and beams must be"),
        ("pretrain.py", ["--data.path", "STORE", "--profile.trace", "12-10"], "profile.trace is '12-10'"),
        (
            "pretrain.py",
            ["--data.path", "STORE", "--loop.steps", "5", "--profile.flops_step", "7"],
            "profile.flops_step is 7, and the run ends with step 5",
        ),
        ("status", ["missing"], "missing: no run folder"),
        ("doctor", ["--hostfile", "missing"], "--hostfile missing: No such file"),
        ("genrate", [], "unknown command 'genrate' (did you mean 'generate'?)"),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(command, store, tmp_path, monkeypatch, name, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [str(store) if a == "STORE" else a for a in arguments]
    code, out, err = command(name, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sample", ["--post", "3"], "unknown setting 'post' (did you mean 'posts'?); --help lists all settings"),
        ("prepare", ["--tekst", "x"], "unknown setting 'tekst' (did you mean 'text'?)"),
        ("prepare", ["--text"], "--text"),
        ("inspect", ["a", "--tops=3"], "unknown setting 'tops' (did you mean 'top'?)"),
        ("inspect", [], "the following arguments are required: store"),
        ("plan", ["--gpu", "8"], "unknown setting 'gpu' (did you mean 'gpus'?)"),
        ("plan", ["--precision", "fp23"], "precision is 'fp23': expected bf16 or fp16 or fp32 (did you mean 'fp32'?)"),
        ("export", ["run"], "the following arguments are required: out"),
        ("import-published", ["x", "--vocab", "y"], "unknown setting 'vocab'"),
        ("generate", ["e", "--beam", "3"], "unknown setting 'beam' (did you mean 'beams'?)"),
        ("generate", ["e", "--top-p", ".9"], "unknown setting 'top-p' (did you mean 'top_p'?)"),
        ("generate", ["e", "--beams", "many"], "beams is 'many': expected a whole number"),
        ("evaluate", ["e", "f"], "unknown setting 'f'"),
        ("evaluate", ["e", "--tokenization", "chars"], "expected task or char or jieba or bert (did you mean 'char'?)"),
        ("evaluate", ["e", "--meteor", "maybe"], "meteor is 'maybe': expected true or false"),
        ("pretrain.py", ["--model.presett", "x"], "unknown setting 'model.presett' (did you mean 'model.preset'?)"),
        ("pretrain.py", ["--lopp.steps=3"], "unknown setting 'lopp.steps' (did you mean 'loop.steps'?)"),
        ("pretrain.py", ["--loop.step", "3"], "unknown setting 'loop.step' (did you mean 'loop.steps'?)"),
        ("pretrain.py", ["--model", "tiny"], "model is 'tiny': expected settings by name (name, preset, init_from, …)"),
        ("pretrain.py", ["--seed", "1.5"], "seed is '1.5': expected a whole number"),
        ("pretrain.py", ["--optim.lr", "fast"], "optim.lr is 'fast': expected a number"),
        ("pretrain.py", ["--optim.betas", "[1]"], "optim.betas is '[1]': expected [a number, a number]"),
        ("pretrain.py", ["--model.image_positions", "x"], "image_positions is 'x': expected true or false or null"),
        (
            "pretrain.py",
            ["--optim.schedule", "cosin"],
            "expected linear or cosine or constant (did you mean 'cosine'?)",
        ),
        ("pretrain.py", ["stray"], "unknown setting 'stray'"),
        ("pretrain.py", ["--config", "missing.yaml"], "missing.yaml'"),
    ],
)
def test_a_wrong_setting_names_the_nearest_right_one(command, name, arguments, message):
    code, out, err = command(name, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_only_one_process_of_a_node_says_it(command, monkeypatch):
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert command("inspect", "missing") == (2, "", "")
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first of its node, whose disk may be the only one without the folder
    assert "no such data set" in command("inspect", "missing")[2]


# ---- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  presett: tiny\n", "unknown setting 'model.presett' (did you mean 'model.preset'?)"),
        ("modle:\n  preset: tiny\n", "unknown setting 'modle.preset' (did you mean 'model.preset'?)"),
        ("eval:\n  beam: 3\n", "'eval.beam' (did you mean 'eval.beams'?)"),
        ("sede: 3\n", "unknown setting 'sede' (did you mean 'seed'?)"),
        ("preset: tiny\n", "unknown setting 'preset' (did you mean 'model.preset'?)"),
        ("loop:\n  steps: many\n", "loop.steps is 'many': expected a whole number"),
        ("loop:\n  compile: perhaps\n", "loop.compile is 'perhaps': expected true or false"),
        ("optim:\n  lr: [1]\n", "optim.lr is '[1]': expected a number"),
        ("tracking:\n  wandb: maybe\n", "tracking.wandb is 'maybe': expected auto or online or offline or off"),
        ("loop: 3\n", "loop is 3: expected settings by name (epochs, steps, global_batch, …)"),
        ("seed: 1\nloop:\n", "loop is None: expected settings by name"),
        ("eval: greedy\n", "eval is 'greedy': expected settings by name (every, examples, generate, …)"),
        ("loop: [1\n", "Problems parsing config"),
    ],
)
def test_a_wrong_recipe_is_refused(command, tmp_path, text, message):
    code, out, err = command(SCRIPT, "--config", recipe(tmp_path, text))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_options_override_the_recipe_and_the_rest_keeps_its_default(parsed, tmp_path):
    path = recipe(tmp_path, 'seed: 3\nloop:\n  steps: 7\n  global_batch: 16\ntracking:\n  wandb: "off"\n')
    settings = parsed("--config", path, "--loop.steps", "9", "--eval.beams=4")
    expected = PretrainSettings(seed=3)
    expected.loop.steps, expected.loop.global_batch = 9, 16
    expected.tracking.wandb, expected.eval.beams = "off", 4
    assert settings == expected


def test_without_options_every_setting_has_its_default(parsed):
    assert parsed() == PretrainSettings()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(parsed, path):
    settings = parsed("--config", str(path), script="finetune.py" if path.stem.startswith("finetune") else SCRIPT)
    wanted = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert flat(wanted).items() <= flat(as_values(settings)).items()
    settings.eval.check()
    settings.data.check()


def flat(values: dict, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_print_config_can_be_fed_back(command, parsed, tmp_path):
    options = ["--model.preset", "tiny", "--seed", "5", "--optim.betas=[0.8,0.99]", "--tracking.wandb", "off"]
    code, printed, err = command(SCRIPT, *options, "--print_config")
    assert (code, err) == (0, "")
    path = recipe(tmp_path, printed)
    assert command(SCRIPT, "--config", path, "--print_config") == (0, printed, "")
    assert parsed("--config", path) == parsed(*options)


def test_the_settings_of_a_run_folder_can_be_fed_back(parsed, tmp_path):
    from cromic_ds.training.startup import open_folder, settings_dict

    settings = parsed("--model.preset", "tiny", "--optim.lr", "3e-4", "--model.image_positions", "false")
    open_folder(tmp_path / "run", settings_dict(settings))
    assert parsed("--config", str(tmp_path / "run" / "config.yaml")) == settings


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        ("print('trained')", 0, "trained\nexit handler\n"),
        ("raise UserError('no store')", 2, "exit handler\n"),
        ("1 / 0", 1, "exit handler\ninterpreter ends\n"),  # with its traceback
    ],
)
def test_a_script_ends_after_its_exit_handlers_and_before_the_interpreter(function, code, said):
    program = f"""if True:
        import atexit, types, sys, dataclasses
        from cromic_ds.cli.command import Command
        from cromic_ds.cli.commands import COMMANDS, script
        from cromic_ds.errors import UserError
        class Ends:
            def __del__(self, write=sys.stdout.write):
                write("interpreter ends\\n")
        @dataclasses.dataclass
        class Settings:
            '''Nothing to set.'''
        def function(settings):
            {function}
        ends = Ends()
        atexit.register(print, "exit handler")
        sys.argv = ["script.py"]
        COMMANDS["script"] = Command("nothing", "a_script:Settings", "a_script:function", recipe="config")
        sys.modules["a_script"] = types.ModuleType("a_script")
        vars(sys.modules["a_script"]).update(Settings=Settings, function=function, ends=ends)
        script("script")
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, said), ended.stderr


def test_deepspeeds_local_rank_is_passed_over(parsed):
    assert parsed("--local_rank=1", "--seed", "4").seed == 4


def test_setting_types_are_those_of_all_sections():
    types = setting_types(settings_of(SCRIPT))
    assert types["seed"] is int
    assert types["optim.lr"] is float
    assert types["model.image_size"] == int | None
    assert set(leaves(settings_of(SCRIPT))) <= types.keys()
