"""The command line: settings dataclasses to parsers, a UserError to one line and exit code 2.

Modules are imported by the command that needs them, so that `cromic-ds --help` answers at once.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from cromic_ds.errors import UserError, nearest


class Command(NamedTuple):
    """A subcommand: where its settings dataclass and its function are."""

    help: str
    module: str
    settings: str
    function: str
    positional: tuple[str, ...] = ()  # settings given without `--name`
    many: tuple[str, ...] = ()  # settings that take several values, after one `--name` or positional
    flags: tuple[str, ...] = ()  # settings that are true where `--name` stands alone
    recipe: str = ""  # name of the option that takes a YAML file of settings


COMMANDS: dict[str, Command] = {
    "sample": Command("write the sample world", "cromic_ds.data.world.sample", "SampleSettings", "sample"),
    "prepare": Command(
        "raw posts and images, or a task's official files, to a store",
        "cromic_ds.data.prepare",
        "PrepareSettings",
        "prepare",
        many=("text", "split"),
    ),
    "inspect": Command("what a store holds", "cromic_ds.data.inspect", "InspectSettings", "inspect", ("store",)),
    "doctor": Command(
        "whether a run would start here, and on the hosts of a hostfile",
        "cromic_ds.doctor.command",
        "DoctorSettings",
        "doctor",
    ),
    "plan": Command("memory and communication before a run", "cromic_ds.training.plan", "PlanSettings", "plan"),
    "status": Command(
        "how runs are, from their folders",
        "cromic_ds.tracking.status",
        "StatusSettings",
        "status",
        ("runs",),
        ("runs",),
    ),
    "export": Command(
        "a run's checkpoint to an export", "cromic_ds.training.export", "ExportSettings", "export", ("run",)
    ),
    "import-published": Command(
        "a checkpoint of the published code to an export",
        "cromic_ds.training.import_published",
        "ImportSettings",
        "import_published",
        ("state_dict",),
    ),
    "generate": Command(
        "comments for one post or a file of posts",
        "cromic_ds.training.generate",
        "GenerateSettings",
        "generate",
        ("export",),
    ),
    "evaluate": Command(
        "scores of an export on a split", "cromic_ds.training.evaluate", "EvaluateSettings", "evaluate", ("export",)
    ),
    "predict": Command(
        "the file that a task's server takes", "cromic_ds.training.predict", "PredictSettings", "predict", ("export",)
    ),
    "score": Command("scores of a predictions file", "cromic_ds.tasks.score", "ScoreSettings", "score"),
    "compare": Command("two results side by side", "cromic_ds.tasks.compare", "CompareSettings", "compare", ("a", "b")),
    "rate": Command(
        "judge answers, blind to who wrote them, on a local web page",
        "cromic_ds.rating.rate",
        "RateSettings",
        "rate",
        many=("predictions",),
        flags=("report",),
    ),
    "table": Command(
        "the results table: every model on every task",
        "cromic_ds.table.command",
        "TableSettings",
        "table",
        flags=("retry", "show"),
        recipe="recipe",
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `cromic-ds COMMAND …`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: cromic-ds COMMAND [--setting value …]\n\ncommands (each has --help):")
        print("\n".join(f"  {name:17} {command.help}" for name, command in COMMANDS.items()))
        print("\nTraining is started by a launcher: deepspeed pretrain.py (or finetune.py), torchrun, or python.")
        sys.exit(0 if argv else 2)
    name = argv[0]
    if name == "--version":
        from cromic_ds import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        fail(f"unknown command {name!r}{nearest(name, COMMANDS)}; `cromic-ds --help` lists them")
    command = COMMANDS[name]
    run_command(
        f"cromic-ds {name}",
        command.module,
        command.settings,
        command.function,
        argv[1:],
        positional=command.positional,
        many=command.many,
        flags=command.flags,
        recipe=command.recipe,
    )


def script(prog: str, module: str, settings: str, function: str) -> None:
    """A script that a launcher starts (`pretrain.py`, `finetune.py`)."""
    # A scheduler may want the node back at any time: until the run takes these signals they wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    # DeepSpeed's launcher adds --local_rank=N; the environment says the same.
    argv = [a for a in sys.argv[1:] if not a.startswith("--local_rank=")]
    code = 0
    try:
        run_command(prog, module, settings, function, argv, recipe="config")
    except SystemExit as end:
        code = end.code or 0
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process after its exit handlers, but without shutting the interpreter down: a thread of gloo that still holds
    a tensor of the last collective would ask a vanishing interpreter for its lock, and abort (pytorch issue 190489)."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_command(
    prog: str,
    module: str,
    settings: str,
    function: str,
    argv: list[str],
    positional: tuple[str, ...] = (),
    many: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    recipe: str = "",
) -> None:
    """Parse `argv` into the settings dataclass and call the function with it."""
    try:
        implementation = importlib.import_module(module)
        kind = getattr(implementation, settings)
        parser = make_parser(prog, kind, positional, many, flags, recipe, implementation.__doc__)
        values = parser.parse_args(argv)
        check_sections(values, kind)
        values = parser.instantiate(values)
        fields = {f.name: getattr(values, f.name) for f in dataclasses.fields(kind)}
        getattr(implementation, function)(kind(**fields))
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # `cromic-ds … | head`
        os._exit(0)


def fail(message: str) -> NoReturn:
    # Under a launcher every rank of a node has the same error (a folder that is missing there, say); one of them says it.
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        print(f"error: {message}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(2)


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


def explain(message: str, types: dict[str, Any]) -> str:
    """jsonargparse's message in one line, with the nearest valid name for an unknown key, the valid values for a wrong one."""
    text = " ".join(message.split())
    unknown = re.search(
        r"unrecognized arguments?: -*([\w.-]+)"
        r"|Option '([\w.-]+)' is not accepted"
        r"|Group '([\w.]+)' does not accept option '([\w.-]+)'",
        text,
    )
    if unknown:
        name = ".".join(filter(None, unknown.groups()))
        return f"unknown setting {name!r}{nearest(name, types)}; --help lists all settings"
    wrong = re.match(r'Parser key "([\w.]+)": (.*)', text)
    if not wrong:
        return text
    name, reason = wrong.groups()
    value = re.search(r"(?:Got|Given) value: (.*)|Unable to load config '(.*?)'", reason)
    if name not in types or not value:
        return f"{name}: {reason}"
    value = value[1] or value[2] or ""
    options = [o for o in get_args(types[name]) if isinstance(o, str)]
    return f"{name} is {value!r}: expected {expected(types[name])}{nearest(value, options)}"


def expected(hint: Any) -> str:
    """A type in words."""
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
