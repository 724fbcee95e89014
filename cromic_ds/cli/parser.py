"""Parsers for settings dataclasses: each field is an option, nested dataclasses are `--section.key`."""

import argparse
import dataclasses
import sys
from itertools import pairwise
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import jsonargparse
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from cromic_ds.cli.command import Command, imported
from cromic_ds.cli.messages import expected, explain, fail
from cromic_ds.cli.model_options import hide_constants, with_model_settings, with_options_of_chosen_model
from cromic_ds.errors import nearest
from cromic_ds.shipped import find_recipe

GPUS = """Start this many processes, one for each GPU, with DeepSpeed's launcher on this machine. all: every GPU, or two
processes on the CPU if there is none. Without this option, training runs in this process."""


class RecipeFile(jsonargparse.ActionConfigFile):  # pyright: ignore[reportPrivateImportUsage]
    """A YAML file by its path, or a shipped recipe by its name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        super().__call__(parser, cfg, str(find_recipe(str(values), option_string or "recipe")), option_string)


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's, without the type of an option whose choices are shown, and with line breaks kept in the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return argparse.RawDescriptionHelpFormatter._fill_text(self, text, width, indent)  # type: ignore[arg-type]

    def _get_type_str(self, action: argparse.Action) -> str | None:
        return None if str(action.metavar).startswith("{") else super()._get_type_str(action)


class Parser(ArgumentParser):
    """Report errors in one line, with the nearest valid name for a mistyped one; begin the help with the sections."""

    def __init__(self, prog: str, command: Command, kind: type) -> None:
        self.kind = kind
        places = " ".join(name.upper() for name in command.positional)
        usage = " ".join(filter(None, (prog, places, "[--setting VALUE …]")))
        # Without abbreviations: `--loop.step` would pass for `--loop.steps`.
        super().__init__(
            prog=prog, usage=usage, description=command.description, allow_abbrev=False, formatter_class=HelpFormatter
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        own = {action.dest: str for action in self._actions if action.option_strings}
        fail(explain(message, {**own, **setting_types(self.kind)}))

    def format_section(self, name: str) -> str:
        """Return the help of one section. The parser is used up afterwards."""
        known = sections_of(self.kind)
        if name not in known:
            fail(f"no section {name!r}{nearest(name, known)}; the sections are {', '.join(known)}")
        self.usage, self.description = argparse.SUPPRESS, None
        self._action_groups = [
            group for group in self._action_groups if any(a.dest.startswith(f"{name}.") for a in group._group_actions)
        ]
        return self.format_help()


def parse(prog: str, command: Command, argv: list[str], launches: bool = False) -> tuple[Any, list[str]]:
    """Return the settings in `argv`, a dataclass of the command's type, and the recipes that they come from.

    Raises SystemExit for wrong input, or after the help has been printed. For `launches` see `make_parser`.
    """
    kind = imported(command.settings)
    options = with_options_of_chosen_model(kind, argv, command.recipe)
    parser = make_parser(prog, command, options, launches)
    for option, section in pairwise(argv):
        if option in ("-h", "--help") and not section.startswith("-") and sections_of(kind):
            print(parser.format_section(section), end="")
            sys.exit()
    values = parser.parse_args(argv)
    if launches and "gpus" in values:
        fail("gpus is no setting of a recipe: give --gpus on the command line")
    check_sections(values, options)
    values = parser.instantiate(values)
    recipes = [str(path) for path in (values[command.recipe] if command.recipe else None) or []]
    fields = {field.name: values[field.name] for field in dataclasses.fields(kind)}
    return kind(**with_model_settings(fields)), recipes


def make_parser(prog: str, command: Command, kind: type, launches: bool = False) -> Parser:
    """Return a parser for a settings dataclass, nested dataclasses as `--section.key`; with --gpus if it `launches`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog, command, kind)
    if command.recipe:
        what = "Recipe: a YAML file of settings, or the name of a shipped one; later options override its values."
        parser.add_argument(f"--{command.recipe}", action=RecipeFile, metavar="RECIPE", help=what)
    if launches:
        parser.add_argument("--gpus", metavar="N|all", default=argparse.SUPPRESS, help=" ".join(GPUS.split()))
    parser.add_class_arguments(kind, as_positional=False, skip={*command.positional, *command.several, *command.flags})
    help_of = attribute_docs(kind)
    for name in (field.name for field in dataclasses.fields(kind)):
        if name in command.positional:
            parser.add_argument(name, help=help_of.get(name), nargs="+" if name in command.several else None)
        elif name in command.several:
            parser.add_argument(f"--{name}", nargs="+", default=[], help=help_of.get(name))
        elif name in command.flags:
            parser.add_argument(f"--{name}", action="store_true", help=help_of.get(name))
    hide_constants(parser, kind)
    _polish_help(parser)
    return parser


def _polish_help(parser: Parser) -> None:
    """List the sections first, name them in the titles of their options, and show enumerations as choices."""
    sections = sections_of(parser.kind)
    if sections:
        listed = "\n".join(f"  {name:9}  {about}" for name, about in sections.items() if "." not in name)
        parser.description = f"{parser.description}\n\nsections (--help SECTION prints one of them):\n{listed}"
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.dest in sections:  # jsonargparse's option for a file with this section's settings
                action.help = argparse.SUPPRESS
                group.title = f"{action.dest}: {group.title}"
            elif choices := _choices(getattr(action, "_typehint", None)):
                action.metavar = "{" + ",".join(choices) + "}"


def _choices(hint: Any) -> list[str]:
    """Return the values of `Literal[…] | None`, none for other types (jsonargparse does a plain Literal itself)."""
    literals = [option for option in get_args(hint) if option is not type(None)]
    if len(literals) == len(get_args(hint)) or not all(get_origin(literal) is Literal for literal in literals):
        return []
    return [*(str(value) for literal in literals for value in get_args(literal)), "null"]


def attribute_docs(kind: type) -> dict[str, str]:
    """Return the docstrings below a dataclass's fields, inherited ones included."""
    from docstring_parser import parse_from_object

    bases = reversed(kind.__mro__[:-1])
    return {p.arg_name: p.description for base in bases for p in parse_from_object(base).params if p.description}


def setting_types(kind: type) -> dict[str, Any]:
    """Return the type of every setting by its dotted name, nested dataclasses and their fields included."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        types[name] = hint
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            types |= {f"{name}.{inner}": inner_hint for inner, inner_hint in setting_types(hint).items()}
    return types


def sections_of(kind: type) -> dict[str, str]:
    """Return the first line of the docstring of every nested dataclass by its dotted name."""
    types = setting_types(kind).items()
    return {name: (hint.__doc__ or "").strip().split("\n")[0] for name, hint in types if dataclasses.is_dataclass(hint)}


def check_sections(values: Any, kind: type) -> None:
    """Reject a value that is no section where one belongs (`loop: 3`), which jsonargparse takes from a YAML file."""
    for name, hint in setting_types(kind).items():
        if dataclasses.is_dataclass(hint) and not isinstance(values[name], Namespace):
            fail(f"{name} is {values[name]!r}: expected {expected(hint)}")
