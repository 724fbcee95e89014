"""The table of commands, and how one of them is run: settings from the command line, a UserError in one line and exit code 2.

A command's modules are imported when it is run, so that `cromic-ds --help` answers at once.
"""

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cromic_ds.cli.command import Command, imported
from cromic_ds.cli.messages import fail
from cromic_ds.errors import UserError, nearest
from cromic_ds.run_folder import RunFolder
from cromic_ds.settings import check_settings

COMMANDS: dict[str, Command] = {
    "sample": Command(
        "write the sample world: a small data set to try everything on",
        ".world.settings:SampleSettings",
        ".world.sample:sample",
    ),
    "prepare": Command(
        "convert raw posts and images, or a task's official files, to a store",
        ".prepare.settings:PrepareSettings",
        ".prepare.command:prepare",
        several=("text", "split"),
    ),
    "inspect": Command(
        "show what a store contains", ".tools.inspect:InspectSettings", ".tools.inspect:inspect", positional=("store",)
    ),
    "doctor": Command(
        "check whether a run can start here and on the hosts of a hostfile",
        ".tools.doctor.command:DoctorSettings",
        ".tools.doctor.command:doctor",
    ),
    "plan": Command("estimate memory and communication before a run", ".tools.plan:PlanSettings", ".tools.plan:plan"),
    "pretrain": Command(
        "pretrain a model on posts, images and comments",
        ".training.pretrain:PretrainSettings",
        ".training.pretrain:pretrain",
        recipe="config",
        trains=True,
    ),
    "finetune": Command(
        "fine-tune a model on a downstream task",
        ".training.finetune:FinetuneSettings",
        ".training.finetune:finetune",
        recipe="config",
        trains=True,
    ),
    "status": Command(
        "show the state of runs, read from their folders",
        ".tools.status:StatusSettings",
        ".tools.status:status",
        positional=("runs",),
        several=("runs",),
    ),
    "export": Command(
        "export a checkpoint of a run for inference",
        ".checkpoints.export:ExportSettings",
        ".checkpoints.export:export",
        positional=("run",),
    ),
    "import-published": Command(
        "convert a checkpoint of the published code to an export",
        ".inference.settings:ImportSettings",
        ".inference.import_published:import_published",
        positional=("state_dict",),
    ),
    "generate": Command(
        "generate comments for one post or for many",
        ".inference.settings:GenerateSettings",
        ".inference.generate:generate",
        positional=("export",),
    ),
    "evaluate": Command(
        "score an export on a split of a store",
        ".inference.settings:EvaluateSettings",
        ".inference.evaluate:evaluate",
        positional=("export",),
    ),
    "predict": Command(
        "write the predictions file that a task's evaluation server accepts",
        ".inference.settings:PredictSettings",
        ".inference.predict:predict",
        positional=("export",),
    ),
    "score": Command("score a file of predictions", ".tools.score:ScoreSettings", ".tools.score:score"),
    "compare": Command(
        "compare two results, with confidence intervals",
        ".tools.compare:CompareSettings",
        ".tools.compare:compare",
        positional=("a", "b"),
    ),
    "rate": Command(
        "judge answers on a local web page without seeing which model wrote them",
        ".tools.rating.rate:RateSettings",
        ".tools.rating.rate:rate",
        several=("predictions",),
        flags=("report",),
    ),
    "table": Command(
        "fill the results table: every model on every task",
        ".tools.table.settings:TableSettings",
        ".tools.table.command:table",
        flags=("retry", "show"),
        recipe="recipe",
    ),
}
USAGE = f"""usage: cromic-ds COMMAND [--setting VALUE …]

commands:
{chr(10).join(f"  {name:17} {command.help}" for name, command in COMMANDS.items())}

`cromic-ds help COMMAND` shows a command's settings. Training also starts with `deepspeed pretrain.py`, torchrun and srun.
`cromic-ds completion bash` (or zsh) prints a script for the shell that completes commands and settings."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `cromic-ds COMMAND …`."""
    argv = without_local_rank(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help") or argv == ["help"]:
        print(USAGE)
        sys.exit(0 if argv else 2)
    name, *arguments = argv
    if name == "--version":
        print(imported("cromic_ds:__version__"))
        return
    if name == "completion":
        print(imported(".cli.completion:completion_script")(COMMANDS, arguments))
        return
    if name == "help":
        name, arguments = arguments[0], ["--help", *arguments[1:]]
    if name not in COMMANDS:
        known = [*COMMANDS, "help", "completion"]
        fail(f"unknown command {name!r}{nearest(name, known)}; `cromic-ds --help` lists them")
    if not COMMANDS[name].trains:
        run_command(f"cromic-ds {name}", COMMANDS[name], arguments)
        return
    gpus, rest = take_option("--gpus", arguments)
    if gpus is None or not {"-h", "--help", "--print_config"}.isdisjoint(arguments):
        train(name, f"cromic-ds {name}", arguments, choose_folder=True)
    try:
        sys.exit(imported(".engine.local_launch:launch")(gpus, ["cromic_ds", name, *rest]))
    except UserError as error:
        fail(str(error))


def script(name: str) -> NoReturn:
    """Run `pretrain.py` or `finetune.py`, which a launcher starts."""
    train(name, f"{name}.py", without_local_rank(sys.argv[1:]))


def train(name: str, prog: str, argv: list[str], choose_folder: bool = False) -> NoReturn:
    """Run a training in this process, without --out in the folder that `run_folder_for` chooses if `choose_folder`."""
    # A scheduler may want the node back at any time: these signals wait until the run handles them.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    code: int | str = 0
    try:
        run_command(prog, COMMANDS[name], argv, name if choose_folder else None)
    except SystemExit as end:
        code = end.code or 0
    leave(int(code))


def leave(code: int) -> NoReturn:
    """End this process after its exit handlers, but without shutting the interpreter down.

    A thread of gloo that still holds a tensor of the last collective would ask the vanishing interpreter for its lock and abort
    (pytorch issue 190489).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_command(prog: str, command: Command, argv: list[str], training: str | None = None) -> None:
    """Parse `argv` into the settings dataclass, check it, and call the command's function with it.

    `training` is `pretrain` or `finetune` as a command of `cromic-ds`, which has --gpus and chooses its run folder.
    """
    try:
        settings, recipes = imported(".cli.parser:parse")(prog, command, argv, launches=training is not None)
        if training and take_option("--out", argv)[0] is None:
            settings.out = str(run_folder_for(settings.out, training, type(settings)().out, recipes))
        check_settings(settings)
        imported(command.function)(settings)
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # `cromic-ds … | head`
        os._exit(0)


def without_local_rank(argv: Sequence[str]) -> list[str]:
    """Return the arguments without --local_rank=N, which DeepSpeed's launcher adds; the environment contains it too."""
    return [argument for argument in argv if not argument.startswith("--local_rank=")]


def take_option(name: str, argv: list[str]) -> tuple[str | None, list[str]]:
    """Return the last value of an option, None if it is not given, and the other arguments."""
    value, rest, following = None, [], iter(argv)
    for argument in following:
        if argument == name:
            value = next(following, "")
        elif argument.startswith(f"{name}="):
            value = argument.removeprefix(f"{name}=")
        else:
            rest.append(argument)
    return value, rest


def run_folder_for(out: str, command: str, default: str, recipes: list[str]) -> Path:
    """Return the first of NAME, NAME-2, NAME-3, … that contains no finished run: an interrupted run is continued, and a
    finished one is never overwritten. NAME is the recipe's `out`, or runs/COMMAND_RECIPE if it has none."""
    base = Path(f"runs/{command}_{Path(recipes[-1]).stem}" if out == default and recipes else out)
    folder, number = base, 1
    while RunFolder(folder).finished.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder
