"""What a results table holds: its recipe, and how its jobs are run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cromic_ds.errors import UserError, nearest
from cromic_ds.shipped import PACKAGE
from cromic_ds.tasks import TASKS
from cromic_ds.tools.table.columns import SCORES

PROJECT = PACKAGE.parent
DOWNSTREAM = [name for name in TASKS if name != "comments"]
STARTS = ("pretrained", "scratch")

Layers = dict[str, dict[str, Any]]
"""Settings by what they apply to: `all`, or names of models, tasks and starts joined by `+`; later ones override."""

# What the table itself says to each command, and a layer therefore cannot.
TAKEN = {
    "prepare": ("task", "root", "tokenizer", "out"),
    "pretrain": ("config", "out", "seed", "data.path", "model.name"),
    "finetune": ("config", "out", "seed", "data.path", "model.name", "task", "backbone"),
    "evaluate": ("export", "task", "data", "out"),
}


@dataclass
class DataSource:
    """Where posts and tasks come from."""

    source: Literal["sample", "real"] = "sample"
    """sample: the sample world, written into the table's folder; real: the store and folders named here."""
    posts: str = ""
    """Real: store of posts with comments to pretrain on."""
    official: dict[str, str] = field(default_factory=dict)
    """Real: the folder with the official files, for each task."""
    sample_posts: int = 20_000
    """Sample world: posts with comments."""
    sample_pictures: int = 300
    """Sample world: labeled training pictures of each task."""
    sample_val_pictures: int = 100
    """Sample world: validation pictures of each task, and as many of the test split."""
    sample_seed: int = 0
    """Sample world: which one."""


