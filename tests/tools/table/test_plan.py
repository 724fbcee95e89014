"""The jobs of a table: ids, commands and what waits for what, as a pure function of the recipe."""

from __future__ import annotations

import shlex
from collections import Counter

import pytest
from helpers.paths import REPOSITORY
from jsonargparse import ArgumentParser

from cromic_ds.errors import UserError
from cromic_ds.tools.table.command import read_recipes
from cromic_ds.tools.table.plan import plan_jobs
from cromic_ds.tools.table.settings import DataSource, TableSettings, flat, layered


def recipe(name: str) -> TableSettings:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TableSettings, as_positional=False)
    values = parser.instantiate(parser.parse_path(REPOSITORY / "recipes" / f"{name}.yaml"))
    return TableSettings(**{**vars(values), "out": "x"})


def one_cell(**changes) -> TableSettings:
    settings = {
        "out": "x",
        "models": {"small_vlp": {"name": "vlp", "preset": "small"}},
        "tasks": ["vqa2"],
        "seeds": [7],
        "prepare": {"all": {"workers": 1}},
        "pretrain": {"all": {"loop": {"steps": 9}}, "vlp": {"model": {"objective": "causal"}, "optim.lr": 0.1}},
        "finetune": {"all": {"loop": {"steps": 3}}, "vlp+vqa2+scratch": {"loop.steps": 4}},
        "evaluate": {"vqa2": {"split": "test", "limit": 5, "meteor": False}},
    }
    return TableSettings(**settings | changes)


def test_every_command_of_a_cell():
    jobs = {job.id: (shlex.join(job.command), job.needs, job.makes) for job in plan_jobs(one_cell())}
    finetuning = (
        "cromic-ds finetune --config recipes/finetune_vqa2.yaml --task vqa2 --data.path stores/vqa2 --out runs/{id} --seed 7 "
        "--model.name vlp {more}"
    )
    evaluation = (
        "cromic-ds evaluate runs/finetune-small_vlp-vqa2-{start}-7/export --task vqa2 --data stores/vqa2 "
        "--out results/small_vlp-vqa2-{start}-7.json --split test --limit 5 --meteor false"
    )
    pretrained, scratch = (f"finetune-small_vlp-vqa2-{start}-7" for start in ("pretrained", "scratch"))
    assert jobs == {
        "sample-posts": ("cromic-ds sample --seed 0 --out posts --posts 20000", (), "posts"),
        "sample-official": (
            "cromic-ds sample --seed 0 --official official --posts 500 --val_fraction 0.2",
            (),
            "official",
        ),
        "prepare-vqa2": (
            "cromic-ds prepare --task vqa2 --root official/vqa2 --out stores/vqa2 --tokenizer posts/tokenizer "
            "--split train val test --extras official/vqa2/grounding.jsonl --workers 1",
            ("sample-posts", "sample-official"),
            "stores/vqa2",
        ),
        "pretrain-small_vlp-7": (
            "cromic-ds pretrain --config recipes/pretrain_cmt.yaml --data.path posts --out runs/pretrain-small_vlp-7 --seed 7 "
            "--model.name vlp --model.preset small --loop.steps 9 --model.objective causal --optim.lr 0.1",
            ("sample-posts",),
            "runs/pretrain-small_vlp-7/export",
        ),
        pretrained: (
            finetuning.format(id=pretrained, more="--backbone runs/pretrain-small_vlp-7/export --loop.steps 3"),
            ("prepare-vqa2", "pretrain-small_vlp-7"),
            f"runs/{pretrained}/export",
        ),
        "evaluate-small_vlp-vqa2-pretrained-7": (
            evaluation.format(start="pretrained"),
            (pretrained,),
            "results/small_vlp-vqa2-pretrained-7.json",
        ),
        scratch: (
            finetuning.format(id=scratch, more="--model.preset small --loop.steps 4"),
            ("prepare-vqa2",),
            f"runs/{scratch}/export",
        ),
        "evaluate-small_vlp-vqa2-scratch-7": (
            evaluation.format(start="scratch"),
            (scratch,),
            "results/small_vlp-vqa2-scratch-7.json",
        ),
    }


