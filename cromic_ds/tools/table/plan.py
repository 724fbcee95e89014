"""The jobs of a table and the jobs that each waits for: a pure function of its recipe.

Commands run in the table's folder, so paths inside it are relative and the folder can be moved:

    recipes/          copies of the recipes that trainings start from
    posts/ official/  the sample world
    stores/<task>/    runs/<pretrain or finetune>-…/    results/<cell>.json
    jobs/<id>/        state.json, log.txt, lock
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cromic_ds.run_folder import RunFolder
from cromic_ds.tools.table.settings import TableSettings, layered

Stage = Literal["sample", "prepare", "pretrain", "finetune", "evaluate"]


@dataclass(frozen=True)
class TableJob:
    """A command, what it makes, and the jobs that must be done before it."""

    id: str
    stage: Stage
    command: tuple[str, ...]
    makes: str  # path in the table's folder; the stage says what kind of product it is
    needs: tuple[str, ...] = ()
    model: str = ""  # row of the table
    task: str = ""
    start: str = ""
    seed: int = 0

    @property
    def trains(self) -> bool:
        return self.stage in ("pretrain", "finetune")


def plan_jobs(settings: TableSettings) -> list[TableJob]:
    """Return all jobs, each after those that it needs.

    One seed comes after the other, so that a first whole table exists as early as possible, and each evaluation directly after
    its fine-tuning.
    """
    jobs = list(_data_jobs(settings))
    for seed in settings.seeds:
        if "pretrained" in settings.starts:
            jobs += [_training(settings, row, seed) for row in settings.models]
        for task in settings.tasks:
            for row in settings.models:
                for start in settings.starts:
                    finetuning = _training(settings, row, seed, task, start)
                    jobs += [finetuning, _evaluation(settings, finetuning)]
    return jobs


def recipe_of(settings: TableSettings, stage: Stage, row: str, task: str = "") -> str:
    """Return the recipe that a training starts from, as the settings name it."""
    pattern = settings.pretrain_recipe if stage == "pretrain" else settings.finetune_recipe
    return pattern.replace("{model}", settings.kind_of(row)).replace("{task}", task)


def _data_jobs(settings: TableSettings) -> Iterator[TableJob]:
    data = settings.data
    sampled = data.source == "sample"
    if sampled:
        world = ["cromic-ds", "sample", "--seed", data.sample_seed]
        posts = [*world, "--out", "posts", "--posts", data.sample_posts]
        yield TableJob("sample-posts", "sample", _texts(posts), "posts")
        pictures = data.sample_pictures + 2 * data.sample_val_pictures
        share = data.sample_val_pictures / pictures
        official = [*world, "--official", "official", "--posts", pictures, "--val_fraction", share]
        yield TableJob("sample-official", "sample", _texts(official), "official")
    for task in settings.tasks:
        root = f"official/{task}" if sampled else data.official[task]
        # The splits for training, for choosing the best checkpoint and for the final scores.
        splits = dict.fromkeys(["train", "val", layered(settings.evaluate, {task}).get("split", "val")])
        command = ["cromic-ds", "prepare", "--task", task, "--root", root, "--out", f"stores/{task}"]
        command += ["--tokenizer", f"{_posts(settings)}/tokenizer", "--split", *splits]
        if sampled:
            command += ["--extras", f"{root}/grounding.jsonl"]
        command += _flags(layered(settings.prepare, {task}))
        needs = ("sample-posts", "sample-official") if sampled else ()
        yield TableJob(f"prepare-{task}", "prepare", _texts(command), f"stores/{task}", needs, task=task)


def _training(settings: TableSettings, row: str, seed: int, task: str = "", start: str = "") -> TableJob:
    """Return a row's fine-tuning on a task, or without a task its pretraining."""
    stage: Stage = "finetune" if task else "pretrain"
    id = "-".join(part for part in (stage, row, task, start, str(seed)) if part)
    run = RunFolder(Path("runs", id))
    recipe = Path(recipe_of(settings, stage, row, task)).stem
    command: list[Any] = ["cromic-ds", stage, "--config", f"recipes/{recipe}.yaml"]
    if task:
        command += ["--task", task, "--data.path", f"stores/{task}"]
        needs, layers = [f"prepare-{task}"], settings.finetune
    else:
        command += ["--data.path", _posts(settings)]
        needs, layers = ["sample-posts"] if settings.data.source == "sample" else [], settings.pretrain
    command += ["--out", str(run.path), "--seed", seed, "--model.name", settings.kind_of(row)]
    if start == "pretrained":
        pretraining = _training(settings, row, seed)
        needs.append(pretraining.id)
        command += ["--backbone", pretraining.makes]
    else:
        command += _flags({f"model.{name}": value for name, value in settings.models[row].items() if name != "name"})
    command += _flags(layered(layers, {row, settings.kind_of(row), task, start}))
    return TableJob(id, stage, _texts(command), str(run.export), tuple(needs), row, task, start, seed)


def _evaluation(settings: TableSettings, finetuning: TableJob) -> TableJob:
    row, task, start, seed = finetuning.model, finetuning.task, finetuning.start, finetuning.seed
    cell = f"{row}-{task}-{start}-{seed}"
    result = f"results/{cell}.json"
    command = ["cromic-ds", "evaluate", finetuning.makes, "--task", task, "--data", f"stores/{task}", "--out", result]
    command += _flags(layered(settings.evaluate, {row, settings.kind_of(row), task, start}))
    needs = (finetuning.id,)
    return TableJob(f"evaluate-{cell}", "evaluate", _texts(command), result, needs, row, task, start, seed)


def _posts(settings: TableSettings) -> str:
    return "posts" if settings.data.source == "sample" else settings.data.posts


def _flags(settings: dict[str, Any]) -> list[Any]:
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def _texts(command: list[Any]) -> tuple[str, ...]:
    return tuple(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in command)
