"""Options of the chosen model: `--model.FIELD` for the fields of its config, and of no other.

A parser can only be built once the model is known, so its name is looked for in the arguments before they are parsed. Mistakes
in them are left for the parser to report.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

from cromic_ds.errors import UserError
from cromic_ds.shipped import find_recipe


def with_options_of_chosen_model(settings: type, arguments: Sequence[str], recipe: str) -> type:
    """Return the settings dataclass with the options of the model that the arguments choose, if it trains one.

    `recipe` names the option that takes a YAML file of settings. Raises UserError for an unknown model.
    """
    if not dataclasses.is_dataclass(get_type_hints(settings).get("model")):
        return settings
    from cromic_ds.models.settings import ModelSettings, with_model_options

    given = dict(_given(arguments, recipe))
    weights = given.get("backbone") or given.get("model.init_from")
    name = (weights and _model_of(str(weights))) or given.get("model.name") or ModelSettings().name
    return with_model_options(settings, str(name))


def with_model_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return parsed settings with a `ModelSettings` for the options of a model, if there are any."""
    if not dataclasses.is_dataclass(values.get("model")):
        return values
    from cromic_ds.models.settings import model_settings

    return values | {"model": model_settings(values["model"])}


def hide_constants(parser: argparse.ArgumentParser, settings: type) -> None:
    """Leave constants of the chosen model's architecture out of `--help`; they can still be set."""
    hidden = {f"model.{name}" for name in getattr(get_type_hints(settings).get("model"), "hidden", ())}
    for action in parser._actions:
        if action.dest in hidden:
            action.help = argparse.SUPPRESS


def _given(arguments: Sequence[str], recipe: str) -> Iterator[tuple[str, Any]]:
    """The settings that choose a model, by dotted name and in the order of the arguments; those of recipes included."""
    import yaml

    for place, argument in enumerate(arguments):
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in ("backbone", "model", "model.init_from", "model.name", recipe) or not argument.startswith("--"):
            continue
        value = value if equals else "".join(arguments[place + 1 : place + 2])
        try:
            if name == recipe:
                yield from _flat(yaml.safe_load(find_recipe(value, "").read_text(encoding="utf-8")))
            elif name == "model":
                yield from _flat({"model": yaml.safe_load(value)})
            else:
                yield name, value
        except (UserError, OSError, UnicodeDecodeError, yaml.YAMLError):
            continue


def _flat(values: Any) -> Iterator[tuple[str, Any]]:
    for name, value in values.items() if isinstance(values, dict) else ():
        if name == "model" and isinstance(value, dict):
            yield from ((f"model.{inner}", v) for inner, v in value.items())
        else:
            yield name, value


def _model_of(weights: str) -> str | None:
    """The name of the model in an export or run folder; None where it holds none that is known."""
    from cromic_ds.files import read_json_if_there
    from cromic_ds.inference.exports import find_export
    from cromic_ds.models.registry import MODELS

    config = read_json_if_there(find_export(weights) / "config.json")
    names = {kind.config.model_type: name for name, kind in MODELS.items()}
    return names.get(config.get("model_type", "")) if isinstance(config, dict) else None