def test_real_data_take_the_place_of_the_sample_world(tmp_path):
    for name in ("posts", "vqa"):
        (tmp_path / name).mkdir()
    data = DataSource("real", posts=str(tmp_path / "posts"), official={"vqa2": str(tmp_path / "vqa")})
    settings = one_cell(data=data, starts=["pretrained"], prepare={"vqa2": {"answers": "a.json"}})
    settings.check()
    jobs = {job.id: job for job in plan_jobs(settings)}
    assert list(jobs) == [
        "prepare-vqa2",
        "pretrain-small_vlp-7",
        "finetune-small_vlp-vqa2-pretrained-7",
        "evaluate-small_vlp-vqa2-pretrained-7",
    ]
    assert shlex.join(jobs["prepare-vqa2"].command) == (
        f"cromic-ds prepare --task vqa2 --root {tmp_path}/vqa --out stores/vqa2 --tokenizer {tmp_path}/posts/tokenizer "
        "--split train val test --answers a.json"
    )
    assert jobs["prepare-vqa2"].needs == jobs["pretrain-small_vlp-7"].needs == ()
    assert f"--data.path {tmp_path}/posts" in shlex.join(jobs["pretrain-small_vlp-7"].command)


@pytest.mark.parametrize("name", ["table_sample", "table_full"])
def test_the_shipped_recipes(name):
    settings = recipe(name)
    if settings.data.source == "sample":
        settings.check()
    else:
        with pytest.raises(UserError, match=r"no such folders: data.posts \(not given\), data.official.muge"):
            settings.check()
    jobs = plan_jobs(settings)
    cells = 3 * 5 * 2 * len(settings.seeds)
    assert Counter(job.stage for job in jobs) == {
        **({"sample": 2} if name == "table_sample" else {}),
        "prepare": 5,
        "pretrain": 3 * len(settings.seeds),
        "finetune": cells,
        "evaluate": cells,
    }
    assert len({job.id for job in jobs}) == len({job.makes for job in jobs}) == len(jobs)
    before: set[str] = set()
    for job in jobs:
        assert before.issuperset(job.needs), f"{job.id} comes before a job that it needs"
        before.add(job.id)
    assert set(read_recipes(settings, jobs)) == {job.command[3] for job in jobs if job.trains}


def test_the_first_seed_is_whole_before_the_second_begins():
    jobs = plan_jobs(one_cell(seeds=[3, 1], tasks=["muge", "vqa2"]))
    seeds = [job.seed for job in jobs if job.stage not in ("sample", "prepare")]
    assert seeds == sorted(seeds, reverse=True)


def test_layers():
    layers = {"all": {"a": 1, "b": {"c": 2}}, "vlp": {"b": {"c": 3}}, "vqa2+scratch": {"a": 4}, "cmt": {"a": 5}}
    assert layered(layers, {"vlp", "vqa2", "scratch"}) == {"a": 4, "b.c": 3}
    assert layered(layers, {"vlp", "vqa2", "pretrained"}) == {"a": 1, "b.c": 3}
    assert flat({"a": {"b": {"c": [1]}}, "d.e": 2}) == {"a.b.c": [1], "d.e": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "out is missing"),
        ({"models": {}}, "models is empty"),
        ({"models": {"a/b": {}}}, "models: 'a/b' is used in file names"),
        ({"tasks": ["vqa"]}, r"tasks: 'vqa' \(did you mean 'vqa2'\?\); one of"),
        ({"seeds": [1, 1]}, r"seeds \[1, 1\]: one is given twice"),
        ({"starts": []}, "starts is empty"),
        ({"processes": 0}, "processes 0 must be at least 1"),
        ({"jobs": 0}, "jobs 0 must be at least 1"),
        ({"finetune": {"vqa": {}}}, r"finetune.vqa: 'vqa' is not in this table \(did you mean 'vqa2'\?\)"),
        ({"pretrain": {"vqa2": {}}}, "pretrain.vqa2: 'vqa2' is not in this table"),
        ({"prepare": {"vlp": {}}}, "prepare.vlp: 'vlp' is not in this table"),
        ({"finetune": {"all": {"data": {"path": "x"}}}}, "finetune.all: the table itself sets data.path"),
        ({"evaluate": {"all": {"out": "x"}}}, "evaluate.all: the table itself sets out"),
        ({"published": {"X": {"vqa": {}}}}, r"published.X: no task 'vqa' \(did you mean 'vqa2'\?\)"),
        ({"published": {"X": {"fmiqa": {"pass_rate": 1}}}}, "published.X.fmiqa: the table has no column 'pass_rate'"),
        ({"data": DataSource(sample_pictures=0)}, "must be at least 1"),
        ({"data": DataSource("real", official={"vqa": "."})}, r"data.official: no task 'vqa' \(did you mean"),
        ({"data": DataSource("real", posts=".")}, r"no such folders: data.official.vqa2 \(not given\); name"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        one_cell(**{"finetune": {}, "prepare": {}} | changes).check()


def test_a_missing_recipe_is_named():
    settings = one_cell(pretrain_recipe="pretrain_{model}")
    with pytest.raises(UserError, match="pretrain_recipe: no file 'pretrain_vlp', and no pretrain_vlp"):
        read_recipes(settings, plan_jobs(settings))
