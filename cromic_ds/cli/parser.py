"""Parsers for settings dataclasses: each field is an option, nested dataclasses are `--section.key`."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn, get_type_hints

from cromic_ds.cli.messages import expected, explain, fail
from cromic_ds.cli.model_options import hide_constants


def make_parser(
    prog: str,
    kind: type,
    positional: tuple[str, ...],
    many: tuple[str, ...],
    flags: tuple[str, ...],
    recipe: str,
    about: str | None,
) -> Any:
    """A jsonargparse parser for a settings dataclass, nested dataclasses as `--section.key`."""
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        """Errors in one line, with the nearest valid name for a mistyped one."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            fail(explain(message, setting_types(kind)))

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Without abbreviations: `--loop.step` would pass for `--loop.steps`.
    parser = Parser(prog=prog, description=(about or "").split("\n\n")[0], allow_abbrev=False)
    if recipe:
        parser.add_argument(
            f"--{recipe}", action=ActionConfigFile, help="YAML recipe; later options override its values."
        )
    parser.add_class_arguments(kind, as_positional=False, skip={*positional, *many, *flags})
    help_of = attribute_docs(kind)
    for field in dataclasses.fields(kind):
        if field.name in positional:
            several = {"nargs": "+"} if field.name in many else {}
            parser.add_argument(field.name, help=help_of.get(field.name), **several)
        elif field.name in many:
            parser.add_argument(f"--{field.name}", nargs="+", default=[], help=help_of.get(field.name))
        elif field.name in flags:
            parser.add_argument(f"--{field.name}", action="store_true", help=help_of.get(field.name))
    hide_constants(parser, kind)
    return parser


def attribute_docs(kind: type) -> dict[str, str]:
    """The docstrings below a dataclass's fields, inherited ones included."""
    from docstring_parser import parse_from_object

    bases = reversed(kind.__mro__[:-1])
    return {p.arg_name: p.description for base in bases for p in parse_from_object(base).params if p.description}


def setting_types(kind: type) -> dict[str, Any]:
    """Dotted name to type of every setting, those of nested dataclasses (and these themselves) included."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        types[name] = hint
        if dataclasses.is_dataclass(hint):
            types |= {f"{name}.{inner}": inner_hint for inner, inner_hint in setting_types(hint).items()}
    return types


def check_sections(values: Any, kind: type) -> None:
    """jsonargparse takes anything for a nested dataclass in a YAML file, `loop: 3` too."""
    from jsonargparse import Namespace

    for name, hint in setting_types(kind).items():
        if dataclasses.is_dataclass(hint) and not isinstance(values[name], Namespace):
            fail(f"{name} is {values[name]!r}: expected {expected(hint)}")
