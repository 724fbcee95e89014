"""The command line: settings dataclasses to parsers, a UserError to one line and exit code 2.

Modules are imported by the command that needs them, so that `cromic-ds --help` answers at once.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from cromic_ds.cli.messages import fail
from cromic_ds.cli.model_options import with_model_settings, with_options_of_chosen_model
from cromic_ds.cli.parser import check_sections, make_parser
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
    "sample": Command("write the sample world", "cromic_ds.world.sample", "SampleSettings", "sample"),
    "prepare": Command(
        "raw posts and images, or a task's official files, to a store",
        "cromic_ds.prepare.command",
        "PrepareSettings",
        "prepare",
        many=("text", "split"),
    ),
    "inspect": Command("what a store holds", "cromic_ds.tools.inspect", "InspectSettings", "inspect", ("store",)),
    "doctor": Command(
        "whether a run would start here, and on the hosts of a hostfile",
        "cromic_ds.tools.doctor.command",
        "DoctorSettings",
        "doctor",
    ),
    "plan": Command("memory and communication before a run", "cromic_ds.tools.plan", "PlanSettings", "plan"),
    "status": Command(
        "how runs are, from their folders",
        "cromic_ds.tools.status",
        "StatusSettings",
        "status",
        ("runs",),
        ("runs",),
    ),
    "export": Command(
        "a run's checkpoint to an export", "cromic_ds.checkpoints.export", "ExportSettings", "export", ("run",)
    ),
    "import-published": Command(
        "a checkpoint of the published code to an export",
        "cromic_ds.inference.import_published",
        "ImportSettings",
        "import_published",
        ("state_dict",),
    ),
    "generate": Command(
        "comments for one post or a file of posts",
        "cromic_ds.inference.generate",
        "GenerateSettings",
        "generate",
        ("export",),
    ),
    "evaluate": Command(
        "scores of an export on a split", "cromic_ds.inference.evaluate", "EvaluateSettings", "evaluate", ("export",)
    ),
    "predict": Command(
        "the file that a task's server takes", "cromic_ds.inference.predict", "PredictSettings", "predict", ("export",)
    ),
    "score": Command("scores of a predictions file", "cromic_ds.tools.score", "ScoreSettings", "score"),
    "compare": Command("two results side by side", "cromic_ds.tools.compare", "CompareSettings", "compare", ("a", "b")),
    "rate": Command(
        "judge answers, blind to who wrote them, on a local web page",
        "cromic_ds.tools.rating.rate",
        "RateSettings",
        "rate",
        many=("predictions",),
        flags=("report",),
    ),
    "table": Command(
        "the results table: every model on every task",
        "cromic_ds.tools.table.command",
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
        options = with_options_of_chosen_model(kind, argv, recipe)
        parser = make_parser(prog, options, positional, many, flags, recipe, implementation.__doc__)
        values = parser.parse_args(argv)
        check_sections(values, options)
        values = parser.instantiate(values)
        fields = {f.name: getattr(values, f.name) for f in dataclasses.fields(kind)}
        getattr(implementation, function)(kind(**with_model_settings(fields)))
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # `cromic-ds … | head`
        os._exit(0)
