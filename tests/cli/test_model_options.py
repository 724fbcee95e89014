"""The options of the chosen model, and only of that one."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.paths import REPOSITORY

from cromic_ds.cli.commands import COMMANDS
from cromic_ds.cli.model_options import with_options_of_chosen_model
from cromic_ds.cli.parser import parse as parse_settings
from cromic_ds.cli.parser import setting_types
from cromic_ds.models.common.config import settings_of
from cromic_ds.models.registry import MODELS
from cromic_ds.models.settings import ModelSettings, as_values
from cromic_ds.training.finetune import FinetuneSettings
from cromic_ds.training.pretrain import PretrainSettings
from cromic_ds.training.startup import open_folder, settings_dict


def parse(*arguments: str, kind: type = PretrainSettings):
    """The settings of a training's command line."""
    command = COMMANDS["pretrain" if kind is PretrainSettings else "finetune"]
    return parse_settings("test", command, list(arguments))[0]


def help_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        parse(*arguments, "--help")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", MODELS)
def test_help_lists_the_settings_of_the_chosen_model_alone(capsys, name):
    text = help_of(capsys, "--model.name", name)
    own = settings_of(MODELS[name].config, hidden=False)
    for kind in MODELS.values():
        for field in settings_of(kind.config):
            assert (f"--model.{field} " in text) == (field in own), field


def test_help_follows_the_recipe(capsys):
    assert "--model.patch_size" in help_of(capsys, "--config", str(REPOSITORY / "recipes" / "sample_vilt.yaml"))
    assert "--model.image_norm" in help_of(capsys)


def test_the_last_name_counts(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {name: vilt, patch_size: 16}\n")
    recipe = ["--config", str(tmp_path / "recipe.yaml")]
    assert parse(*recipe).model == ModelSettings(name="vilt", overrides={"patch_size": 16})
    assert parse("--model.name", "vlp", *recipe).model.name == "vilt"
    with pytest.raises(SystemExit, match="2"):
        parse(*recipe, "--model.name=vlp")


def test_constants_of_the_architecture_can_be_set():
    settings = parse("--model.name", "vlp", "--model.layer_norm_eps", "1e-5", "--model.mask_rate", "0.2")
    assert settings.model.overrides == {"layer_norm_eps": 1e-5, "mask_rate": 0.2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.name", "vlp", "--model.patch_size", "8"], "unknown setting 'model.patch_size'"),
        (["--model.name", "vlp", "--model.mask_rat", "8"], "(did you mean 'model.mask_rate'?)"),
        (["--model.mask_rate", "0.1"], "unknown setting 'model.mask_rate'"),
        (["--model.name", "vlp", "--model.objective", "casual"], "masked or causal or null (did you mean 'causal'?)"),
        (["--model.vocab_size", "9"], "unknown setting 'model.vocab_size'"),
        (["--model.overrides", "{}"], "unknown setting 'model.overrides'"),
    ],
)
def test_what_the_model_does_not_have_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        parse(*arguments)
    assert message in capsys.readouterr().err


def test_weights_to_start_from_choose_the_model(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text(json.dumps({"model_type": "cromic_vilt"}))
    settings = parse("--backbone", str(tmp_path), "--model.decoder", "prefix", kind=FinetuneSettings)
    assert settings.model.overrides == {"decoder": "prefix"}
    settings.model.check()  # although the name is still cmt
    settings = parse(f"--model.init_from={tmp_path / 'export'}", "--model.decoder", "prefix")
    assert settings.model.overrides == {"decoder": "prefix"}


def test_a_runs_settings_name_the_models_fields_beside_the_others(tmp_path):
    settings = parse("--model.name", "vlp", "--model.mask_rate", "0.2")
    assert as_values(settings)["model"].items() >= {"name": "vlp", "preset": "small", "mask_rate": 0.2}.items()
    open_folder(tmp_path / "run", settings_dict(settings))
    assert parse("--config", str(tmp_path / "run" / "config.yaml")) == settings


def test_every_field_is_documented_and_no_name_means_two_things():
    shared = {f.name for f in dataclasses.fields(ModelSettings)}
    for name, kind in MODELS.items():
        assert not shared & settings_of(kind.config).keys()
        types = setting_types(with_options_of_chosen_model(PretrainSettings, ["--model.name", name], "config"))
        assert {f"model.{field}" for field in settings_of(kind.config)} <= types.keys()
