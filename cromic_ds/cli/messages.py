"""Errors of the command line, each in one line."""

import dataclasses
import os
import re
import sys
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from cromic_ds.errors import nearest


def fail(message: str) -> NoReturn:
    """Print the message as an error and exit with code 2."""
    # Under a launcher all ranks of a host have the same error (a folder that is missing there, say): the first one prints it.
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        print(f"error: {message}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(2)


def explain(message: str, types: dict[str, Any]) -> str:
    """Return jsonargparse's message in one line, with the nearest valid name of an unknown setting or what a value should be.

    `types` has the type of each setting by its dotted name.
    """
    text = " ".join(message.split())
    pattern = r"unrecognized arguments?: -*([\w.-]+)|Option '([\w.-]+)' is not accepted"
    pattern += r"|Group '([\w.]+)' does not accept option '([\w.-]+)'"
    if unknown := re.search(pattern, text):
        name = ".".join(filter(None, unknown.groups()))
        return f"unknown setting {name!r}{nearest(name, types)}; --help lists all settings"
    wrong = re.match(r'Parser key "([\w.]+)": (.*)', text)
    if not wrong:
        return text
    name, reason = wrong.groups()
    found = re.search(r"(?:Got|Given) value: (.*)|Unable to load config '(.*?)'", reason)
    if name not in types or not found:
        return f"{name}: {reason}"
    value = found[1] or found[2] or ""
    parts = (types[name], *get_args(types[name]))  # a Literal, or one beside null
    options = [option for part in parts for option in get_args(part) if isinstance(option, str)]
    return f"{name} is {value!r}: expected {expected(types[name])}{nearest(value, options)}"


def expected(hint: Any) -> str:
    """Return a type in words."""
    if dataclasses.is_dataclass(hint):
        return f"settings by name ({', '.join(f.name for f in dataclasses.fields(hint)[:3])}, …)"
    if get_origin(hint) is Literal:
        return " or ".join(str(option) for option in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(expected, get_args(hint)))
    if get_origin(hint) in (tuple, list):
        return "[" + ", ".join(map(expected, get_args(hint))) + (", …]" if get_origin(hint) is list else "]")
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return words.get(hint, str(hint))
