"""What the command line knows of a command."""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from cromic_ds.cli.messages import fail


@dataclass(frozen=True)
class Command:
    """A command: its help, and where its settings and its function are (`.module:name` in cromic_ds), to import when needed."""

    help: str
    settings: str  # a dataclass. --help imports its module: it should import nothing that takes long.
    function: str
    positional: tuple[str, ...] = ()  # settings that are given without `--name`
    several: tuple[str, ...] = ()  # settings that take several values, after one `--name` or as the positional ones
    flags: tuple[str, ...] = ()  # settings that are true if `--name` is given, without a value
    recipe: str = ""  # name of the option that takes a YAML file of settings
    trains: bool = False

    @property
    def description(self) -> str:
        return f"{self.help[0].upper()}{self.help[1:]}."


def imported(place: str) -> Any:
    """Import `module:name`. Exit with one line if a library is missing, as without the environment activated."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module, "cromic_ds"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "cromic_ds"):
            raise
        fail(
            f"there is no module {missing!r} in this Python ({sys.executable}): activate the environment that cromic_ds is "
            "installed in (in a checkout: source .venv/bin/activate)"
        )
