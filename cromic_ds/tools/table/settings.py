"""The settings of a results table: its recipe, and how its jobs are run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cromic_ds.errors import UserError, nearest
from cromic_ds.tasks import TASKS

DOWNSTREAM = [name for name in TASKS if name != "comments"]
TABLE_TASKS = sorted((task for task in TASKS.values() if task.table_scores), key=lambda task: task.table_place)
TABLE_SCORES = {task.name: task.table_scores for task in TABLE_TASKS}  # columns by task: score → short heading
STARTS = ("pretrained", "scratch")

Layers = dict[str, dict[str, Any]]
"""Settings by the jobs that they apply to: `all`, or names of models, tasks and starts joined by `+`; later ones override."""

# Settings that the table itself gives to each command, so that a layer cannot set them.
GIVEN = {
    "prepare": ("task", "root", "tokenizer", "out"),
    "pretrain": ("config", "out", "seed", "data.path", "model.name"),
    "finetune": ("config", "out", "seed", "data.path", "model.name", "task", "backbone"),
    "evaluate": ("export", "task", "data", "out"),
}


@dataclass
class DataSource:
    """Where the posts and the tasks' files come from."""

    source: Literal["sample", "real"] = "sample"
    """sample: the sample world, which is written into the table's folder; real: the store and the folders named here."""
    posts: str = ""
    """With source real: store of posts with comments to pretrain on."""
    official: dict[str, str] = field(default_factory=dict)
    """With source real: the folder with each task's official files."""
    sample_posts: int = 20_000
    """With source sample: number of posts with comments."""
    sample_pictures: int = 300
    """With source sample: number of labeled training pictures of each task."""
    sample_val_pictures: int = 100
    """With source sample: number of validation pictures of each task, and of test pictures."""
    sample_seed: int = 0
    """With source sample: seed of the sample world."""


