"""The jobs of a table and the jobs that each waits for: a pure function of its recipe.

Commands run in the table's folder, so paths inside it are relative and the folder can be moved:

    recipes/          copies of the recipes that trainings start from
    posts/ official/  the sample world
    stores/<task>/    runs/<pretrain or finetune>-…/    results/<cell>.json
    jobs/<id>/        state.json, log.txt, lock
"""

from __future__ import annotations

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
    return [*_data_jobs(settings), *(job for seed in settings.seeds for job in _jobs_of_seed(settings, seed))]


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
        command: list[Any] = ["cromic-ds", "prepare", "--task", task, "--root", root, "--out", f"stores/{task}"]
        command += ["--tokenizer", f"{_posts(settings)}/tokenizer", "--split", *_splits(settings, task)]
        if sampled:
            command += ["--extras", f"{root}/grounding.jsonl"]
        command += _flags(layered(settings.prepare, {task}))
        needs = ("sample-posts", "sample-official") if sampled else ()
        yield TableJob(f"prepare-{task}", "prepare", _texts(command), f"stores/{task}", needs, task=task)


def _jobs_of_seed(settings: TableSettings, seed: int) -> Iterator[TableJob]:
    if "pretrained" in settings.starts:
        for row in settings.models:
            yield _pretraining(settings, row, seed)
    for task in settings.tasks:
        for row in settings.models:
            for start in settings.starts:
                finetuning = _finetuning(settings, row, task, start, seed)
                yield finetuning
                yield _evaluation(settings, finetuning)


def _pretraining(settings: TableSettings, row: str, seed: int) -> TableJob:
    id = f"pretrain-{row}-{seed}"
    command: list[Any] = ["cromic-ds", "pretrain", "--config", _config(recipe_of(settings, "pretrain", row))]
    run = RunFolder(Path("runs", id))
    command += ["--data.path", _posts(settings), "--out", str(run.path), "--seed", seed]
    command += ["--model.name", settings.kind_of(row), *_flags(_random_start(settings, row))]
    command += _flags(layered(settings.pretrain, _names(settings, row)))
    needs = ("sample-posts",) if settings.data.source == "sample" else ()
    return TableJob(id, "pretrain", _texts(command), str(run.export), needs, model=row, seed=seed)


def _finetuning(settings: TableSettings, row: str, task: str, start: str, seed: int) -> TableJob:
    id = f"finetune-{row}-{task}-{start}-{seed}"
    command: list[Any] = [
        "cromic-ds",
        "finetune",
        "--config",
        _config(recipe_of(settings, "finetune", row, task)),
        "--task",
        task,
    ]
    run = RunFolder(Path("runs", id))
    command += ["--data.path", f"stores/{task}", "--out", str(run.path), "--seed", seed]
    command += ["--model.name", settings.kind_of(row)]
    needs = [f"prepare-{task}"]
    if start == "pretrained":
        pretraining = _pretraining(settings, row, seed)
        needs.append(pretraining.id)
        command += ["--backbone", pretraining.makes]
    else:
        command += _flags(_random_start(settings, row))
    command += _flags(layered(settings.finetune, {*_names(settings, row), task, start}))
    return TableJob(id, "finetune", _texts(command), str(run.export), tuple(needs), row, task, start, seed)


def _evaluation(settings: TableSettings, finetuning: TableJob) -> TableJob:
    row, task, start, seed = finetuning.model, finetuning.task, finetuning.start, finetuning.seed
    cell = f"{row}-{task}-{start}-{seed}"
    command = ["cromic-ds", "evaluate", finetuning.makes, "--task", task, "--data", f"stores/{task}"]
    result = f"results/{cell}.json"
    command += ["--out", result, *_flags(layered(settings.evaluate, {*_names(settings, row), task, start}))]
    needs = (finetuning.id,)
    return TableJob(f"evaluate-{cell}", "evaluate", _texts(command), result, needs, row, task, start, seed)


def _posts(settings: TableSettings) -> str:
    return "posts" if settings.data.source == "sample" else settings.data.posts


def _config(recipe: str) -> str:
    return f"recipes/{Path(recipe).stem}.yaml"


def _names(settings: TableSettings, row: str) -> set[str]:
    return {row, settings.kind_of(row)}


def _random_start(settings: TableSettings, row: str) -> dict[str, Any]:
    return {f"model.{name}": value for name, value in settings.models[row].items() if name != "name"}


def _splits(settings: TableSettings, task: str) -> list[str]:
    """Return the splits for training, for choosing the best checkpoint and for the final scores."""
    return list(dict.fromkeys(["train", "val", layered(settings.evaluate, {task}).get("split", "val")]))


def _flags(settings: dict[str, Any]) -> list[str]:
    return [text for name, value in settings.items() for text in (f"--{name}", _text(value))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _texts(command: list[Any]) -> tuple[str, ...]:
    return tuple(map(_text, command))
