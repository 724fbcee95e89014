"""Whether the commands of a table's jobs would understand their settings, asked before the first of them is started.

In a process of its own, for it imports all that trains.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

from cromic_ds.errors import UserError
from cromic_ds.tools.table.folder import TableFolder
from cromic_ds.tools.table.plan import TableJob

SETTINGS = {
    "pretrain": ("cromic_ds.training.pretrain", "PretrainSettings"),
    "finetune": ("cromic_ds.training.finetune", "FinetuneSettings"),
    "evaluate": ("cromic_ds.inference.evaluate", "EvaluateSettings"),
}


def check_commands(folder: TableFolder, jobs: list[TableJob]) -> None:
    """Raises UserError with the first setting that is unknown or mistyped; the folder must hold the recipes."""
    asked = questions(jobs)
    if not asked:
        return
    command = [sys.executable, "-m", "cromic_ds.tools.table.check"]
    done = subprocess.run(command, input=json.dumps(asked), cwd=folder.path, capture_output=True, text=True)
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["the settings could not be checked"])[-1])


def questions(jobs: list[TableJob]) -> list[tuple[str, str, list[str]]]:
    """Id, stage and arguments of each job that has settings to check."""
    asked = []
    for job in jobs:
        if job.stage == "evaluate":  # cromic-ds evaluate EXPORT --…
            asked.append((job.id, job.stage, ["--export", *job.command[2:]]))
        elif job.trains:
            asked.append((job.id, job.stage, list(job.command[2:])))
    return asked


def problem(asked: list[tuple[str, str, list[str]]]) -> str | None:
    """What is wrong with the first of the jobs (id, stage, arguments) that would not start; None where all would."""
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

    from cromic_ds.models.settings import model_settings, with_model_options

    for id, stage, arguments in asked:
        module, name = SETTINGS[stage]
        kind = getattr(importlib.import_module(module), name)
        try:
            if stage != "evaluate":
                kind = with_model_options(kind, arguments[arguments.index("--model.name") + 1])
            parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
            parser.add_argument("--config", action=ActionConfigFile)
            parser.add_class_arguments(kind, as_positional=False)
            settings = parser.instantiate(parser.parse_args(arguments))
            if stage != "evaluate" and not settings.get("backbone"):
                model_settings(settings.model).check()
        except (ArgumentError, UserError) as error:
            return f"{id}: {' '.join(str(error).split())}; `cromic-ds table … --show` prints its command"
    return None


if __name__ == "__main__":
    sys.exit(problem(json.load(sys.stdin)))