@dataclass
class TableSettings:
    """The recipe of a table, and how its jobs are run."""

    out: str = ""
    """Folder of the table. Run the same command again to resume it."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows of the table, each with the `model` settings that apply when it starts from random weights. A row is named after
    its model (cmt, vlp, vilt), or has any name and a setting `name` with the model."""
    tasks: list[str] = field(default_factory=lambda: list(DOWNSTREAM))
    """Tasks of the table; each has its own columns."""
    starts: list[Literal["pretrained", "scratch"]] = field(default_factory=lambda: list(STARTS))
    """What fine-tuning starts from: the model pretrained on comments, or random weights. Each is a line of the table."""
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    """Seeds of pretraining and fine-tuning; a cell is the mean and the standard deviation over them."""
    data: DataSource = field(default_factory=DataSource)
    pretrain_recipe: str = "pretrain_cmt"
    """Recipe of pretraining: a path, or a name in recipes/; {model} is replaced by the model's name."""
    finetune_recipe: str = "finetune_{task}"
    """Recipe of fine-tuning: a path, or a name in recipes/; {task} and {model} are replaced by the names."""
    prepare: Layers = field(default_factory=dict)
    """Settings of `cromic-ds prepare`, by the jobs that they apply to: `all` or a task."""
    pretrain: Layers = field(default_factory=dict)
    """Settings that override the recipe of pretraining, by the jobs that they apply to: `all` or a model."""
    finetune: Layers = field(default_factory=dict)
    """Settings that override the recipe of fine-tuning, by the jobs that they apply to: `all`, or models, tasks and starts
    joined by `+` (vlp, vqa2, vlp+vqa2, scratch); later entries override earlier ones."""
    evaluate: Layers = field(default_factory=dict)
    """Settings of `cromic-ds evaluate`, by the jobs that they apply to, as for `finetune`."""
    published: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Numbers that others published, printed beside ours and marked as published: {row: {task: {score: value}}}, such as
    {CroMIC-CMT: {muge: {cider: 51.2}}}, × 100 as the table prints them."""
    processes: int = 1
    """Processes of each training, one on each GPU; on a CPU they share it. DeepSpeed's launcher starts more than 1."""
    jobs: int | None = None
    """Jobs at a time; null = as many as the GPUs allow, one on a CPU, any number in Slurm."""
    slurm: str | None = None
    """Run the jobs in Slurm, with these options of sbatch: --slurm="--partition=gpu --gpus=1 --time=12:00:00"; null = here."""
    retry: bool = False
    """Run the failed jobs again."""
    show: bool = False
    """Print the jobs with their states and commands; start nothing."""
    job: str | None = None
    """Run only this job, in the foreground; null = all jobs. The table's Slurm scripts use it."""

    def check(self) -> None:
        """Raise UserError for settings that cannot work."""
        if not self.out:
            raise UserError("out is missing: give the table's folder")
        if not self.models:
            raise UserError("models is empty: name the table's rows, such as `models: {cmt: {preset: tiny}}`")
        if wrong := [name for name in self.models if not re.fullmatch(r"\w+", name)]:
            raise UserError(f"models: {wrong[0]!r} is used in file names; use letters, digits and underscores")
        for what, valid in (("tasks", DOWNSTREAM), ("starts", STARTS), ("seeds", None)):
            values = getattr(self, what)
            if not values:
                raise UserError(f"{what} is empty")
            if len(set(values)) < len(values):
                raise UserError(f"{what} {values}: one is given twice")
            if valid and (wrong := [value for value in values if value not in valid]):
                raise UserError(f"{what}: {wrong[0]!r}{nearest(wrong[0], valid)}; one of {', '.join(valid)}")
        for name in ("processes", "jobs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} {value} must be at least 1")
        for stage in GIVEN:
            self._check_layers(stage)
        self._check_data()
        self._check_published()

    def _check_layers(self, stage: str) -> None:
        models = {*self.models, *map(self.kind_of, self.models)}
        known = {"prepare": DOWNSTREAM, "pretrain": models}.get(stage, {*models, *DOWNSTREAM, *STARTS})
        for key, settings in getattr(self, stage).items():
            for name in key.split("+"):
                if name != "all" and name not in known:
                    names = ", ".join(sorted(known))
                    raise UserError(f"{stage}.{key}: {name!r} is not in this table{nearest(name, known)}; all, {names}")
            if given := [name for name in flat(settings) if name in GIVEN[stage]]:
                raise UserError(f"{stage}.{key}: the table itself sets {given[0]}, so it cannot be set here")

    def _check_data(self) -> None:
        data = self.data
        if data.source == "sample":
            if min(data.sample_posts, data.sample_pictures, data.sample_val_pictures) < 1:
                raise UserError("data: sample_posts, sample_pictures and sample_val_pictures must be at least 1")
            return
        if unknown := [task for task in data.official if task not in DOWNSTREAM]:
            raise UserError(f"data.official: no task {unknown[0]!r}{nearest(unknown[0], DOWNSTREAM)}")
        folders = {"data.posts": data.posts} | {f"data.official.{t}": data.official.get(t, "") for t in self.tasks}
        missing = {name: path for name, path in folders.items() if not path or not Path(path).is_dir()}
        if missing:
            names = ", ".join(f"{name} ({path or 'not given'})" for name, path in missing.items())
            raise UserError(f"no such folders: {names}; name your store of posts and the folders of the official files")

    def _check_published(self) -> None:
        for row, tasks in self.published.items():
            for task, scores in tasks.items():
                if task not in TABLE_SCORES:
                    raise UserError(f"published.{row}: no task {task!r}{nearest(task, TABLE_SCORES)}")
                if wrong := [score for score in scores if score not in TABLE_SCORES[task]]:
                    raise UserError(
                        f"published.{row}.{task}: the table has no column {wrong[0]!r}; its columns are "
                        f"{', '.join(TABLE_SCORES[task])} (a human PassRate cannot be compared with them)"
                    )

    def kind_of(self, row: str) -> str:
        """Return the name of a row's model."""
        return self.models[row].get("name", row)

    def recipe(self) -> dict:
        """Return the settings that determine the jobs, as plain values: all but where and how the jobs run."""
        return {k: v for k, v in asdict(self).items() if k not in ("out", "jobs", "slurm", "retry", "show", "job")}

    def resolved(self) -> TableSettings:
        """Return the settings with absolute paths, so that jobs can run in the table's folder."""
        posts = str(Path(self.data.posts).resolve()) if self.data.posts else ""
        official = {task: str(Path(path).resolve()) for task, path in self.data.official.items()}
        return replace(self, data=replace(self.data, posts=posts, official=official))


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name: {"loop": {"steps": 3}} → {"loop.steps": 3}."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            named |= {f"{name}.{inner}": v for inner, v in flat(value).items()}
        else:
            named[name] = value
    return named


def layered(layers: Layers, names: set[str]) -> dict[str, Any]:
    """Return the settings, by dotted name, that apply to a job with these names (of its model, task and start)."""
    merged: dict[str, Any] = {}
    for key, settings in layers.items():
        if set(key.split("+")) <= names | {"all"}:
            merged |= flat(settings)
    return merged
