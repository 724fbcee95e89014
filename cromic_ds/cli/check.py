"""Check the settings of many commands without running them. The results table does this before it starts its first job:

    python -m cromic_ds.cli.check < COMMANDS

COMMANDS is a JSON object with the arguments of `cromic-ds` by any name: {"a": ["evaluate", "runs/a", "--limit", "9"], …}.
Each name is printed before its check, so the last one is that of the first wrong command. Its error is one line, and the exit
code is 2.
"""

import json
import sys

from cromic_ds.cli.commands import COMMANDS
from cromic_ds.cli.messages import fail
from cromic_ds.cli.parser import parse
from cromic_ds.errors import UserError
from cromic_ds.settings import check_settings


def check_all(commands: dict[str, list[str]]) -> None:
    """Exit with an error at the first command whose settings are wrong."""
    for name, (command, *arguments) in commands.items():
        print(name, flush=True)
        try:
            check_settings(parse(f"cromic-ds {command}", COMMANDS[command], arguments)[0])
        except UserError as error:
            fail(str(error))


if __name__ == "__main__":
    check_all(json.load(sys.stdin))
