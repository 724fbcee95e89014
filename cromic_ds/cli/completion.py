"""Completion of commands and their settings in a shell."""

from collections.abc import Mapping

import shtab
from jsonargparse import ArgumentParser

from cromic_ds.cli.command import Command, imported
from cromic_ds.cli.messages import fail
from cromic_ds.cli.model_options import with_options_of_chosen_model
from cromic_ds.cli.parser import make_parser


def completion_script(commands: Mapping[str, Command], arguments: list[str]) -> str:
    """Return the script that bash or zsh reads with `source`."""
    shells = [shell for shell in shtab.SUPPORTED_SHELLS if shell in ("bash", "zsh")]
    if len(arguments) != 1 or arguments[0] not in shells:
        fail(f"for which shell? cromic-ds completion {' or '.join(shells)}")
    parser = ArgumentParser(prog="cromic-ds")
    subcommands = parser.add_subcommands()
    for name, command in commands.items():
        kind = with_options_of_chosen_model(imported(command.settings), [], command.recipe)
        own = make_parser(f"cromic-ds {name}", command, kind, command.trains)
        subcommands.add_subcommand(name, own, help=command.help)
    return parser.get_completion_script(f"shtab-{arguments[0]}")