@dataclass
class TableSettings:
    """The recipe of a table, and how its jobs are run."""

    out: str = ""
    """Folder of the table. The same command with the same folder goes on where it stopped."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows of the table: for each, the `model` settings of a start from random weights; the row's name is the model's
    (cmt, vlp, vilt) unless `name` says another."""
    tasks: list[str] = field(default_factory=lambda: list(DOWNSTREAM))
    """Tasks, each with its columns."""
    starts: list[Literal["pretrained", "scratch"]] = field(default_factory=lambda: list(STARTS))
    """Fine-tuning from the model pretrained on comments, or from random weights; each is a line of a model."""
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    """Seeds of pretraining and fine-tuning; a cell is the mean and standard deviation over them."""
    data: DataSource = field(default_factory=DataSource)
    pretrain_recipe: str = "pretrain_cmt"
    """Recipe that pretrainings start from: a path, or a name in recipes/; {model} stands for the model's name."""
    finetune_recipe: str = "finetune_{task}"
    """Recipe that fine-tunings start from; {task} and {model} stand for the names."""
    prepare: Layers = field(default_factory=dict)
    """Settings of `cromic-ds prepare`, by what they apply to: `all` or a task."""
    pretrain: Layers = field(default_factory=dict)
    """Settings that override the recipe of pretraining, by what they apply to: `all` or a model."""
    finetune: Layers = field(default_factory=dict)
    """Settings that override the recipe of fine-tuning, by what they apply to: `all`, or models, tasks and starts joined by
    `+` (vlp, vqa2, vlp+vqa2, scratch); what stands later overrides."""
    evaluate: Layers = field(default_factory=dict)
    """Settings of `cromic-ds evaluate`, by what they apply to, as for `finetune`."""
    published: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Numbers that others published, to stand beside ours and marked as published: {row: {task: {score: value}}}, such as
    {CroMIC-CMT: {muge: {cider: 51.2}}}, × 100 as the table prints them."""
    processes: int = 1
    """Processes of a training, each on a GPU of its own (on a CPU: side by side). More than 1 are started by deepspeed."""
    jobs: int = 0
    """Jobs at a time; 0 = as many as the GPUs allow, one on a CPU, any number in Slurm."""
    slurm: str | None = None
    """Run the jobs in Slurm, with these arguments of sbatch: --slurm="--partition=gpu --gpus=1 --time=12:00:00"."""
    retry: bool = False
    """Try again what failed before."""
    show: bool = False
    """Print the jobs with their states and commands, and start nothing."""
    job: str = ""
    """Run this one job in the foreground; what the table's Slurm scripts call."""

    def check(self) -> None:
        """Raise UserError for a recipe that cannot work."""
        if not self.out:
            raise UserError("out is missing: give the table's folder")
        if not self.models:
            raise UserError("models is empty: name the table's rows, such as `models: {cmt: {preset: tiny}}`")
        for name in self.models:
            if not re.fullmatch(r"\w+", name):
                raise UserError(f"models: {name!r} becomes part of file names; use letters, digits and underscores")
        for what, valid in (("tasks", DOWNSTREAM), ("starts", STARTS), ("seeds", None)):
            _check_list(what, getattr(self, what), valid)
        if self.processes < 1 or self.jobs < 0:
            raise UserError(f"processes {self.processes} must be at least 1, jobs {self.jobs} at least 0")
        for stage in TAKEN:
            self._check_layers(stage)
        self._check_data()
        self._check_published()

    def _check_layers(self, stage: str) -> None:
        models = {*self.models, *map(self.kind_of, self.models)}
        known = {"prepare": DOWNSTREAM, "pretrain": models}.get(stage, {*models, *DOWNSTREAM, *STARTS})
        for key, settings in getattr(self, stage).items():
            for name in key.split("+"):
                if name != "all" and name not in known:
                    raise UserError(
                        f"{stage}.{key}: {name!r} is not in this table{nearest(name, known)}; "
                        f"all, {', '.join(sorted(known))}"
                    )
            for name in flat(settings):
                if name in TAKEN[stage]:
                    raise UserError(f"{stage}.{key}: {name} follows from the table and cannot be set here")

    def _check_data(self) -> None:
        data = self.data
        if data.source == "sample":
            if min(data.sample_posts, data.sample_pictures, data.sample_val_pictures) < 1:
                raise UserError("data: sample_posts, sample_pictures and sample_val_pictures must be at least 1")
            return
        for task in data.official:
            if task not in DOWNSTREAM:
                raise UserError(f"data.official: no task {task!r}{nearest(task, DOWNSTREAM)}")
        folders = {"data.posts": data.posts} | {f"data.official.{t}": data.official.get(t, "") for t in self.tasks}
        if missing := [
            f"{name} ({path or 'not given'})" for name, path in folders.items() if not Path(path).is_dir() or not path
        ]:
            raise UserError(
                f"these are no folders: {', '.join(missing)}; name your store of posts and the official files"
            )

    def _check_published(self) -> None:
        for row, tasks in self.published.items():
            for task, scores in tasks.items():
                if task not in SCORES:
                    raise UserError(f"published.{row}: no task {task!r}{nearest(task, SCORES)}")
                if wrong := [score for score in scores if score not in SCORES[task]]:
                    raise UserError(
                        f"published.{row}.{task}: the table has no column {wrong[0]!r}; its columns are "
                        f"{', '.join(SCORES[task])} (a human PassRate stands beside none of them)"
                    )

    def kind_of(self, row: str) -> str:
        """The name of a row's model."""
        return self.models[row].get("name", row)

    def recipe(self) -> dict:
        """What the jobs follow from, as plain values: without where and how they are run."""
        return {k: v for k, v in asdict(self).items() if k not in ("out", "jobs", "slurm", "retry", "show", "job")}

    def resolved(self) -> TableSettings:
        """With absolute paths, so that jobs can run in the table's folder."""
        posts = str(Path(self.data.posts).resolve()) if self.data.posts else ""
        official = {task: str(Path(path).resolve()) for task, path in self.data.official.items()}
        return replace(self, data=replace(self.data, posts=posts, official=official))


def _check_list(what: str, values: list, valid) -> None:
    if not values:
        raise UserError(f"{what} is empty")
    if len(set(values)) < len(values):
        raise UserError(f"{what} {values}: one is there twice")
    for value in values if valid else []:
        if value not in valid:
            raise UserError(f"{what}: {value!r}{nearest(value, valid)}; one of {', '.join(valid)}")


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name: {"loop": {"steps": 3}} → {"loop.steps": 3}."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            named |= {f"{name}.{inner}": v for inner, v in flat(value).items()}
        else:
            named[name] = value
    return named


def layered(layers: Layers, names: set[str]) -> dict[str, Any]:
    """The settings, by dotted name, that apply to a job with these names (of its model, task and start)."""
    merged: dict[str, Any] = {}
    for key, settings in layers.items():
        if set(key.split("+")) <= names | {"all"}:
            merged |= flat(settings)
    return merged
